"""`Bark`: one checkpoint, and the doors to its pipeline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor, nn

from . import fast
from .checkpoint.layouts import opener
from .checkpoint.opened import Checkpoint, Reopening, random_checkpoint
from .checkpoint.saving import save_checkpoint
from .checkpoint.shapes import RandomStates
from .checkpoint.tensors import State
from .checkpoint.voices import VoiceLike, Voices
from .codec import CodecDecoder
from .config import STAGES, BarkConfig
from .model import GPT, FineGPT
from .options import GenerateOptions, Options, Seed, TokensLike, code_ids, token_ids
from .pipeline import Audio, Pipeline, Row
from .sampling import OnStep
from .text import readable_ids
from .tokenizer import Tokenizer
from .voice import Voice


class Bark:
    """Text to audio. Two jobs: hold one checkpoint, and check what callers bring.

    `Bark(config)` has random weights, `Bark.from_pretrained` trained ones. A stage is loaded when
    it is first used.

    Attributes:
        config: shapes and constants.
        tokenizer: text -> ids.
        voices: the checkpoint's voices by name.
        normalize: `Options.normalize` where that is None; "off" but for `tiny`.
        pipeline: what rows of utterances go through; it trusts what it is given.
    """

    def __init__(
        self,
        config: BarkConfig | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        voices: Voices | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str | None = None,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        """A Bark with random weights, which are decided by `seed`.

        Without a config it has the released small size, without a tokenizer a vocabulary of single
        characters, without voices none. The other arguments and errors are as in `from_pretrained`.
        """
        if not isinstance(config, BarkConfig | None):
            raise TypeError(
                f"config must be a BarkConfig, not {config!r:.60}; from_pretrained opens files"
            )
        self.config = config if config is not None else BarkConfig()
        self.tokenizer = tokenizer if tokenizer is not None else Tokenizer.characters()
        self.voices = voices if voices is not None else Voices({}, Path)
        self.normalize = "off"
        choice = fast.choose(device, precision, backend)
        self.pipeline = Pipeline(self.config, RandomStates(self.config, seed), choice, offload)
        parts = (self.config, self.tokenizer, self.voices, seed)
        self._reopen: Callable[[], Checkpoint] = partial(random_checkpoint, *parts)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str | None = None,
        offload: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        offline: bool = False,
        stages: Mapping[str, str | os.PathLike[str]] | None = None,
        voices_dir: str | os.PathLike[str] | None = None,
    ) -> Bark:
        """A Bark with trained weights.

        Args:
            name_or_dir: `"tiny"`, which ships with minibark, `"random"`, a narrow model that makes
                noise (directories of such names are `"./tiny"` and `"./random"`), a hub repository
                (`"suno/bark-small"`, `"suno/bark"`) or a directory in Hugging Face's, Suno's or
                our own layout.
            device: as for `torch.device`; None is CUDA where there is one, else the CPU.
            precision: `"float32"`, `"float16"`, `"bfloat16"`, on a CPU or CUDA `"int8"`, on a CPU
                `"int4"`; None is bfloat16 on CUDA, else float32.
            backend: `"torch"`, or `"triton"` for fused kernels on an NVIDIA GPU; None is the
                fastest that can run. On CUDA the first call of a stage warms up.
            offload: keep only the running stage on the device, the others on the CPU.
            cache_dir: the hub's cache and ours; None is the usual place of each.
            revision: branch, tag or commit on the hub.
            offline: never ask the hub, use what is cached.
            stages: other places to take single stages from, by `"semantic"`, `"coarse"`, `"fine"`
                and `"codec"`: a repository, a directory, or Suno's `.pt` (codec: `.th`) file.
            voices_dir: directory of `.npz` voices to use in place of the checkpoint's own.

        Raises:
            FileNotFoundError: no such model, a file of it is missing, or no network.
            CheckpointError: files that are damaged or do not fit together.
            ValueError: an unknown precision or stage, or a device that this machine does not have.
            BackendError: a backend that cannot run on the device.
        """
        choice = fast.choose(device, precision, backend)
        reopen = opener(
            name_or_dir,
            cache_dir=cache_dir,
            revision=revision,
            offline=offline,
            stages=stages,
            voices_dir=voices_dir,
        )
        checkpoint = reopen()
        bark = cls.__new__(cls)
        bark.config, bark.tokenizer = checkpoint.config, checkpoint.tokenizer
        bark.voices, bark.normalize = checkpoint.voices, checkpoint.normalize
        bark.pipeline = Pipeline(bark.config, Reopening(checkpoint, reopen), choice, offload)
        bark._reopen = reopen
        return bark

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

    def __repr__(self) -> str:
        return f"<Bark {self.pipeline.choice}>"

    def generate(
        self, text: str | TokensLike, voice: VoiceLike = None, **options: Unpack[GenerateOptions]
    ) -> Audio:
        """Audio of a text: `decode(generate_voice(text, voice, **options).fine)`.

        Args:
            text: what to say, or its token ids.
            voice: how to sound.
            **options: the fields of `minibark.Options`, and `on_step`, which is called as (stage,
                done, total) while a stage runs; what it raises ends the work.

        Returns:
            (N,) float32 in about [-1, 1], 24 kHz. Empty, with a warning, where the model ends the
            text at its first step.

        Raises:
            ValueError: empty text, or an option out of range.
            VoiceError: the voice is unknown or damaged.
            FileNotFoundError: the voice's file is not there.
        """
        return self.pipeline.decode(self.generate_voice(text, voice, **options).fine)

    def generate_voice(
        self, text: str | TokensLike, voice: VoiceLike = None, **options: Unpack[GenerateOptions]
    ) -> Voice:
        """The three token streams of a text, which are a voice to go on with.

        Arguments and errors are those of `generate`.
        """
        knobs: dict[str, Any] = {**options}
        on_step = knobs.pop("on_step", None)
        checked = Options(**knobs)
        row = self._row(text, voice, checked)
        return self.pipeline.speak([row], checked, on_step)[0]

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
        return self.pipeline.semantic([row], options, on_step)[0]

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
        voices, streams = [self.load_voice(voice)], [self._stream(options)]
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
        voices, streams = [self.load_voice(voice)], [self._stream(options)]
        return self.pipeline.fine([codes], voices, streams, options, on_step)[0]

    def decode(self, fine: TokensLike) -> Audio:
        """Audio of codes: (320 * T,) float32 in about [-1, 1], 24 kHz.

        `fine` is (8, T) codes in [0, 1024); T may be 0. ValueError: others, or of another shape.
        """
        g = self.config.generation
        n = g.n_fine_codebooks
        return self.pipeline.decode(code_ids(fine, "fine", g.codebook_size, n, n))

    def load_voice(self, voice: VoiceLike) -> Voice | None:
        """The voice that a name, path, dictionary or `Voice` stands for, checked; None stays None.

        Raises:
            VoiceError: an unknown name, or a voice that this model cannot use.
            FileNotFoundError: no such file.
        """
        found = self.voices.resolve(voice)
        return None if found is None else found.check(self.config.generation)

    @overload
    def model(self, stage: Literal["semantic", "coarse"]) -> GPT: ...
    @overload
    def model(self, stage: Literal["fine"]) -> FineGPT: ...
    @overload
    def model(self, stage: Literal["codec"]) -> CodecDecoder: ...
    @overload
    def model(self, stage: str) -> nn.Module: ...
    def model(self, stage: str) -> nn.Module:
        """A stage's module, loaded: the one that generates, in evaluation mode.

        Its products and attention may be others than the plain model's, without gradients;
        `describe` says which. With `offload` it is on the CPU.

        Raises:
            ValueError: an unknown stage.
        """
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
        with self.pipeline.on_device(stage) as module:
            loaded: nn.Module = module
        return loaded

    def describe(self, stage: str | None = None) -> str:
        """Where and how this Bark runs or, if one is named, which fast paths a stage has."""
        choice = self.pipeline.choice
        return fast.describe(self.model(stage), choice) if stage else str(choice)

    def save(self, directory: str | os.PathLike[str], voices: Sequence[str] | None = None) -> None:
        """Write everything as one directory in our layout, whole or not at all.

        In float32 stages are written as they are now, so that what was done to a `model` is kept;
        in another precision as they were opened. `voices` names those to take along; None is all.

        Raises:
            FileExistsError: the directory has files in it. FileNotFoundError: the model has gone.
        """
        checkpoint = self._reopen()
        states: dict[str, State] = dict(checkpoint.states)
        for stage in self.pipeline.built if self.precision == "float32" else ():
            states[stage] = self.pipeline.module(stage).state_dict()
        save_checkpoint(dataclasses.replace(checkpoint, states=states), directory, voices)

    def _row(self, text: str | TokensLike, voice: VoiceLike, options: Options) -> Row:
        if isinstance(text, str):
            text = readable_ids(text, self.tokenizer, options.normalize or self.normalize)
        n_ids = self.config.semantic.input_vocab_size - self.config.generation.text_encoding_offset
        ids = token_ids(text, "text", 1, n_ids)
        if not len(ids):
            raise ValueError("text holds no ids; give at least one")
        return Row(ids, self.load_voice(voice), self._stream(options))

    def _stream(self, options: Options) -> torch.Generator | None:
        seed = options.seed
        return torch.Generator(self.device).manual_seed(seed) if isinstance(seed, int) else seed
