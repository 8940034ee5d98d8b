"""`Bark`: one checkpoint, and the doors to its pipeline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from torch import nn

from . import fast
from .checkpoint.layouts import opener
from .checkpoint.opened import Checkpoint, Reopening, random_checkpoint
from .checkpoint.saving import save_checkpoint
from .checkpoint.tensors import State
from .checkpoint.voices import VoiceLike, Voices
from .codec import CodecDecoder
from .config import BarkConfig
from .model import GPT, FineGPT
from .options import GenerateOptions, Seed, TokensLike
from .pipeline import Audio, Pipeline, warn_of_ends
from .speech.batch import asked_for, in_groups, of_item
from .speech.plan import LongKeywords, one_utterance, sorted_out
from .speech.reading import Reading
from .stages import Stages
from .tokenizer import Tokenizer
from .voice import Voice


class Bark(Stages):
    """Text to audio: one checkpoint, opened, and what is made of whole utterances.

    `Stages`, its base, has the doors of single stages.

    `Bark(config)` has random weights, `Bark.from_pretrained` trained ones. A stage is loaded when
    it is first used.

    Attributes: those of `Stages`.
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
        vocabulary, none = tokenizer or Tokenizer.characters(), Voices({}, Path)
        parts = (config or BarkConfig(), vocabulary, voices or none, seed)
        choice = fast.choose(device, precision, backend)
        self._open(partial(random_checkpoint, *parts), choice, offload)

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
        bark = cls.__new__(cls)
        bark._open(reopen, choice, offload)
        return bark

    def __getstate__(self) -> dict[str, Any]:
        """What opens it again, for other processes; changed weights stay behind: `save` them."""
        choice, kept = self.pipeline.choice, (self._reopen, self.normalize, self.pipeline.offload)
        return {"choice": (str(choice.device), choice.precision, choice.backend), "kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        reopen, normalize, offload = state["kept"]
        self._open(reopen, fast.choose(*state["choice"]), offload)
        self.normalize = normalize

    def _open(self, reopen: Callable[[], Checkpoint], choice: fast.Choice, offload: bool) -> None:
        with torch.inference_mode(False):  # what is opened is for others too
            checkpoint = reopen()
        self.config, self.tokenizer = checkpoint.config, checkpoint.tokenizer
        self.voices, self.normalize = checkpoint.voices, checkpoint.normalize
        self.pipeline = Pipeline(self.config, Reopening(checkpoint, reopen), choice, offload)
        self._reopen = reopen

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
        checked = one_utterance(knobs)
        made = self.pipeline.speak([self._row(text, voice, checked)], checked, on_step)
        warn_of_ends([voice.semantic for voice in made], checked, self.config.generation)
        return made[0]

    def generate_batch(
        self,
        texts: Sequence[str | TokensLike],
        voices: VoiceLike | Sequence[VoiceLike] = None,
        seeds: Seed | Sequence[Seed] = None,
        *,
        n: int = 1,
        **options: Unpack[GenerateOptions],
    ) -> list[Audio]:
        """Audio of many texts at once; clip i is what `generate` gives for it alone.

        In int8 and int4 products round all rows together: other tokens, of the same quality, may
        come than alone.

        Args:
            texts: what to say, each as for `generate`.
            voices: one for all, or one for each text.
            seeds: one for each clip; a number is the first one's, and the next has the next number;
                None is torch's own stream, from which clips are made one after the other.
            n: clips of each text, which follow one another.
            **options: as for `generate`; they hold for all.

        Returns:
            `len(texts) * n` arrays (N,) float32.

        Raises:
            ValueError, VoiceError, FileNotFoundError: as from `generate`, saying for which text;
                or lists whose lengths do not fit.
        """
        knobs: dict[str, Any] = {**options}
        on_step = knobs.pop("on_step", None)
        checked = one_utterance(knobs)
        rows = []
        for clip, one in enumerate(asked_for(texts, voices, seeds, n, checked)):
            with of_item("texts", clip // n):
                rows.append(self._row(*one))
        made = list(in_groups(self.pipeline, rows, checked, on_step))
        warn_of_ends([voice.semantic for voice in made], checked, self.config.generation)
        return [self.pipeline.decode(voice.fine) for voice in made]

    def generate_long(
        self, text: str, voice: VoiceLike = None, **options: Unpack[LongKeywords]
    ) -> Audio:
        """Audio of a text of any length, said in pieces.

        Args:
            text: what to say; `[pause:1.5s]` is a silence.
            voice: how to sound; None is as the first piece happens to.
            **options: the fields of `Options` and `LongOptions`, and `on_step`.

        Returns:
            (N,) float32, as from `generate`. A warning tells of each piece that went wrong.

        Raises:
            MissingExtraError: a text of several pieces, without the package that finds sentences.
            ValueError, VoiceError, FileNotFoundError: as from `generate`; or a bad pause.
        """
        checked, plan, on_step = sorted_out(options)
        said = Reading(self, checked, plan).text(text, voice)
        return np.concatenate(list(said.sound(on_step)))

    def generate_dialog(
        self, text: str, speakers: Mapping[str, VoiceLike], **options: Unpack[LongKeywords]
    ) -> Audio:
        """Audio of a dialog, lines `NAME: text`, each speaker in a voice of its own.

        `speakers` has each name's voice. The rest is as for `generate_long`.

        Raises:
            DialogError: an unknown speaker, or nothing said; `speech.dialog` tells what is a name.
        """
        checked, plan, on_step = sorted_out(options)
        said = Reading(self, checked, plan).dialog(text, speakers)
        return np.concatenate(list(said.sound(on_step)))

    def stream(
        self, text: str, voice: VoiceLike = None, **options: Unpack[LongKeywords]
    ) -> Iterator[Audio]:
        """The audio of a text as it comes: an array (N,) float32 for each piece.

        The first sentence is a piece of its own, so that sound comes early, and a seed gives other
        sound than in `generate_long`, whose pieces are longer. What is checked is checked at once.
        When the iterator is closed, nothing more is made. Arguments and errors are those of
        `generate_long`.
        """
        checked, plan, on_step = sorted_out(options)
        return Reading(self, checked, plan).text(text, voice).begin_short().sound(on_step, 1)

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
        with self.pipeline.on_device(stage) as module:
            loaded: nn.Module = module
        return loaded

    def describe(self, stage: str | None = None) -> str:
        """Where and how this Bark runs or, if one is named, which fast paths a stage has."""
        how = self.pipeline.choice
        return fast.describe(self.model(stage), how) if stage else str(how)

    def save(self, directory: str | os.PathLike[str], voices: Sequence[str] | None = None) -> None:
        """Write everything as one directory in our layout, whole or not at all.

        In float32 stages are written as they are now, so that what was done to a `model` is kept;
        in another precision as they were opened. `voices` names those to take along; None is all.

        Raises:
            FileExistsError: the directory has files in it. FileNotFoundError: the model has gone.
        """
        checkpoint = self.checkpoint()
        states: dict[str, State] = dict(checkpoint.states)
        for stage in self.pipeline.built if self.precision == "float32" else ():
            states[stage] = self.pipeline.module(stage).state_dict()
        save_checkpoint(dataclasses.replace(checkpoint, states=states), directory, voices)
