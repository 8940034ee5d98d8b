"""A checkpoint once it is open: its configuration, checked tensors, vocabulary and voices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..config import STAGES, BarkConfig
from ..tokenizer import Tokenizer
from .hub import RANDOM
from .rows import SCALE, floats_state
from .shapes import RandomStates
from .tensors import State
from .voices import Voices


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found and checked; tensors are memory-mapped where possible.

    Attributes:
        name: what it was opened as.
        config: shapes and constants.
        states: stage -> parameter name -> tensor, in the names of our modules; a transformer's
            matrix NAME may be int8, with NAME_scale beside it.
        tokenizer: its vocabulary.
        voices: its voices.
        normalize: how far texts are made plain for it (`minibark.text.LEVELS`), unless told.
    """

    name: str
    config: BarkConfig
    states: Mapping[str, State]
    tokenizer: Tokenizer
    voices: Voices
    normalize: str = "off"

    def parameters(self, stage: str, dtype: torch.dtype) -> State:
        """One stage's tensors in a floating-point dtype; the codec's are float32 always."""
        return floats_state(self.states[stage], torch.float32 if stage == "codec" else dtype)

    def n_parameters(self, stage: str) -> int:
        """How many numbers a stage has, scales of int8 rows not counted."""
        state = self.states[stage]
        return sum(tensor.numel() for name, tensor in state.items() if not name.endswith(SCALE))

    def checksum(self) -> str:
        """SHA-256, in hex, of all that decides what is said: numbers, weights and vocabulary.

        Names, voices and the layout are not in it. It reads all weights once.
        """
        head = {"config": self.config.to_dict(), "normalize": self.normalize}
        total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        total.update(json.dumps(self.tokenizer.vocab).encode())
        for stage in STAGES:
            for name, tensor in sorted(self.states[stage].items()):
                total.update(f"{stage} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                total.update(values.numpy().data)
        return total.hexdigest()


class Reopening(dict[str, State]):
    """A checkpoint's states by stage; one that has been let go is read again when asked for."""

    def __init__(self, checkpoint: Checkpoint, reopen: Callable[[], Checkpoint]) -> None:
        is_made = isinstance(checkpoint.states, RandomStates)
        super().__init__({} if is_made else checkpoint.states)
        self.reopen = reopen

    def __missing__(self, stage: str) -> State:
        return self.reopen().states[stage]


def random_checkpoint(
    config: BarkConfig, tokenizer: Tokenizer, voices: Voices, seed: int = 0
) -> Checkpoint:
    """A checkpoint with random weights, decided by the seed."""
    return Checkpoint(RANDOM, config, RandomStates(config, seed), tokenizer, voices)
