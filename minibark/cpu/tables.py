"""Embedding tables in a precision other than float32 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint.mapped import mapped_alone
from ..checkpoint.rows import dequantize_rows, floats_of, rows_of
from .packed import Packed

BIG = 2**25  # numbers in a table from which it stays in its file: the released text tables


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
        self.dtype = dtype
        own = mapped_alone(weight) if weight.numel() > BIG else None
        self.is_mapped = own is not None
        if own is None:
            own, scale = self._reduced(weight, scale)
            own = own.clone() if own is weight else own
        self.weight, self.scale = own, None if scale is None else scale.clone()

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        flat = ids.flatten()
        rows, scale = self.weight[flat], None if self.scale is None else self.scale[flat]
        if self.is_mapped:
            rows, scale = self._reduced(rows, scale)
        rows = rows.float() if scale is None else dequantize_rows(rows, scale)
        return rows.view(*ids.shape, rows.shape[1])

    def _reduced(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.dtype is not None:
            return floats_of(rows, scale).to(self.dtype, copy=True), None
        return rows_of(rows, scale)
