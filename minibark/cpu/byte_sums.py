"""The cache of row sums in bytes: a quarter of what float32 reads, for reduced precisions.

Each row of a table is 8-bit numbers with a scale and an offset of its own: of values, a position's
of one head; of keys, a dimension's over a full chunk of positions. The newest chunk's keys are kept
in float32 until it is full.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .row_sums import Array, RowSumCache, Sums

N_EXTRA = 8  # bytes of a row's scale and offset, float32 each, behind its numbers


class ByteSums(Sums):
    """Sums of weighted rows of bytes."""

    def __call__(self, layer: int, weights: Tensor) -> Tensor:
        """Sums (n_sums, C) in float32 for weights, one for each of `rows`."""
        table, weights = self.tables[layer], weights.reshape(-1)
        out: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            table, self.rows, self.begins, False, 0, False, weights
        )
        return out


class ByteCache(RowSumCache):
    """`RowSumCache` in bytes.

    Attributes:
        tables: as there, with `N_EXTRA` bytes more a row, and behind them the newest chunks' keys
            (n_layer, places, H, 1, D, CHUNK) in float32.
    """

    sums = ByteSums

    def new_tables(self, n_places: int) -> list[Tensor]:
        """See `RowSumCache`."""
        heads, size = (self.n_layer, n_places, self.n_head), self.head_size
        keys = torch.empty(*heads, self.n_chunks, size, self.chunk + N_EXTRA, dtype=torch.uint8)
        values = torch.empty(*heads, self.block_size, size + N_EXTRA, dtype=torch.uint8)
        return [keys, values, torch.empty(*heads, 1, size, self.chunk, dtype=torch.float32)]

    def write(self, layer: int, place: int, k: Tensor, v: Tensor) -> None:
        """See `RowSumCache`."""
        keys, values, newest = self.tables
        values[layer, place, :, : v.shape[1]] = to_bytes(v)
        n_full = (k.shape[1] - 1) // self.chunk  # the newest, be it full, is left to the next step
        full, rest = k[:, : n_full * self.chunk], k[:, n_full * self.chunk :]
        if n_full:
            keys[layer, place, :, :n_full] = to_bytes(
                full.view(self.n_head, n_full, self.chunk, -1).mT
            )
        newest[layer, place, :, 0, :, : rest.shape[1]] = rest.mT

    def lay_out(self, newest: Array) -> None:
        """See `RowSumCache`; chunks that have just been filled become bytes."""
        keys, _, parts = self.tables
        for place, position in zip(self.places, newest.tolist(), strict=True):
            if position and position % self.chunk == 0:
                keys[:, place, :, position // self.chunk - 1] = to_bytes(parts[:, place, :, 0])
        super().lay_out(newest)

    def find_keys(self, heads: Array, full: Array, first: Array) -> Array:
        """See `RowSumCache`."""
        keys, _, parts = self.tables
        self.keys = ByteSums(keys, self.rows_of_keys(heads, full, self.n_chunks))
        rows = self.rows_of_keys(heads, np.zeros_like(heads[:, :1]), 1)
        self.newest = Sums(parts, rows)
        return rows[:, :, 0] * self.chunk

    def operands(self, layer: int) -> list[Tensor]:
        """See `RowSumCache`; and the newest chunks' table, rows and begins."""
        newest = self.newest
        return [*super().operands(layer), newest.tables[layer], newest.rows, newest.begins]

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """See `RowSumCache`."""
        self.newest.tables[layer].put_(self.new_keys, k)
        self.values.tables[layer].index_copy_(0, self.new_values, to_bytes(v).flatten(0, 2))

    def scores(self, layer: int, q: Tensor) -> Tensor:
        """See `RowSumCache`."""
        shape = *q.shape[:2], -1
        newest = self.newest(layer, q).view(shape)
        if not self.keys.n_sums:
            return newest[..., : self.n_columns]
        full = super().scores(layer, q)
        return torch.cat((full, newest[..., : self.n_columns - full.shape[-1]]), -1)


def to_bytes(rows: Tensor) -> Tensor:
    """Rows (..., C) as bytes (..., C + N_EXTRA)."""
    flat = rows.reshape(-1, rows.shape[-1])
    packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(flat)
    return packed.view(*rows.shape[:-1], -1)
