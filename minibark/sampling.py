"""Logits -> token: top-p and top-k at temperature 1, then temperature, then one draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OnStep = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all) as a loop advances; equal numbers mark its end."""


@dataclass(frozen=True)
class Sampling:
    """How to choose a token.

    Attributes:
        temperature: divides the logits; 0 or None is greedy.
        top_k: keep the k likeliest tokens, ties at the k-th value included; 0 or None keeps all.
        top_p: keep the likeliest tokens whose probabilities first exceed p; None keeps all.
    """

    temperature: float | None = 0.7
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        t, k, p = self.temperature, self.top_k, self.top_p
        if t is not None and not 0 <= t < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {t}")
        if k is not None and (k < 0 or k != int(k)):
            raise ValueError(f"top_k must be 0 (off) or a positive whole number, got {k}")
        if p is not None and not 0 < p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {p}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.temperature


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that a token is drawn from.

    The order is the reference's: top-p and top-k look at the logits before temperature does.

    Args:
        logits: (B, V) float32.
        sampling: what to keep and how sharply.

    Returns:
        (B, V) float32, rows summing to 1; greedy gives a single 1.

    Source: suno-ai/bark, bark/generation.py, generate_text_semantic.
    """
    temperature = sampling.temperature
    if not temperature:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    if sampling.top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        cumulative = ordered.softmax(-1).cumsum(-1)
        drop = (cumulative > sampling.top_p).roll(1, -1)  # the first above the limit stays
        drop[..., 0] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return (logits / temperature).softmax(-1)


def draw(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw from each distribution, the same as `torch.multinomial(probs, 1)` with that stream.

    The largest of p / Exponential(1) is a draw from p, and needs no answer from the device.

    Args:
        probs: (..., V) float32; they need not sum to 1.
        generator: random stream; None is torch's own.

    Returns:
        (...) int64.
    """
    noise = torch.empty_like(probs, memory_format=torch.contiguous_format)
    return (probs / noise.exponential_(generator=generator)).argmax(-1)


def choose(probs: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The token of each distribution: the likeliest if greedy, else a draw. (..., V) -> (...)."""
    return probs.argmax(-1) if sampling.greedy else draw(probs, generator)


class RandomStreams:
    """The random streams of a batch's rows.

    A row draws from its own stream only, and only while it needs a token, so that it gets what it
    gets alone. Draws can be made ahead of the steps that use them; what turns out not to be needed
    is given back.

    Attributes:
        shared: whether rows draw from one stream by turns, so that nothing can be given back.
    """

    def __init__(self, generators: Sequence[torch.Generator | None], device: torch.device) -> None:
        """One stream per row; None is torch's own on that device."""
        self._generators = [_own_stream(device) if g is None else g for g in generators]
        self.shared = len({id(g) for g in self._generators}) < len(self._generators)
        self._before: list[Tensor] = []
        self._made = (0, 0)  # draws ahead, and numbers in each

    def choose(self, probs: Tensor, sampling: Sampling, active: Sequence[bool]) -> Tensor:
        """The tokens (B,) of distributions (B, V); 0 for a row that is not active."""
        rows = [
            choose(probs[row], sampling, generator)
            if active[row]
            else torch.zeros((), dtype=torch.int64, device=probs.device)
            for row, generator in enumerate(self._generators)
        ]
        return torch.stack(rows)

    def start_ahead(self, n_steps: int, n_numbers: int) -> None:
        """Note where the streams are, before `draw_next` is called for so many steps."""
        self._before = [generator.get_state() for generator in self._generators]
        self._made = (n_steps, n_numbers)

    def draw_next(self, noise: Tensor, active: Sequence[bool]) -> None:
        """Fill noise (B, V) with what `draw` would divide by in the next step.

        Where a row is not active nothing is drawn and the noise is 1.
        """
        for row, generator in enumerate(self._generators):
            if active[row]:
                noise[row].exponential_(generator=generator)
            else:
                noise[row].fill_(1)

    def give_back(self, row: int, n_draws: int) -> None:
        """Undo the last draws that were made ahead for one row."""
        if not n_draws or not self._before:
            return
        assert not self.shared
        generator, (n_made, n_numbers) = self._generators[row], self._made
        generator.set_state(self._before[row])
        again = torch.empty(n_numbers, device=generator.device)
        for _ in range(n_made - n_draws):
            again.exponential_(generator=generator)


def _own_stream(device: torch.device) -> torch.Generator:
    """The stream that torch itself draws from on a device."""
    if device.type == "cuda":
        current = torch.cuda.current_device()  # which also makes the streams
        return torch.cuda.default_generators[current if device.index is None else device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


def check_finite(logits: Tensor, stage: str) -> None:
    """Refuse logits that no token can be drawn from.

    Raises:
        FloatingPointError: NaN or infinity among the logits.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError(
            f"the {stage} model gives NaN or infinity: the checkpoint is damaged, or its values do "
            "not fit this precision (try precision='bfloat16' or 'float32')"
        )
