"""Logits -> token: top-p and top-k at temperature 1, then temperature, then one draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import fill_exponential

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
    return distribution(logits, sampling.temperature, sampling.top_k, sampling.top_p)


def distribution(
    logits: Tensor, temperature: float | None, top_k: int | None, top_p: float | None
) -> Tensor:
    """What `probabilities` gives for a `Sampling`'s numbers; also as TorchScript."""
    if temperature is None or temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        cumulative = ordered.softmax(-1).cumsum(-1)
        drop = (cumulative > top_p).roll(1, -1)  # the first above the limit stays
        drop[..., 0] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
    if top_k is not None and top_k != 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return (logits / temperature).softmax(-1)


def choose(probs: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The likeliest of each distribution if greedy, else a draw as `torch.multinomial` makes it.

    The largest of p / Exponential(1) is a draw from p, and needs no answer from the device.

    Args:
        probs: (..., V) float32; they need not sum to 1.
        sampling: whether it is greedy.
        generator: random stream; None is torch's own.

    Returns:
        (...) int64.
    """
    if sampling.greedy:
        return probs.argmax(-1)
    noise = torch.empty_like(probs, memory_format=torch.contiguous_format)
    return (probs / fill_exponential(noise, generator)).argmax(-1)


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
