"""Embedding tables in a precision other than float32 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint.mapped import mapped_alone
from ..checkpoint.rows import dequantize_rows, floats_of, quantize_rows, rows_of
from .packed import Packed

BIG = 2**25  # numbers in a table from which it stays in its file: the released text tables


def look_up(ids: Tensor, weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows (n, C) float32 of a table, reduced if they are not yet; also as TorchScript.

    Args:
        ids: (n,).
        weight: (N, C) of any floating type, or int8.
        scale: (N,) of an int8 weight.
        dtype: what they are reduced to: int8, or 16 bits.
    """
    rows = weight[ids]
    if scale is not None:
        rows = dequantize_rows(rows, scale[ids])
    elif dtype == torch.int8:
        q, scales = quantize_rows(rows)
        rows = dequantize_rows(q, scales)
    if dtype != torch.int8:
        rows = rows.to(dtype)
    return rows.float()


class ReducedTable(Packed):
    """An embedding table in int8 rows or in 16 bits: ids (...) -> (..., C) float32.

    A big one, of which an utterance reads some hundred rows of 130,000, stays in the file that it
    is mapped from, if it is, as it is there; rows are reduced when they are looked up. The numbers
    are the same.

    Attributes:
        is_mapped: whether it does.
    """

    def __init__(self, weight: Tensor, scale: Tensor | None, dtype: torch.dtype | None) -> None:
        """From a weight (N, C) of any floating type, or int8 with scales (N,).

        `dtype` is that of 16 bits; None is int8.
        """
        super().__init__()
        self.dtype = dtype or torch.int8
        own = mapped_alone(weight) if weight.numel() > BIG else None
        self.is_mapped = own is not None
        if own is None and dtype is None:
            own, scale = rows_of(weight, scale)
        elif own is None:
            own, scale = floats_of(weight, scale).to(dtype), None
        self.weight = own.clone() if own is weight else own
        self.scale = None if scale is None else scale.clone()

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        rows = look_up(ids.flatten(), self.weight, self.scale, self.dtype)
        return rows.view(*ids.shape, rows.shape[1])
