"""The doors of single stages: what callers bring is checked here, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checkpoint.opened import Checkpoint
from .checkpoint.voices import VoiceLike, Voices
from .config import BarkConfig
from .options import Options, Seed, TokensLike, code_ids, token_ids
from .pipeline import Audio, Pipeline, Row, warn_of_ends
from .sampling import OnStep
from .text import readable_ids
from .tokenizer import Tokenizer
from .voice import Voice


class Stages:
    """Text -> semantic tokens -> coarse codes -> all codes -> audio, one stage at a time.

    Attributes:
        config: shapes and constants.
        tokenizer: text -> ids.
        voices: the checkpoint's voices by name.
        normalize: `Options.normalize` where that is None; "off" but for `tiny`.
        pipeline: what rows of utterances go through; it trusts what it is given.
    """

    config: BarkConfig
    tokenizer: Tokenizer
    voices: Voices
    normalize: str
    pipeline: Pipeline
    _reopen: Callable[[], Checkpoint]

    @property
    def device(self) -> torch.device:
        """Where the stages run."""
        return self.pipeline.choice.device

    @property
    def precision(self) -> str:
        """Of the three transformers' weights; logits and codec are float32 always."""
        return self.pipeline.choice.precision

    @property
    def backend(self) -> str:
        """What decodes, `"torch"` or `"triton"`."""
        return self.pipeline.choice.backend

    @property
    def sample_rate(self) -> int:
        """Samples of audio a second, Hz."""
        return self.config.codec.sampling_rate

    def text_to_semantic(
        self,
        text: str | TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = Options.temperature,
        top_k: int | None = None,
        top_p: float | None = None,
        min_eos_p: float | None = Options.min_eos_p,
        max_duration_s: float | None = None,
        allow_early_stop: bool = True,
        seed: Seed = None,
        normalize: str | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Semantic tokens of a text: (S,) int64 in [0, 10_000), 49.9 Hz, on the CPU.

        `text` may be its token ids (n,) from `tokenizer.encode`. The other arguments and errors are
        those of `generate`.
        """
        options = Options(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_eos_p=min_eos_p,
            max_duration_s=max_duration_s,
            allow_early_stop=allow_early_stop,
            seed=seed,
            normalize=normalize,
        )
        row = self._row(text, voice, options)
        semantics = self.pipeline.semantic([row], options, on_step)
        warn_of_ends(semantics, options, self.config.generation)
        return semantics[0]

    def semantic_to_coarse(
        self,
        semantic: TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = Options.waveform_temperature,
        top_k: int | None = None,
        top_p: float | None = None,
        max_coarse_history: int | None = None,
        sliding_window_len: int | None = None,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Two codebooks: (2, T) int64 in [0, 1024), 75 Hz, T = floor(1.503 * S), on the CPU.

        `semantic` is (S,) in [0, 10_000); S may be 0. `temperature` is `waveform_temperature` of
        `generate`, whose other arguments and errors these are.
        """
        options = Options(
            waveform_temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_coarse_history=max_coarse_history,
            sliding_window_len=sliding_window_len,
            seed=seed,
        )
        ids = token_ids(semantic, "semantic", 1, self.config.generation.semantic_vocab_size)
        voices, streams = [self.load_voice(voice)], [options.generator(self.device)]
        return self.pipeline.coarse([ids], voices, streams, options, on_step)[0]

    def coarse_to_fine(
        self,
        coarse: TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = Options.fine_temperature,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """All codebooks: (8, T) int64 in [0, 1024), 75 Hz, on the CPU.

        `coarse` is (K, T) codes, K from 1 to 7; T may be 0. `temperature` is `fine_temperature` of
        `generate`, whose other arguments and errors these are.
        """
        options = Options(fine_temperature=temperature, seed=seed)
        g, least = self.config.generation, self.config.fine.n_codes_given
        codes = code_ids(coarse, "coarse", g.codebook_size, least, g.n_fine_codebooks - 1)
        voices, streams = [self.load_voice(voice)], [options.generator(self.device)]
        return self.pipeline.fine([codes], voices, streams, options, on_step)[0]

    def decode(self, fine: TokensLike) -> Audio:
        """Audio of codes: (320 * T,) float32 in about [-1, 1], 24 kHz.

        `fine` is (8, T) codes in [0, 1024); T may be 0. ValueError: others, or of another shape.
        """
        g = self.config.generation
        n = g.n_fine_codebooks
        return self.pipeline.decode(code_ids(fine, "fine", g.codebook_size, n, n))

    def checkpoint(self) -> Checkpoint:
        """What this was opened as, opened again; changes of a model since then are not in it."""
        return self._reopen()

    def opened_with(self) -> dict[str, Any]:
        """The keywords that said where its parts are (`from_pretrained`), those that were given."""
        found = getattr(self._reopen, "keywords", {})
        return {name: value for name, value in found.items() if value}

    def load_voice(self, voice: VoiceLike) -> Voice | None:
        """The voice that a name, path, dictionary or `Voice` stands for, checked; None stays None.

        Raises:
            VoiceError: an unknown name, or a voice that this model cannot use.
            FileNotFoundError: no such file.
        """
        found = self.voices.resolve(voice)
        return None if found is None else found.check(self.config.generation)

    def _row(self, text: str | TokensLike, voice: VoiceLike, options: Options) -> Row:
        if isinstance(text, str):
            text = readable_ids(text, self.tokenizer, options.normalize or self.normalize)
        n_ids = self.config.semantic.input_vocab_size - self.config.generation.text_encoding_offset
        ids = token_ids(text, "text", 1, n_ids)
        if not len(ids):
            raise ValueError("text holds no ids; give at least one")
        return Row(ids, self.load_voice(voice), options.generator(self.device))
