"""The cache of row sums in bytes: a quarter of what float32 reads, for reduced precisions.

Each row of a table is 8-bit numbers with a scale and an offset of its own: of values, a position's
of one head; of keys, a dimension's over a full chunk of positions. The newest chunk's keys are kept
in float32 until it is full.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .row_sums import Array, RowSumCache, sums_of

N_EXTRA = 8  # bytes of a row's scale and offset, float32 each, behind its numbers


def to_bytes(rows: Tensor) -> Tensor:
    """Rows (..., C) as bytes (..., C + N_EXTRA)."""
    flat = rows.reshape(-1, rows.shape[-1]).float()
    packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(flat)
    return packed.view(*rows.shape[:-1], -1)


def attend_by_bytes(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], operands: list[Tensor], n_columns: int
) -> Tensor:
    """As `attend_by_sums`, with the tables and operands of a `ByteCache`."""
    keys, values, newest = tables
    value_rows, value_begins, new_values, hidden = operands[:4]
    key_rows, key_begins, newest_rows, newest_begins, new_keys = operands[4:]
    n_rows, n_heads, size = q.size(0), q.size(1), q.size(3)
    newest.put_(new_keys, k)
    new = torch.ops.quantized.embedding_bag_byte_prepack(v.reshape(-1, size))
    values[new_values] = new  # not `index_copy_`, which takes byte after byte
    scaled = q * size**-0.5
    weights = scaled.reshape(-1)
    sums = torch.embedding_bag(newest, newest_rows, newest_begins, False, 0, False, weights)[0]
    scores = sums.view(n_rows, n_heads, -1)
    if len(key_begins) > 0:
        n_chunks = len(key_begins) // (n_rows * n_heads)
        weights = scaled.expand(-1, -1, n_chunks, -1).reshape(-1)
        full = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            keys, key_rows, key_begins, False, 0, False, weights
        ).view(n_rows, n_heads, -1)
        scores = torch.cat([full, scores[:, :, : n_columns - full.size(-1)]], -1)
    else:
        scores = scores[:, :, :n_columns]
    if hidden.numel() > 0:
        scores.masked_fill_(hidden, -torch.inf)
    out: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        values, value_rows, value_begins, False, 0, False, scores.softmax(-1).reshape(-1)
    )
    return out.view(q.shape)


class ByteCache(RowSumCache):
    """`RowSumCache` in bytes.

    Attributes:
        tables: as there, with `N_EXTRA` bytes more a row, and behind them the newest chunks' keys
            (n_layer, places, H, 1, D, CHUNK) in float32.
        operands: as there, with the newest chunks' rows and begins behind those of full ones.
    """

    attention = staticmethod(attend_by_bytes)

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

    def n_ahead(self) -> int:
        """See `RowSumCache`: what fills a chunk must be there when it becomes bytes."""
        return min(self.chunk - length % self.chunk for length in self.lengths)

    def find_keys(self, heads: Array, full: Array, first: Array) -> tuple[list[Tensor], Array]:
        """See `RowSumCache`."""
        rows = self.rows_of_keys(heads, np.zeros_like(heads[:, :1]), 1)
        sums = [*sums_of(self.rows_of_keys(heads, full, self.n_chunks)), *sums_of(rows)]
        return sums, rows[:, :, 0] * self.chunk
