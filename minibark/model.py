"""The two transformers of Bark: a causal GPT (text, coarse) and a non-causal GPT (fine).

`GPT.forward`, which looks at a whole sequence and caches nothing, is the specification; `prefill`
and `decode_one` give the same logits over a cache. Parameter names are Suno's released ones. In
shapes: B batch, T positions, C n_embd, H heads, D channels of a head, V output ids.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FineGPTConfig, GPTConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention: queries (B, H, Q, D) of the last Q positions, keys and values (B, H, T, D) -> q's."""

Write = Callable[[int, Tensor, Tensor], None]
"""Told a layer's number and its keys and values (B, H, T, D)."""


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V: every position sees all."""
    return F.scaled_dot_product_attention(q, k, v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same where a position sees none after it; q holds all positions or the last one."""
    if q.shape[2] == 1:
        return full_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Cache(Protocol):
    """Keys and values of what a causal model has seen; rows are independent utterances."""

    def write_prompt(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        """Start R rows over, from `row` on, with a prompt's keys and values (R, H, T, D)."""

    def begin_step(self) -> Tensor:
        """Make room for a position more in every row; (B,) int64, which one. ValueError: full."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new position's k and v (B, H, 1, D); what its q sees of its row's past."""

    def keep(self, rows: list[int], n_more: int = 0) -> None:
        """Go on with these rows alone and, behind them, so many empty ones."""


class KVCache:
    """The plain `Cache`: a buffer (2, B or more, H, block_size, D) a layer, filled to `lengths`."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        config, weight = model.config, model.transformer.wpe.weight
        shape = (2, batch_size, config.n_head, config.block_size, config.head_size)
        self.kv = [weight.new_zeros(shape) for _ in range(config.n_layer)]
        self.lengths, self.block_size = [0] * batch_size, config.block_size

    def write_prompt(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Cache`."""
        n_rows, _, n_positions, _ = k.shape
        self.kv[layer][:, row : row + n_rows, :, :n_positions] = torch.stack((k, v))
        self.lengths[row : row + n_rows] = [n_positions] * n_rows

    def begin_step(self) -> Tensor:
        """See `Cache`."""
        device, dtype = self.kv[0].device, self.kv[0].dtype
        self.newest = torch.tensor(grow(self.lengths, self.block_size), device=device)
        self.rows = torch.arange(len(self.newest), device=device)
        hidden = torch.arange(max(self.lengths), device=device) > self.newest[:, None, None, None]
        self.mask = torch.where(hidden, -torch.inf, 0.0).to(dtype)  # (B, 1, 1, T)
        return self.newest

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Cache`."""
        keys, values = self.kv[layer][:, : len(k), :, : self.mask.shape[-1]]
        if len(set(self.lengths)) == 1:
            keys[:, :, -1:], values[:, :, -1:] = k, v
            return full_attention(q, keys, values)
        keys[self.rows, :, self.newest], values[self.rows, :, self.newest] = k[:, :, 0], v[:, :, 0]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)

    def keep(self, rows: list[int], n_more: int = 0) -> None:
        """See `Cache`."""
        n, n_rows = max(self.lengths, default=0), len(rows) + n_more
        for layer, old in enumerate(self.kv):
            if n_rows > old.shape[1]:  # zeros, since a weight of 0 must hide what is not written
                self.kv[layer] = old.new_zeros((2, n_rows, *old.shape[2:]))
            self.kv[layer][:, : len(rows), :, :n] = old[:, rows, :, :n]
        self.lengths = [self.lengths[row] for row in rows] + [0] * n_more


def grow(lengths: list[int], block_size: int) -> list[int]:
    """Add 1 to every length, in place, and return what they were. ValueError: one is full."""
    if max(lengths) >= block_size:
        raise ValueError(f"the cache is full at {block_size} positions")
    before = lengths.copy()
    lengths[:] = [length + 1 for length in before]
    return before


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        attend: the seam of a layer: whoever has a faster way to attend puts it here.
    """

    def __init__(self, config: GPTConfig, *, causal: bool) -> None:
        super().__init__()
        self.c_attn: nn.Module = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj: nn.Module = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.attend: Attend = causal_attention if causal else full_attention

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """Mix positions of x (B, T, C), by `attend` if this call has its own."""
        qkv = self.c_attn(x).view(*x.shape[:2], 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        y = (attend or self.attend)(q, k, v)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return out


class MLP(nn.Module):
    """Position-wise feed-forward layer, four times as wide inside, with the exact (erf) GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc: nn.Module = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.act: nn.Module = nn.GELU()
        self.c_proj: nn.Module = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., C) position by position."""
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: GPTConfig, *, causal: bool, norm_bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=norm_bias)
        self.attn = SelfAttention(config, causal=causal)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=norm_bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """Transform x (B, T, C); if `attend` answers for the last positions alone, those."""
        y = self.attn(self.ln_1(x), attend)
        x = x[:, -y.shape[1] :] + y
        x = x + self.mlp(self.ln_2(x))
        return x


class Head(nn.Linear):
    """The output layer without bias, computed for the requested ids only."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.n_embd, config.output_vocab_size, bias=False)

    def forward(self, x: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits (..., V) of the output ids in `ids` from x (..., C)."""
        return F.linear(x, self.weight[ids])


class Transformer(nn.Module):
    """What both models share: positions, blocks and the final LayerNorm."""

    wte: nn.Module  # the causal model's token table
    wtes: nn.ModuleList  # the fine model's, one per codebook

    def __init__(self, config: GPTConfig, *, causal: bool, norm_bias: bool) -> None:
        super().__init__()
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(
            Block(config, causal=causal, norm_bias=norm_bias) for _ in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.n_embd, bias=norm_bias)

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return [block for block in self.h if isinstance(block, Block)]

    def forward(self, x: Tensor, start: int = 0, write: Write | None = None) -> Tensor:
        """Positions, blocks and the final LayerNorm over embedded tokens.

        Args:
            x: (B, T, C).
            start: the first position to return: the last layer leaves out what is before it.
            write: for a cache.

        Returns:
            (B, T - start, C).

        Raises:
            ValueError: more positions than the model has.
        """
        n, block_size = x.shape[1], self.wpe.num_embeddings
        if n > block_size:
            raise ValueError(f"{n} positions do not fit the model's block_size {block_size}")
        x = x + self.wpe.weight[:n]
        for layer, block in enumerate(self.blocks):
            first = start if layer == len(self.h) - 1 else 0
            x = block(x, partial(_attend_from, first, block.attn.attend, write, layer))
        out: Tensor = self.ln_f(x)
        return out


def _attend_from(
    start: int, attend: Attend, write: Write | None, layer: int, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    if write is not None:
        write(layer, k, v)
    return attend(q[:, :, start:], k, v)


class GPT(nn.Module):
    """Causal transformer over token ids, used for text -> semantic and semantic -> coarse.

    Source: suno-ai/bark, bark/model.py; Radford et al. 2019 (GPT-2), pre-norm blocks.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, causal=True, norm_bias=config.bias)
        self.transformer.wte = nn.Embedding(config.input_vocab_size, config.n_embd)
        self.lm_head: nn.Module = Head(config)
        self.apply(_init_weights)

    def forward(self, tokens: Tensor, n_merged: int = 0) -> Tensor:
        """Logits at every position, from the whole sequence at once.

        Args:
            tokens: (B, T) int64 in [0, input_vocab_size).
            n_merged: the first `2 * n_merged` ids are two blocks whose embeddings are added, so
                that they take `n_merged` positions.

        Returns:
            (B, T - n_merged, output_vocab_size) float32; the last position predicts the next id.
        """
        logits: Tensor = self.lm_head(self.transformer(self._embed(tokens, n_merged)))
        return logits.float()

    def prefill(
        self, tokens: Tensor, cache: Cache, row: int, n_merged: int = 0, ids: slice = slice(None)
    ) -> Tensor:
        """Fill rows of a cache from prompts of one length and return the logits that follow.

        Args:
            tokens: (R, T) int64.
            cache: its R rows from `row` on start over.
            row: the first of them.
            n_merged: as in `forward`.
            ids: the output ids requested.

        Returns:
            (R, V) float32 logits of those ids.
        """
        x = self._embed(tokens, n_merged)
        x = self.transformer(x, x.shape[1] - 1, partial(cache.write_prompt, row))
        logits: Tensor = self.lm_head(x[:, 0], ids)
        return logits.float()

    def decode_one(self, tokens: Tensor, cache: Cache, ids: slice = slice(None)) -> Tensor:
        """Append one token to every row of a cache and return the logits that follow.

        Args:
            tokens: (B,) int64, the newest token of each row.
            cache: every row grows by one position.
            ids: the output ids requested.

        Returns:
            (B, V) float32 logits of those ids.

        Raises:
            ValueError: the cache is full.
        """
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[cache.begin_step()]  # (B, C)
        for layer, block in enumerate(self.transformer.blocks):
            x = block(x[:, None], partial(cache.attend, layer))[:, 0]
        logits: Tensor = self.lm_head(self.transformer.ln_f(x), ids)
        return logits.float()

    def _embed(self, tokens: Tensor, n_merged: int) -> Tensor:
        x: Tensor = self.transformer.wte(tokens)  # (B, T, C)
        if n_merged:
            merged = x[:, :n_merged] + x[:, n_merged : 2 * n_merged]
            x = torch.cat((merged, x[:, 2 * n_merged :]), dim=1)
        return x


class FineGPT(nn.Module):
    """Non-causal transformer that predicts one codebook of all frames from the ones below it.

    A codebook's head is an embedding table (with one given codebook, as released, its own), so the
    released `lm_heads` are not parameters of their own here.

    Source: suno-ai/bark, bark/model_fine.py.
    """

    def __init__(self, config: FineGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, causal=False, norm_bias=True)
        self.transformer.wtes = nn.ModuleList(
            nn.Embedding(config.input_vocab_size, config.n_embd)
            for _ in range(config.n_codes_total)
        )
        self.project: Callable[[Tensor, Tensor], Tensor] = F.linear  # rows by a head's weight
        self.apply(_init_weights)

    def forward(self, codes: Tensor, codebook: int, start: int = 0) -> Tensor:
        """Logits of one codebook, given all codebooks below it and its own present values.

        Args:
            codes: (B, T, n_codes_total) int64 in [0, input_vocab_size).
            codebook: the one to predict, in [n_codes_given, n_codes_total).
            start: first frame whose logits are returned; all frames are attended to.

        Returns:
            (B, T - start, output_vocab_size) float32.
        """
        config, tables = self.config, self.transformer.wtes
        first, end = config.n_codes_given, config.n_codes_total
        if not first <= codebook < end:
            raise ValueError(f"codebook must be in [{first}, {end}), got {codebook}")
        # The codebook's own values are part of its input, as in the reference: pads or, in frames
        # that an earlier buffer filled, the earlier prediction.
        x = tables[0](codes[:, :, 0])  # (B, T, C)
        for k in range(1, codebook + 1):
            x = x + tables[k](codes[:, :, k])
        head = tables.get_parameter(f"{codebook - first + 1}.weight")
        return self.project(self.transformer(x, start), head).float()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
