"""int4 in groups on a CPU: w[n, k] ~ scale[n, g] * (q[n, k] - 8) + zero[n, g], q in [0, 15].

A group g = k // 32 of columns has a scale and a zero of its own in each row. A few positions are
multiplied by torch's operator, which reads 4 bits a number but takes five times as long for each as
an int8 product. For many, the matrix is expanded to int8 for that one call, or is there in int8
beside it (`Int4Twice`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.rows import quantize_rows
from . import abilities
from .int8 import MANY_ROWS, Int8ManyRows, Twice, multiply_int8
from .packed import Packed

GROUP = 32  # columns that share a scale and a zero
# The operator's own layout, as it is on a processor with AVX-512: blocks of 64 outputs, each
# (K, 32) bytes; a low nibble is of the block's first 32, a high one of its others.
BLOCK = 64


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as 4-bit numbers in groups of `GROUP` columns.

    Of several ranges for each group, the one with the least squared error is taken: leaving out
    the extremes often costs less than a coarse step for all. Each range is fitted to its numbers
    once more by least squares.

    Returns:
        q: (N, K) int32 in [0, 15].
        scale_and_zero: (N, K / GROUP, 2) bfloat16.

    Raises:
        ValueError: K is not a multiple of `GROUP`.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"int4 needs a multiple of {GROUP} columns, got {weight.shape[1]}")
    n, k = weight.shape
    q = torch.empty(n, k, dtype=torch.int32)
    scale_and_zero = torch.empty(n, k // GROUP, 2, dtype=torch.bfloat16)
    # In parts, so that what is only needed on the way stays small and in the cache.
    for first in range(0, n, 128):
        rows = slice(first, first + 128)
        q[rows], scale_and_zero[rows] = _quantize_groups(weight[rows])
    return q, scale_and_zero


def _quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    q, scale, zero = torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low)
    mean = groups.mean(-1, keepdim=True)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        s = ((high - low) * (share / 15)).clamp(min=1e-12).bfloat16().float()
        z = ((high + low + s) / 2).bfloat16().float()
        for _ in range(2):
            tried = ((groups - z) / s).round_().add_(8).clamp_(0, 15)
            error = ((tried - 8) * s + z - groups).square().sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            q, scale, zero = (
                torch.where(better, new, old) for new, old in ((tried, q), (s, scale), (z, zero))
            )
            centred = tried - tried.mean(-1, keepdim=True)
            s = (centred * groups).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True)
            s = s.nan_to_num().clamp(min=1e-12).bfloat16().float()
            z = (mean - (tried.mean(-1, keepdim=True) - 8) * s).bfloat16().float()
    return q.flatten(1).int(), torch.cat((scale, zero), dim=-1).bfloat16()


def dequantize_groups(q: Tensor, scale_and_zero: Tensor) -> Tensor:
    """The float32 matrix (N, K) that `quantize_groups`' answer stands for."""
    scale, zero = scale_and_zero.float().unbind(-1)
    groups = q.view(len(q), -1, GROUP).float() - 8
    floats: Tensor = groups * scale[..., None] + zero[..., None]
    return floats.flatten(1)


def _pack_nibbles(q: Tensor) -> Tensor:
    """Numbers (N, K) in [0, 15] as bytes (N, K / 2)."""
    return (q[:, ::2] * 16 + q[:, 1::2]).to(torch.uint8)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """The numbers (N, K) of `_pack_nibbles`' bytes."""
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1)


class Int4Linear(Packed):
    """A Linear with int4 weights in groups: x (..., K) -> (..., N) float32.

    The operator takes and gives bfloat16. With `widen` False its answer is left so, where what
    follows rounds it to that anyway or adds it to float32: the same numbers with fewer calls.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, widen: bool = True) -> None:
        """From a weight (N, K) of any floating type and a bias (N,)."""
        super().__init__()
        self.widen = widen
        q, scale_and_zero = quantize_groups(weight)
        self.n_out = len(q)
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.row_scale: Tensor | None = None  # of the int8 matrix for many rows, if there is one
        self.fast = abilities.has_int4_linear() and len(q) % 16 == 0
        if self.fast:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 2)
            self.scale_and_zero = scale_and_zero.transpose(0, 1).contiguous()  # (K / GROUP, N, 2)
            if len(q) % BLOCK == 0 and is_expanded():
                scale, zero = scale_and_zero.float().unbind(-1)  # (N, K / GROUP)
                ends = torch.cat((zero - 8 * scale, zero + 7 * scale), dim=1)
                self.row_scale = (ends.abs().amax(dim=1) / 127).clamp(min=1e-12)
        else:
            self.packed = _pack_nibbles(q)
            self.scale_and_zero = scale_and_zero

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        if not self.fast:
            weight = dequantize_groups(_unpack_nibbles(self.packed), self.scale_and_zero)
            return F.linear(x.float(), weight, self.bias)
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if self.row_scale is not None and len(rows) >= MANY_ROWS:
            out = multiply_int8(rows.float(), self._to_int8(self.row_scale), self.row_scale)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.bfloat16(), self.packed, GROUP, self.scale_and_zero
            )
        out = out if x.ndim == 2 else out.view(*x.shape[:-1], self.n_out)
        if self.bias is not None:
            return out.float().add_(self.bias)
        return out.float() if self.widen else out

    def _to_int8(self, row_scale: Tensor) -> Tensor:
        """The matrix, transposed (K, N), as int8 steps of each row's scale."""
        # In 256ths of a step, which fit int16, and half a step more for rounding.
        scale, zero = (self.scale_and_zero.float() / row_scale[:, None] * 256).unbind(-1)
        zero = zero - 8 * scale + 128
        q = _unpack_blocks(self.packed).view(len(scale), GROUP, -1).to(torch.int16)
        zero, scale = (t.round().to(torch.int16)[:, None] for t in (zero, scale))
        torch.addcmul(zero, scale, q, out=q)
        return q.bitwise_right_shift_(8).to(torch.int8).flatten(0, 1)


class Int4Twice(Twice):
    """int4 weights for few rows, int8 for many, both of the same numbers."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, widen: bool = True, **options: Any
    ) -> None:
        """As `Int4Linear`, which few rows are multiplied by; the options are `Int8ManyRows`'."""
        super().__init__(
            Int4Linear(weight, bias, widen=widen),
            Int8ManyRows(*quantize_rows(weight.float()), bias, **options),
        )


def _unpack_blocks(packed: Tensor) -> Tensor:
    """The numbers, transposed (K, N), of the operator's (N, K / 2) bytes."""
    k = 2 * packed.shape[1]
    blocks = packed.view(-1, k, BLOCK // 2).transpose(0, 1).contiguous()  # (K, N / BLOCK, 32)
    return torch.cat((blocks & 15, blocks >> 4), dim=2).view(k, -1)


def is_expanded() -> bool:
    """Whether many rows are multiplied in int8 on this machine, if outputs come in whole blocks."""
    return abilities.has_int4_linear() and abilities.has_int8_matmul() and has_blocks()


@functools.cache
def has_blocks() -> bool:
    """Whether the operator keeps its numbers as `_unpack_blocks` reads them: processors differ."""
    q = torch.arange(3 * BLOCK * GROUP, dtype=torch.int32).view(3 * BLOCK, GROUP) * 7 % 31 % 16
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 2)
    return torch.equal(_unpack_blocks(packed).T, q.to(torch.uint8))
