"""A key/value cache for CPUs, whose attention is two sums of weighted rows.

For one new position, torch's attention and its batched products are bound by arithmetic on a CPU:
they read a cache at 12 GB/s where the memory gives 30. `torch.embedding_bag`, which adds up rows of
a table, each times a weight, is as fast as the memory. So both products are written as such sums:

    scores[t] = sum_d q[d] K[d, t]      rows: K's dimensions d, CHUNK positions t each
    out       = sum_t p[t] V[t]         rows: V's positions t

For the first, keys are kept transposed, in chunks of positions so that few beyond a row's length
are read. float32, and the same as `ops.decode_attention` up to the order of sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import GPTConfig
from .model import GPT, KVCache

CHUNK = 128  # positions in a row of keys
LEAST_EMBD = 512  # channels; narrower caches are read in less time than the extra calls take


def pays(model: GPT) -> bool:
    """Whether this cache is the faster one for a model.

    That is on a CPU, in float32, if torch has FBGEMM's sums of rows.
    """
    weight = model.transformer.wpe.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[1] >= LEAST_EMBD
        and "fbgemm" in torch.backends.quantized.supported_engines
    )


class RowSumKVCache(KVCache):
    """Keys (B, H, chunks, D, CHUNK) and values (B, H, block_size, D) of each layer, in float32."""

    def __init__(self, config: GPTConfig, batch_size: int) -> None:
        self.shape = (batch_size, config.n_head, -(-config.block_size // CHUNK), config.head_size)
        values = (batch_size, config.n_head, config.block_size, config.head_size)
        self.keys = [torch.empty(*self.shape, CHUNK) for _ in range(config.n_layer)]
        self.values = [torch.empty(values) for _ in range(config.n_layer)]
        self.lengths = [0] * batch_size
        _, n_head, n_chunks, head_size = self.shape
        self._key_rows = torch.arange(n_head * n_chunks * head_size).view(n_head, n_chunks, -1)
        self._value_rows = torch.arange(n_head * config.block_size).view(n_head, -1)
        self._heads = torch.arange(n_head * n_chunks)
        self._rows: list[tuple[Tensor, ...]] = []

    def prefill(self, layer: int, row: int, kv: Tensor) -> None:
        """Write a whole prompt's keys and values, (2, H, T, D), at the start of one row."""
        n_positions = kv.shape[2]
        keys = self.keys[layer][row]
        for chunk, first in enumerate(range(0, n_positions, CHUNK)):
            part = kv[0, :, first : first + CHUNK].transpose(1, 2)  # (H, D, at most CHUNK)
            keys[:, chunk, :, : part.shape[2]] = part
        self.values[layer][row, :, :n_positions] = kv[1]

    def grow(self) -> int | list[int] | Tensor:
        """Make room for one position more in every row, and say which one that is."""
        newest = super().grow()
        head_size = self.shape[3]
        self._rows = []
        for length in self.lengths:
            n_chunks = -(-length // CHUNK)
            n_bags = self.shape[1] * n_chunks
            self._rows.append(
                (
                    self._key_rows[:, :n_chunks].reshape(-1),
                    self._heads[:n_bags] * head_size,
                    self._value_rows[:, :length].reshape(-1),
                    self._heads[: self.shape[1]] * length,
                )
            )
        return newest

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Append the newest position of each row and attend to its past; qkv is (3, B, H, D).

        Returns:
            (B, H, D).
        """
        scaled = qkv[0] * self.shape[3] ** -0.5
        rows = [
            self._attend(self.keys[layer][b], self.values[layer][b], scaled[b], qkv[1:, b], b)
            for b in range(len(self.lengths))
        ]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def _attend(self, keys: Tensor, values: Tensor, q: Tensor, kv: Tensor, row: int) -> Tensor:
        """One row: keys (H, chunks, D, CHUNK), values (H, T, D), q (H, D), kv (2, H, D)."""
        newest = self.lengths[row] - 1
        n_chunks = newest // CHUNK + 1
        keys[:, newest // CHUNK, :, newest % CHUNK] = kv[0]
        values[:, newest] = kv[1]
        key_rows, key_bags, value_rows, value_bags = self._rows[row]
        weights = q[:, None].expand(-1, n_chunks, -1).reshape(-1)
        scores = _sum_rows(keys.view(-1, CHUNK), key_rows, key_bags, weights)
        scores = scores.view(len(q), -1)[:, : newest + 1]  # (H, length)
        p = scores.softmax(-1).view(-1)
        return _sum_rows(values.view(-1, q.shape[1]), value_rows, value_bags, p)  # (H, D)


def _sum_rows(table: Tensor, rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Sums (n, C) of rows of a table (N, C), each times a weight; bags (n,): where sums begin."""
    out: Tensor = torch.embedding_bag(table, rows, bags, False, 0, False, weights)[0]
    return out
