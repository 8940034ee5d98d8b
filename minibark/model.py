"""The two transformers of Bark: a causal GPT (text, coarse) and a non-causal GPT (fine).

`GPT.forward`, which looks at a whole sequence and caches nothing, is the specification; `prefill`
and `decode_one` compute the same logits position by position over a `KVCache`. Parameter names are
those of the released Suno checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import ops
from .config import FineGPTConfig, GPTConfig


class KVCache:
    """Keys and values of the positions seen so far: one buffer (2, B, H, block_size, D) per layer.

    Rows are independent utterances, each filled up to its own `lengths[b]`.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (2, batch_size, config.n_head, config.block_size, config.head_size)
        self.kv = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.lengths = [0] * batch_size

    def prefill(self, layer: int, row: int, past: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Write a prompt's keys and values, (2, R, H, T, D), behind `past` positions of R rows.

        Returns:
            The keys and values (R, H, past + T, D) of those rows, from `row` on.
        """
        rows, end = slice(row, row + kv.shape[1]), past + kv.shape[3]
        self.kv[layer][:, rows, :, past:end] = kv
        k, v = self.kv[layer][:, rows, :, :end] if past else kv
        return k, v

    def grow(self) -> int | list[int] | Tensor:
        """Make room for one position more in every row, and say which one that is."""
        before = self.lengths
        self.lengths = [length + 1 for length in before]
        common = ops.common_length(before)
        return before if common is None else common

    def append(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor, list[int] | Tensor]:
        """Write the newest position of each row; kv is (2, B, H, D).

        Returns:
            The layer's keys and values (B, H, block_size, D) and how much of each row they hold.
        """
        buffer, lengths = self.kv[layer], self.lengths
        if (common := ops.common_length(lengths)) is not None:
            buffer[:, :, :, common - 1] = kv
        else:
            for row, length in enumerate(lengths):
                buffer[:, row, :, length - 1] = kv[:, row]
        return buffer[0], buffer[1], lengths

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Append the newest position of each row and attend to its past; qkv is (3, B, H, D).

        Returns:
            (B, H, D).
        """
        y = ops.decode_attention(qkv[0].unsqueeze(2), *self.append(layer, qkv[1:]))
        return y.squeeze(2)


@dataclass(frozen=True)
class Place:
    """Where in a cache a prompt goes: to rows from `row` on, behind `past` positions."""

    cache: KVCache
    row: int
    past: int = 0


class Linear(nn.Linear):
    """x W^T + b, by the fastest product that this device has."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) -> (..., N)."""
        return ops.linear(x, self.weight, self.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention, causal or not."""

    def __init__(self, config: GPTConfig, causal: bool) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.causal = causal
        self.attend: Callable[..., Tensor] = ops.attention  # or what takes the same
        self.product_dtype: torch.dtype | None = None  # see `ops.attention`

    def forward(
        self, x: Tensor, place: Place | None = None, layer: int = 0, start: int = 0
    ) -> Tensor:
        """Mix positions of x (B, T, C), and, if they have a place in a cache, what is before it.

        Only positions from `start` on are given; if causal, `start` is 0 or the last position.
        """
        qkv = self.c_attn(x).view(*x.shape[:2], 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # (B, H, T, D)
        if place is not None:
            k, v = place.cache.prefill(layer, place.row, place.past, qkv[1:])
        causal = self.causal and start < x.shape[1] - 1  # the last position sees everything
        y = self.attend(q[:, :, start:], k, v, causal=causal, product_dtype=self.product_dtype)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return out

    def decode(self, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Mix one new position per row, x (B, C), with the past in the cache."""
        qkv = self.c_attn(x).view(len(x), 3, self.n_head, -1).transpose(0, 1)  # (3, B, H, D)
        out: Tensor = self.c_proj(cache.attend(layer, qkv).view(x.shape))
        return out


class MLP(nn.Module):
    """Position-wise feed-forward layer, four times as wide inside, with the exact (erf) GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.act: nn.Module = nn.GELU()
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., C) position by position."""
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: GPTConfig, *, causal: bool, norm_bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=norm_bias)
        self.attn = SelfAttention(config, causal)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=norm_bias)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, place: Place | None = None, layer: int = 0, start: int = 0
    ) -> Tensor:
        """Transform x (B, T, C); positions from `start` on."""
        x = x[:, start:] + self.attn(self.ln_1(x), place, layer, start)
        x = x + self.mlp(self.ln_2(x))
        return x

    def decode(self, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Transform one new position per row, x (B, C)."""
        x = x + self.attn.decode(self.ln_1(x), cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x


class Head(nn.Linear):
    """The output layer without bias, computed for the wanted ids only."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.n_embd, config.output_vocab_size, bias=False)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Logits (..., V) of the output ids in `rows` from x (..., C)."""
        return ops.linear(x, self.weight[rows])


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

    def forward(self, x: Tensor, place: Place | None = None, start: int = 0) -> Tensor:
        """Blocks over embedded tokens x (B, T, C), from position 0 on or behind a place's past.

        Only positions from `start` of x on are given.
        """
        past = place.past if place else 0
        length, block_size = past + x.shape[1], self.wpe.num_embeddings
        if length > block_size:
            raise ValueError(f"{length} positions do not fit the model's block_size {block_size}")
        x = x + self.wpe.weight[past:length]
        last = len(self.h) - 1
        for layer, block in enumerate(self.h):
            # Below the last layer every position is needed, for its keys and values above.
            x = block(x, place, layer, start if layer == last else 0)
        return x

    def decode(self, x: Tensor, cache: KVCache) -> Tensor:
        """Blocks over one new embedded token per row, x (B, C), at the end of each row's past."""
        x = x + self.wpe.weight[cache.grow()]
        for layer, block in enumerate(self.h):
            assert isinstance(block, Block)
            x = block.decode(x, cache, layer)
        return x


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
        return self._logits(self.transformer(self._embed(tokens, n_merged)), slice(None))

    def prefill(
        self,
        tokens: Tensor,
        cache: KVCache,
        row: int,
        *,
        past: int = 0,
        n_merged: int = 0,
        head: slice,
    ) -> Tensor:
        """Fill rows of the cache from prompts of one length and give the logits that follow.

        Args:
            tokens: (R, T) int64, the prompts, or what comes behind `past` positions of them.
            cache: its R rows from `row` on are overwritten from position `past` on.
            row: the first of them.
            past: positions that those rows hold already.
            n_merged: as in `forward`.
            head: the output ids wanted.

        Returns:
            (R, V) float32 logits of the ids in `head`.
        """
        x = self._embed(tokens, n_merged)
        cache.lengths[row : row + len(x)] = [past + x.shape[1]] * len(x)
        x = self.transformer(x, Place(cache, row, past), start=x.shape[1] - 1)
        return self._logits(x[:, 0], head)

    def decode_one(self, tokens: Tensor, cache: KVCache, *, head: slice) -> Tensor:
        """Append one token to every row of the cache and give the logits that follow.

        Args:
            tokens: (B,) int64, the newest token of each row.
            cache: every row grows by one position.
            head: the output ids wanted.

        Returns:
            (B, V) float32 logits of the ids in `head`.
        """
        if max(cache.lengths) >= self.config.block_size:
            raise ValueError(f"the cache is full at {self.config.block_size} positions")
        x = self.transformer.decode(self.transformer.wte(tokens), cache)
        return self._logits(x, head)

    def _embed(self, tokens: Tensor, n_merged: int) -> Tensor:
        x: Tensor = self.transformer.wte(tokens)  # (B, T, C)
        if n_merged:
            merged = x[:, :n_merged] + x[:, n_merged : 2 * n_merged]
            x = torch.cat((merged, x[:, 2 * n_merged :]), dim=1)
        return x

    def _logits(self, x: Tensor, head: slice) -> Tensor:
        logits: Tensor = self.lm_head(self.transformer.ln_f(x), head)
        return logits.float()


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
        self.apply(_init_weights)

    def forward(self, codes: Tensor, codebook: int, start: int = 0) -> Tensor:
        """Logits of one codebook, given all codebooks below it and its own present values.

        Args:
            codes: (B, T, n_codes_total) int64 in [0, input_vocab_size).
            codebook: the one to predict, in [n_codes_given, n_codes_total).
            start: first frame whose logits are wanted; all frames are attended to.

        Returns:
            (B, T - start, output_vocab_size) float32.
        """
        config, tables = self.config, self.transformer.wtes
        if not config.n_codes_given <= codebook < config.n_codes_total:
            raise ValueError(
                f"codebook must be in [{config.n_codes_given}, {config.n_codes_total}), "
                f"got {codebook}"
            )
        # The codebook's own values are part of its input, as in the reference: pads or, in frames
        # that an earlier buffer filled, the earlier prediction.
        x = tables[0](codes[:, :, 0])  # (B, T, C)
        for k in range(1, codebook + 1):
            x = x + tables[k](codes[:, :, k])
        x = self.transformer.ln_f(self.transformer(x, start=start))
        head = next(tables[codebook - config.n_codes_given + 1].parameters())
        return ops.linear(x, head).float()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
