"""A key/value cache for CPUs, whose attention is two sums of weighted rows.

For one new position, torch's attention and its batched products are bound by arithmetic on a CPU:
they read a cache at 12 GB/s where the memory gives 30. `torch.embedding_bag`, which adds up rows of
a table, each times a weight, is as fast as the memory. So both products are written as such sums:

    scores[t] = sum_d q[d] K[d, t]      rows: K's dimensions d, CHUNK positions t each
    out       = sum_t p[t] V[t]         rows: V's positions t

For the first, keys are kept transposed, in chunks of positions so that few beyond a row's length
are read. float32, and the same as `model.KVCache` up to the order of sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..model import GPT, Cache, KVCache, grow

CHUNK = 128  # positions in a row of keys
LEAST_EMBD = 512  # channels; narrower caches are read in less time than the extra calls take


def new_cache(model: GPT, batch_size: int) -> Cache:
    """An empty cache, of the kind that is faster for the model where it is."""
    return (RowSumCache if pays(model) else KVCache)(model, batch_size)


def pays(model: GPT) -> bool:
    """Whether sums of rows are the faster way for a model.

    That is on a CPU, in float32, if torch has FBGEMM's sums of rows.
    """
    weight = model.transformer.wpe.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[1] >= LEAST_EMBD
        and "fbgemm" in torch.backends.quantized.supported_engines
    )


class RowSumCache:
    """A cache in float32, of all layers together: what a step needs of each is found at once.

    Attributes:
        rows: keys (n_layer, H, chunks, D, CHUNK) and values (n_layer, H, block_size, D) of each;
            a row that leaves makes its place free for the next, and nothing is copied.
        lengths: how many positions each row holds.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        config = model.config
        n_layer, n_head, head_size = config.n_layer, config.n_head, config.head_size
        n_chunks = -(-config.block_size // CHUNK)
        self.block_size = config.block_size
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.lengths: list[int] = []
        self._free: list[tuple[Tensor, Tensor]] = []
        self._shapes = (
            (n_layer, n_head, n_chunks, head_size, CHUNK),
            (n_layer, n_head, config.block_size, head_size),
        )
        # Where rows and sums of rows begin, for whole buffers; a step takes parts of these.
        self._key_rows = torch.arange(n_head * n_chunks * head_size).view(n_head, n_chunks, -1)
        self._value_rows = torch.arange(n_head * config.block_size).view(n_head, -1)
        self._bags = torch.arange(n_head * n_chunks)
        self._scale = torch.full((n_chunks, 1), head_size**-0.5, dtype=torch.float32)
        self._steps: list[_Step] = []
        self.keep([], batch_size)

    def write_prompt(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Cache`."""
        n_positions = k.shape[2]
        for b, (keys, values) in enumerate(self.rows[row : row + len(k)]):
            for chunk, first in enumerate(range(0, n_positions, CHUNK)):
                part = k[b, :, first : first + CHUNK].mT  # (H, D, at most CHUNK)
                keys[layer, :, chunk, :, : part.shape[-1]] = part
            values[layer, :, :n_positions] = v[b]
        self.lengths[row : row + len(k)] = [n_positions] * len(k)

    def begin_step(self) -> Tensor:
        """See `Cache`."""
        newest = grow(self.lengths, self.block_size)
        self._steps = [
            self._step(*row, length) for row, length in zip(self.rows, self.lengths, strict=True)
        ]
        return torch.tensor(newest)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Cache`."""
        rows = [step.attend(layer, q[b], k[b], v[b]) for b, step in enumerate(self._steps)]
        return torch.stack(rows).unsqueeze(2)

    def keep(self, rows: list[int], n_more: int = 0) -> None:
        """See `Cache`."""
        self._free += [row for place, row in enumerate(self.rows) if place not in rows]
        self.rows = [self.rows[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows] + [0] * n_more
        self._steps = []
        while len(self.rows) < len(self.lengths):
            keys, values = self._shapes
            new = self._free.pop() if self._free else (_empty(keys), _empty(values))
            self.rows.append(new)

    def _step(self, keys: Tensor, values: Tensor, length: int) -> _Step:
        n_head, head_size = keys.shape[1], keys.shape[3]
        n_chunks, newest = -(-length // CHUNK), length - 1
        return _Step(
            length=length,
            keys=keys.flatten(1, 3).unbind(),
            values=values.flatten(1, 2).unbind(),
            new_keys=keys[:, :, newest // CHUNK, :, newest % CHUNK].unsqueeze(2).unbind(),
            new_values=values[:, :, newest].unsqueeze(2).unbind(),
            key_rows=self._key_rows[:, :n_chunks].reshape(-1),
            key_bags=self._bags[: n_head * n_chunks] * head_size,
            value_rows=self._value_rows[:, :length].reshape(-1),
            value_bags=self._bags[:n_head] * length,
            scale=self._scale[:n_chunks],
        )


class _Step(NamedTuple):
    """What one row's step needs: of each layer the tables and the places of the new position."""

    length: int
    keys: tuple[Tensor, ...]  # (H * chunks * D, CHUNK)
    values: tuple[Tensor, ...]  # (H * block_size, D)
    new_keys: tuple[Tensor, ...]  # (H, 1, D)
    new_values: tuple[Tensor, ...]  # (H, 1, D)
    key_rows: Tensor
    key_bags: Tensor
    value_rows: Tensor
    value_bags: Tensor
    scale: Tensor  # (chunks in use, 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v and attend, all (H, 1, D); (H, D)."""
        self.new_keys[layer].copy_(k)
        self.new_values[layer].copy_(v)
        weights = (q * self.scale).view(-1)  # q again for each chunk
        scores = _sum_rows(self.keys[layer], self.key_rows, self.key_bags, weights)
        p = scores.view(len(q), -1)[:, : self.length].softmax(-1).view(-1)
        return _sum_rows(self.values[layer], self.value_rows, self.value_bags, p)


def _sum_rows(table: Tensor, rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Sums (n, C) of rows of a table (N, C), each times a weight; bags (n,): where sums begin."""
    out: Tensor = torch.embedding_bag(table, rows, bags, False, 0, False, weights)[0]
    return out


def _empty(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)
