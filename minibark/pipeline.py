"""Rows through the four stages. One utterance is one row; each gets what it would get alone.

What comes in here is trusted: whoever lets text, voices and options in (`bark.py`) has checked
them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import fast
from .checkpoint.tensors import State
from .coarse import generate_coarse
from .codec_stream import Audio as Audio
from .config import STAGES, BarkConfig, GenerationConfig
from .decoding import Decoder
from .files import warn
from .fine import generate_fine
from .model import GPT, FineGPT
from .options import Options
from .sampling import OnStep
from .semantic import generate_semantic, semantic_prompt
from .surroundings import running
from .voice import Voice

NewDecoder = Callable[[GPT, int, fast.Choice], Decoder]
NewPasses = Callable[[FineGPT, fast.Choice], fast.Passes]


@dataclass(frozen=True)
class Row:
    """One utterance on its way.

    Attributes:
        ids: (n,) int64, of the tokenizer.
        voice: how to sound.
        generator: its random stream on the device; None is torch's own.
    """

    ids: Tensor
    voice: Voice | None = None
    generator: torch.Generator | None = None


class Pipeline:
    """The stages of one checkpoint, each built when it is first used, by any number of threads.

    Attributes:
        config: shapes and constants.
        choice: where and how the stages run.
        offload: whether only the running stage is on the device.
        new_decoder: makes the decoder of a stage's model, as `fast.decoder` does.
        new_passes: makes what the fine model's passes run on, as `fast.passes` does. These two are
            the seam for whoever watches or times steps.
    """

    def __init__(
        self,
        config: BarkConfig,
        states: dict[str, State],
        choice: fast.Choice,
        offload: bool = False,
    ) -> None:
        """`states` has each stage's checked tensors, which are let go once it is built.

        It must have them again (by `__missing__`) for a stage that is built again.
        """
        self.config = config
        self.choice = choice
        self.offload = offload
        self.new_decoder: NewDecoder = fast.decoder
        self.new_passes: NewPasses = fast.passes
        self._states = states
        self._modules: dict[str, nn.Module] = {}
        self._decoders: dict[str, Decoder] = {}
        self._passes: dict[str, fast.Passes] = {}
        self._building = threading.RLock()
        # Where weights are moved or steps recorded there is one user at a time, else any number.
        one_user = offload or choice.records
        self._alone = threading.RLock() if one_user else contextlib.nullcontext()

    def watched(self, new_decoder: NewDecoder, new_passes: NewPasses) -> Pipeline:
        """One that runs the same built stages on other decoders; this one stays as it is."""
        other = copy.copy(self)
        other.new_decoder, other.new_passes = new_decoder, new_passes
        other._decoders, other._passes = {}, {}
        return other

    def speak(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Voice]:
        """The three token streams of each row."""
        self.windowed(options)  # which else would fail after the first stage
        voices, streams = [row.voice for row in rows], [row.generator for row in rows]
        semantics = self.semantic(rows, options, on_step)
        coarses = self.coarse(semantics, voices, streams, options, on_step)
        fines = self.fine(coarses, voices, streams, options, on_step)
        return [Voice(*parts) for parts in zip(semantics, coarses, fines, strict=True)]

    def semantic(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Tensor]:
        """Semantic tokens (S,) of each row."""
        g = self.config.generation
        prompts = [semantic_prompt(r.ids, r.voice.semantic if r.voice else None, g) for r in rows]
        with self.on_device("semantic") as model:
            semantics = generate_semantic(
                model,
                prompts,
                g,
                options.text_sampling,
                [row.generator for row in rows],
                min_eos_p=options.min_eos_p,
                max_duration_s=options.max_duration_s,
                allow_early_stop=options.allow_early_stop,
                on_step=on_step,
                decoder=self._decoder("semantic", on_step),
            )
        return [semantic.clone() for semantic in semantics]  # no inference tensors any more

    def coarse(
        self,
        semantics: Sequence[Tensor],
        voices: Sequence[Voice | None],
        generators: Sequence[torch.Generator | None],
        options: Options,
        on_step: OnStep | None = None,
    ) -> list[Tensor]:
        """Coarse codes (n_coarse_codebooks, T) of each row's semantic tokens (S,)."""
        with self.on_device("coarse") as model:
            coarses = generate_coarse(
                model,
                semantics,
                voices,
                self.windowed(options),
                options.coarse_sampling,
                generators,
                on_step=on_step,
                decoder=self._decoder("coarse", on_step),
            )
        return [coarse.clone() for coarse in coarses]

    def fine(
        self,
        coarses: Sequence[Tensor],
        voices: Sequence[Voice | None],
        generators: Sequence[torch.Generator | None],
        options: Options,
        on_step: OnStep | None = None,
    ) -> list[Tensor]:
        """All codes (n_fine_codebooks, T) of each row's coarse ones (K, T)."""
        with self.on_device("fine") as model:
            passes = self._passes.get("fine") or self.new_passes(model, self.choice)
            self._passes["fine"] = passes
            fines = generate_fine(
                model,
                coarses,
                voices,
                self.config.generation,
                options.fine_sampling,
                generators,
                on_step=on_step,
                forward=passes,
            )
        return [fine.clone() for fine in fines]

    def decode(self, codes: Tensor) -> Audio:
        """The audio of codes (n_fine_codebooks, T)."""
        with self.on_device("codec") as codec, torch.inference_mode():
            if self.choice.device.type == "cpu":  # in blocks: faster, and memory stays flat
                return np.concatenate([np.zeros(0, np.float32), *codec.stream([codes])])
            audio: Audio = codec(codes[None].to(self.choice.device))[0].cpu().numpy()
            return audio

    def module(self, stage: str) -> nn.Module:
        """A stage's module, built if need be, where it is; others wait while it is built."""
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
        with self._building:
            if stage not in self._modules:
                # Whoever asks first may be in inference mode; others must be able to train it.
                with torch.inference_mode(False):
                    module = fast.build(stage, self.config, self._states[stage], self.choice)
                if not self.offload:
                    module.to(self.choice.device)  # never again: others may be running it by then
                self._modules[stage] = module
                self._states.pop(stage, None)  # and with the last of them a mapped file
            return self._modules[stage]

    def unload(self, stage: str) -> None:
        """Free a stage's module and what has been recorded with it; it is built again if used."""
        with self._alone, self._building:
            self._modules.pop(stage, None)
            self._forget_recordings(stage)

    @property
    def built(self) -> list[str]:
        """The stages that have been built."""
        return list(self._modules)

    @contextlib.contextmanager
    def on_device(self, stage: str) -> Iterator[Any]:
        """A stage's module, on the device while the block runs."""
        with running(self.choice.device), self._alone:
            module = self.module(stage)
            if self.offload:
                module.to(self.choice.device)
            try:
                yield module
            finally:
                if self.offload:
                    self._forget_recordings(stage)  # which know only where the weights were
                    module.to("cpu")

    def _forget_recordings(self, stage: str) -> None:
        self._decoders.pop(stage, None)
        self._passes.pop(stage, None)

    def windowed(self, options: Options) -> GenerationConfig:
        """The constants with the coarse windows that were asked for; ValueError: too long ones."""
        g = self.config.generation
        history, window = options.max_coarse_history, options.sliding_window_len
        history = g.max_coarse_history if history is None else history
        window = g.sliding_window_len if window is None else window
        room = self.config.coarse.block_size - g.max_coarse_input_length
        if not g.n_coarse_codebooks <= history <= room - window:
            raise ValueError(
                f"max_coarse_history must be at least {g.n_coarse_codebooks}, and at most {room} "
                f"together with sliding_window_len; got {history} and {window}"
            )
        return dataclasses.replace(g, max_coarse_history=history, sliding_window_len=window)

    def _decoder(self, stage: str, on_step: OnStep | None) -> Callable[[GPT, int], Decoder]:
        """What makes, or finds again, the decoder of a stage."""

        def make(model: GPT, n_merged: int) -> Decoder:
            decoder = self._decoders.get(stage) or self.new_decoder(model, n_merged, self.choice)
            if self.choice.records:
                self._decoders[stage] = decoder
            decoder.on_step = on_step
            return decoder

        return make


def warn_of_ends(semantics: Sequence[Tensor], options: Options, config: GenerationConfig) -> None:
    """Warn of texts that ended at once, or not at all, and which of several they are."""
    if silent := [clip for clip, semantic in enumerate(semantics) if not len(semantic)]:
        warn(
            f"the model ended the text{_which(silent, semantics)} at its first step: no audio. "
            "Another seed, a higher min_eos_p or another wording may help"
        )
    most, is_free = config.max_new_tokens, options.max_duration_s is None
    endless = [clip for clip, semantic in enumerate(semantics) if len(semantic) >= most]
    if is_free and options.allow_early_stop and endless:
        warn(
            f"the text{_which(endless, semantics)} had not ended at the longest that the model "
            f"speaks, {most / config.semantic_rate_hz:.1f} s, so its end may be missing. "
            "Say it in shorter pieces, or try another seed"
        )


def _which(clips: Sequence[int], semantics: Sequence[Tensor]) -> str:
    if len(semantics) == 1:
        return ""
    numbers = ", ".join(map(str, clips[:8])) + (", ..." if len(clips) > 8 else "")
    return f" of clip{'s'[: len(clips) > 1]} {numbers} (counted from 0)"
