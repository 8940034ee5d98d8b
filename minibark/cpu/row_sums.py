"""A key/value cache for CPUs, whose attention is two sums of weighted rows.

For one new position, torch's attention and its batched products are bound by arithmetic on a CPU:
they read a cache at 12 GB/s where the memory gives 30. `torch.embedding_bag`, which adds up rows of
a table, each times a weight, is as fast as the memory. So both products are written as such sums:

    scores[t] = sum_d q[d] K[d, t]      rows: K's dimensions d, CHUNK positions t each
    out       = sum_t p[t] V[t]         rows: V's positions t

For the first, keys are kept transposed, in chunks of positions so that few beyond a row's length
are read. All rows of a batch lie in one table, and each sum is one call for all of them. The scores
of a row have a column for each position:

    full chunks, as many as the longest row has | the newest chunk, as far as the fullest goes

A column that a row has no position for is hidden, and stands for its position 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model import GPT, grow

Array = npt.NDArray[np.int64]

# Positions in a row of keys. A multiple of what torch adds up side by side, so that a row gets the
# same numbers, bit for bit, whatever hidden columns the rows beside it give it.
CHUNK = 64


def sums_of(rows: Array) -> list[Tensor]:
    """Rows (..., n) of a table, one sum after the other, and where in them each sum begins."""
    n_sums = math.prod(rows.shape[:-1])
    begins = np.arange(n_sums) * rows.shape[-1]
    return [torch.from_numpy(rows.reshape(-1)), torch.from_numpy(begins)]


def attend_by_sums(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], operands: list[Tensor], n_columns: int
) -> Tensor:
    """Write k and v, and what q sees, all (B, H, 1, D); also as TorchScript.

    Args:
        q: of a step, as k and v.
        k: new keys.
        v: new values.
        tables: of a layer, one of `RowSumCache.layers`.
        operands: of the step, those of `RowSumCache`.
        n_columns: of the scores.
    """
    keys, values = tables
    value_rows, value_begins, new_values, hidden, key_rows, key_begins, new_keys = operands
    n_rows, n_heads, size = q.size(0), q.size(1), q.size(3)
    keys.put_(new_keys, k)
    values.index_copy_(0, new_values, v.reshape(-1, size))
    n_chunks = len(key_begins) // (n_rows * n_heads)
    weights = (q * size**-0.5).expand(-1, -1, n_chunks, -1).reshape(-1)
    scores = torch.embedding_bag(keys, key_rows, key_begins, False, 0, False, weights)[0]
    scores = scores.view(n_rows, n_heads, -1)[:, :, :n_columns]
    if hidden.numel() > 0:
        scores.masked_fill_(hidden, -torch.inf)
    p = scores.softmax(-1).reshape(-1)
    sums = torch.embedding_bag(values, value_rows, value_begins, False, 0, False, p)[0]
    return sums.view(q.shape)


class RowSumCache:
    """A cache in float32, the same as `model.KVCache` up to the order of sums.

    Attributes:
        places: where in the tables each row lies; a row that leaves makes its place free for the
            next, and nothing is copied.
        lengths: how many positions each row holds.
        tables: keys (n_layer, places, H, chunks, D, CHUNK), values (n_layer, places, H, T, D).
        layers: of each layer, the rows (N, C) of its tables.
        operands: of the newest step: of values the rows that are added up, where sums begin, where
            new ones go, and what is hidden, which may be empty; of keys the first three.
        n_columns: of its scores.
    """

    attention: Callable[..., Tensor] = staticmethod(attend_by_sums)

    def __init__(self, model: GPT, batch_size: int) -> None:
        config = model.config
        self.n_layer, self.n_head, self.head_size = config.n_layer, config.n_head, config.head_size
        self.block_size, self.chunk = config.block_size, CHUNK
        self.n_chunks = -(-config.block_size // CHUNK)
        self.places: list[int] = []
        self.lengths: list[int] = []
        self.tables = self.new_tables(0)
        self.operands, self.n_columns = list[Tensor](), 0
        self._seen: tuple[int, ...] = ()
        self.keep([], batch_size)

    def write_prompt(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Cache`."""
        n_rows, _, n_positions, _ = k.shape
        for b, place in enumerate(self.places[row : row + n_rows]):
            self.write(layer, place, k[b], v[b])
        self.lengths[row : row + n_rows] = [n_positions] * n_rows

    def begin_step(self) -> Tensor:
        """See `Cache`."""
        newest = np.array(grow(self.lengths, self.block_size))
        self.lay_out(newest)
        return torch.from_numpy(newest)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Cache`."""
        return self.attention(q, k, v, self.layers[layer], self.operands, self.n_columns)

    def begin_many(self, n: int) -> Tensor:
        """Make room for n positions more in every row; (B, n) int64, which. ValueError: full."""
        if max(self.lengths) + n > self.block_size:
            raise ValueError(f"the cache has {self.block_size} positions, {n} more are asked for")
        positions = torch.tensor(self.lengths)[:, None] + torch.arange(n)
        self.lengths = [length + n for length in self.lengths]
        return positions

    def attend_many(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attend` for the positions of `begin_many`, (B, H, n, D): each sees none behind it."""
        rows = zip(self.places, self.lengths, q, k, v, strict=True)
        return torch.stack([self._attend_row(layer, *row) for row in rows])

    def _attend_row(
        self, layer: int, place: int, last: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """The same of one row, (H, n, D), whose new positions end at `last`."""
        first, n_chunks = last - q.shape[1], -(-last // self.chunk)
        keys, values = (table[layer, place] for table in self.tables)
        values[:, first:last] = v
        for chunk in range(first // self.chunk, n_chunks):
            begin = chunk * self.chunk
            new = slice(max(first, begin), min(last, begin + self.chunk))
            own, given = (slice(new.start - x, new.stop - x) for x in (begin, first))
            keys[:, chunk, :, own] = k[:, given].mT
        scores = (q * q.shape[-1] ** -0.5)[:, None] @ keys[:, :n_chunks]  # (H, F, n, CHUNK)
        scores = scores.transpose(1, 2).flatten(2)[:, :, :last]
        unseen = torch.full_like(scores[0], -torch.inf).triu_(first + 1)
        return torch.bmm((scores + unseen).softmax(-1), values[:, :last])

    def take_back(self, n: int) -> None:
        """Forget the last n positions of every row."""
        self.lengths = [length - n for length in self.lengths]

    def n_ahead(self) -> int:
        """How many steps may be begun before what the first of them writes is there."""
        return self.block_size

    def keep(self, rows: list[int], n_more: int = 0) -> None:
        """See `Cache`."""
        self.places = [self.places[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows] + [0] * n_more
        n_places = self.tables[0].shape[1]
        if n_places < len(self.lengths):
            # Twice as many: what is never written takes no memory, and growing copies.
            old, self.tables = self.tables, self.new_tables(max(len(self.lengths), 2 * n_places))
            for before, table in zip(old, self.tables, strict=True):
                used = -(-max(self.lengths) // -(-self.block_size // table.shape[3]))
                table[:, :n_places, :, :used] = before[:, :, :, :used]
        flat = [table.view(self.n_layer, -1, table.shape[-1]) for table in self.tables]
        self.layers, self._seen = [list(layer) for layer in zip(*flat, strict=True)], ()
        free = set(range(self.tables[0].shape[1])) - set(self.places)
        self.places += sorted(free)[:n_more]

    def new_tables(self, n_places: int) -> list[Tensor]:
        """Empty tables for so many rows; dimension 3 goes over positions, or pieces of them."""
        heads = self.n_layer, n_places, self.n_head
        keys = torch.empty(*heads, self.n_chunks, self.head_size, self.chunk, dtype=torch.float32)
        return [keys, torch.empty(*heads, self.block_size, self.head_size, dtype=torch.float32)]

    def write(self, layer: int, place: int, k: Tensor, v: Tensor) -> None:
        """Write one row's prompt, keys and values (H, T, D)."""
        keys, values = self.tables
        for chunk, part in enumerate(torch.split(k, self.chunk, 1)):
            keys[layer, place, :, chunk, :, : part.shape[1]] = part.mT
        values[layer, place, :, : v.shape[1]] = v

    def lay_out(self, newest: Array) -> None:
        """Find what a step reads, in the order of its columns; newest (B,): the new positions."""
        first = newest // self.chunk * self.chunk  # positions of the newest chunks
        end, fullest = first.max(), (newest - first).max() + 1
        self.n_columns = int(end + fullest)
        heads = np.array(self.places)[:, None] * self.n_head + np.arange(self.n_head)
        columns = np.arange(self.n_columns)
        positions = np.where(columns < end, columns, columns - end + first[:, None])
        hidden = (positions > newest[:, None]) | ((columns < end) & (columns >= first[:, None]))
        positions[hidden] = 0
        rows = heads[..., None] * self.block_size + positions[:, None]
        new_values = torch.from_numpy(heads * self.block_size + newest[:, None]).view(-1)
        is_hidden = torch.from_numpy(hidden[:, None] if hidden.any() else hidden[:0])
        if (seen := (*self.places, *first)) != self._seen:  # a few steps in a hundred
            full = positions[:, : end : self.chunk] // self.chunk
            self._keys, self._new_keys = self.find_keys(heads, full, first)
            self._seen = seen
        new_keys = torch.from_numpy(self._new_keys + (newest - first)[:, None, None])
        self.operands = [*sums_of(rows), new_values, is_hidden, *self._keys, new_keys]

    def find_keys(self, heads: Array, full: Array, first: Array) -> tuple[list[Tensor], Array]:
        """Find what a step reads of keys, which is the same until a chunk is full.

        Args:
            heads: (B, H) among all.
            full: (B, F) full chunks of each row.
            first: (B,) first position of its newest chunk.

        Returns:
            sums: their operands.
            newest: (B, H, D) where the newest chunks begin in their table.
        """
        chunks = np.concatenate((full, first[:, None] // self.chunk), 1)
        rows = self.rows_of_keys(heads, chunks, self.n_chunks)
        return sums_of(rows), rows[:, :, -1] * self.chunk

    def rows_of_keys(self, heads: Array, chunks: Array, n_chunks: int) -> Array:
        """Rows (B, H, n, D) of a table with `n_chunks` a head that hold chunks (B, n)."""
        of_heads = heads[..., None] * n_chunks + chunks[:, None]
        return of_heads[..., None] * self.head_size + np.arange(self.head_size)
