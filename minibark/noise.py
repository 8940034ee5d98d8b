"""Draws from Exponential(1), by which probabilities are divided when a token is drawn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def fill_exponential(noise: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill noise (...) with draws from Exponential(1), those of `Tensor.exponential_`; returns it.

    On a CPU torch makes one number after the other, each with a logarithm of its own. Here all
    uniform numbers that they are made of come first and then all logarithms, which takes a quarter
    of the time and leaves the stream where torch leaves it.

    Args:
        noise: of any floating type and device.
        generator: random stream of that device; None is torch's own.
    """
    is_plain = noise.dtype == torch.float32 and noise.is_contiguous()
    if is_plain and noise.device.type == "cpu" and _is_of_logarithms():
        return _logarithms(noise, generator)
    return noise.exponential_(generator=generator)


def _logarithms(noise: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.empty(noise.shape, dtype=torch.float64).uniform_(generator=generator)
    return noise.copy_(torch.log1p(uniform.neg_(), out=uniform).neg_())


@functools.cache
def _is_of_logarithms() -> bool:
    """Whether this torch makes the same numbers: one with MKL has another way for Intel's."""
    streams = [torch.Generator().manual_seed(7) for _ in range(2)]
    made = [torch.empty(4099, dtype=torch.float32) for _ in streams]
    made[0].exponential_(generator=streams[0])
    _logarithms(made[1], streams[1])
    return torch.equal(*made) and streams[0].get_state().equal(streams[1].get_state())
