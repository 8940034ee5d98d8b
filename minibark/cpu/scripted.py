"""Steps whose layers run as TorchScript: the same operators, without Python between them.

A step is some 25 operators a layer over few numbers, and Python between them took a quarter of its
time. What there is no script for (other products, biases, hooks on modules, a torch that scripts no
longer) takes its steps as `GPT.decode_one` does.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decoding import CachedDecoder
from ..model import GPT, MLP, Block, Cache, KVCache, SelfAttention
from .abilities import has_onednn_linear
from .byte_sums import ByteCache
from .float16 import FEW_ROWS, Linear16
from .float32 import OneDNNLinear, SmallLinear
from .int4 import GROUP, MANY_ROWS, Int4Linear
from .int8 import Int8Linear
from .row_sums import RowSumCache


class ScriptedDecoder(CachedDecoder):
    """A `CachedDecoder` whose steps run as TorchScript, if they can; they give the same bits.

    Weights, hooks and whatever was put into the model are seen when rows begin.
    """

    def __init__(
        self, model: GPT, n_merged: int = 0, new_cache: Callable[[GPT, int], Cache] = KVCache
    ) -> None:
        super().__init__(model, n_merged, new_cache)
        self._layers, self._weights = list[Any](), list[list[Tensor]]()
        self._n_rows_of_weights = 0  # these differ with how many rows there are

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        logits = super().join(prompts, ids)
        assert self.cache is not None
        self._layers, self._n_rows_of_weights = layers_of(self.model, self.cache), 0
        return logits

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        cache, n_rows = self.cache, len(tokens)
        if cache is None or not self._layers or n_rows >= MANY_ROWS:
            return super().decode_one(tokens, ids)
        transformer = self.model.transformer
        x = transformer.wte(tokens) + transformer.wpe.weight[cache.begin_step()]  # (B, C)
        if n_rows != self._n_rows_of_weights:
            self._weights = [_weights(block, x) for block in transformer.blocks]
            self._n_rows_of_weights = n_rows
        for layer, (script, weights) in enumerate(zip(self._layers, self._weights, strict=True)):
            x = script(x, weights, *_operands(cache, layer))
        logits: Tensor = self.model.lm_head(transformer.ln_f(x), ids)
        return logits.float()


# ---- what there is of a model


@dataclass(frozen=True)
class _Made:
    """The layers of a model, none if there is no script for one, and what they were made of."""

    layers: list[Any]
    kind: type[Cache]
    parts: list[nn.Module]


_MADE: weakref.WeakKeyDictionary[GPT, _Made] = weakref.WeakKeyDictionary()
_SCRIPTING = threading.Lock()


def layers_of(model: GPT, cache: Cache) -> list[Any]:
    """The layers of a model as TorchScript, over caches of one kind; none if that cannot be."""
    parts = _parts(model)
    if not parts:
        return []
    made = _MADE.get(model)
    if (
        made is None
        or made.kind is not type(cache)
        or len(made.parts) != len(parts)
        or any(a is not b for a, b in zip(made.parts, parts, strict=True))
    ):
        made = _MADE[model] = _Made(_script(model, cache), type(cache), parts)
    return made.layers


def _parts(model: GPT) -> list[nn.Module]:
    """The modules that a script stands for; none if it would not do what they do."""
    parts = list[nn.Module]()
    for block in model.transformer.h:
        if type(block) is not Block or type(block.attn) is not SelfAttention:
            return []
        attn, mlp, norms = block.attn, block.mlp, (block.ln_1, block.ln_2)
        if type(mlp) is not MLP or type(mlp.act) not in (nn.GELU, nn.Identity):
            return []
        if any(type(norm) is not nn.LayerNorm or norm.bias is not None for norm in norms):
            return []
        parts += [block, attn, mlp, mlp.act, *norms, *_products(block)]
    modules = nn.modules.module
    is_watched = modules._global_forward_hooks or modules._global_forward_pre_hooks
    if is_watched or any(
        one._forward_hooks or one._forward_pre_hooks or "forward" in vars(one) for one in parts
    ):
        return []
    # With gradients, steps that write into a cache are torch's to judge.
    return [] if any(one.requires_grad for one in model.parameters()) else parts


def _script(model: GPT, cache: Cache) -> list[Any]:
    attend, blocks = _ATTENTION.get(type(cache)), model.transformer.blocks
    scripts = [[_scriptable(one) for one in _products(block)] for block in blocks]
    if attend is None or not all(all(products) for products in scripts):
        return []
    # Whatever goes wrong with it, there is the plain way.
    with _SCRIPTING, warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore", DeprecationWarning)
        return [
            torch.jit.script(_Layer(block, attend(), products))
            for block, products in zip(blocks, scripts, strict=True)
        ]
    return []


def _products(block: Block) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj


def _scriptable(product: nn.Module) -> nn.Module | None:
    # A class made of one of these may do something else.
    if type(product) not in _PRODUCTS or getattr(product, "bias", None) is not None:
        return None
    if isinstance(product, OneDNNLinear):
        return _Float32(product)
    if isinstance(product, Int8Linear):
        return _Int8(product) if product.packed is not None else None
    if isinstance(product, Int4Linear):
        return _Int4(product) if product.fast else None
    return _Float16(product) if isinstance(product, Linear16) else None


def _weights(block: Block, x: Tensor) -> list[Tensor]:
    """LayerNorms' weights and what each product multiplies rows x by, where it is float32."""
    nothing = x[:0]
    factors = [
        one.factor(x) if isinstance(one, OneDNNLinear) else nothing for one in _products(block)
    ]
    return [block.ln_1.weight, block.ln_2.weight, *factors]


def _operands(cache: Cache, layer: int) -> tuple[list[Tensor], int]:
    """What a layer's attention reads and writes, and how many columns there are."""
    if isinstance(cache, RowSumCache):
        return cache.operands(layer), cache.n_columns
    assert isinstance(cache, KVCache)
    is_one_length = len(set(cache.lengths)) == 1
    mask = cache.mask[:0] if is_one_length else cache.mask
    return [cache.kv[layer], cache.rows, cache.newest, mask], max(cache.lengths)


# ---- what is scripted


class _Layer(nn.Module):
    """What `Block` does for one step: rows x (B, C) -> (B, C)."""

    def __init__(self, block: Block, attend: nn.Module, products: Sequence[Any]) -> None:
        super().__init__()
        self.attend = attend
        self.c_attn, self.c_proj, self.c_fc, self.c_out = products
        self.n_head, self.n_embd = block.attn.n_head, len(block.ln_1.weight)
        self.eps_1, self.eps_2 = block.ln_1.eps, block.ln_2.eps
        self.gelu = isinstance(block.mlp.act, nn.GELU)  # else c_fc ends in it

    def forward(
        self, x: Tensor, weights: list[Tensor], operands: list[Tensor], n_columns: int
    ) -> Tensor:
        size, floats = [self.n_embd], weights[2:]
        y = F.layer_norm(x, size, weights[0], None, self.eps_1)
        qkv = self.c_attn(y, floats, 0).view(len(x), 3, self.n_head, 1, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        y = self.attend(q, k, v, operands, n_columns).reshape(x.shape)
        x = x + self.c_proj(y, floats, 1)
        y = F.layer_norm(x, size, weights[1], None, self.eps_2)
        y = self.c_fc(y, floats, 2)
        if self.gelu:
            y = F.gelu(y)
        out: Tensor = x + self.c_out(y, floats, 3)
        return out


class _Float32(nn.Module):
    """What `OneDNNLinear` does for rows x."""

    def __init__(self, product: OneDNNLinear) -> None:
        super().__init__()
        self.gelu = product.gelu
        self.is_small, self.has_onednn = isinstance(product, SmallLinear), has_onednn_linear()

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        weight = floats[place]
        if self.is_small and (len(x) == 1 or not self.has_onednn):
            y = F.linear(x, weight)
            return F.gelu(y) if self.gelu else y
        after, algorithm = ("gelu", "none") if self.gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, after, [], algorithm)
        return out


class _Int8(nn.Module):
    """What `Int8Linear` does."""

    def __init__(self, product: Int8Linear) -> None:
        super().__init__()
        self.packed, self.reduce_range = product.packed, product.reduce_range

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return out


class _Int4(nn.Module):
    """What `Int4Linear` does for few rows x."""

    def __init__(self, product: Int4Linear) -> None:
        super().__init__()
        self.packed, self.scale_and_zero = product.packed, product.scale_and_zero
        self.widen, self.group = product.widen, GROUP

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group, self.scale_and_zero
        )
        return y.float() if self.widen else y


class _Float16(nn.Module):
    """What `Linear16` does."""

    def __init__(self, product: Linear16) -> None:
        super().__init__()
        self.weight, self.large, self.few = product.weight, product.large, FEW_ROWS
        self.is_large = product.weight.dtype == product.large

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        weight = self.weight
        if not self.is_large and len(x) > self.few:
            weight = weight.to(self.large)
        return F.linear(x.to(weight.dtype), weight).float()


class _Attend(nn.Module):
    """What `KVCache` does: q, k, v (B, H, 1, D) -> (B, H, 1, D)."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, operands: list[Tensor], n_columns: int
    ) -> Tensor:
        kv, rows, newest, mask = operands
        keys, values = kv[0, : len(q), :, :n_columns], kv[1, : len(q), :, :n_columns]
        if mask.numel() == 0:
            keys[:, :, -1:] = k
            values[:, :, -1:] = v
            return F.scaled_dot_product_attention(q, keys, values)
        keys[rows, :, newest] = k[:, :, 0]
        values[rows, :, newest] = v[:, :, 0]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


class _AttendBySums(nn.Module):
    """What `RowSumCache` does."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, operands: list[Tensor], n_columns: int
    ) -> Tensor:
        keys, key_rows, key_begins, new_keys = operands[:4]
        values, value_rows, value_begins, new_values, hidden = operands[4:]
        n_rows, n_heads, size = q.size(0), q.size(1), q.size(3)
        keys.put_(new_keys, k)
        values.index_copy_(0, new_values, v.reshape(-1, size))
        n_chunks = len(key_begins) // (n_rows * n_heads)
        q = (q * size**-0.5).expand(-1, -1, n_chunks, -1).reshape(-1)
        scores = torch.embedding_bag(keys, key_rows, key_begins, False, 0, False, q)[0]
        scores = scores.view(n_rows, n_heads, -1)[:, :, :n_columns]
        if hidden.numel() > 0:
            scores.masked_fill_(hidden, -torch.inf)
        p = scores.softmax(-1).reshape(-1)
        out: Tensor = torch.embedding_bag(values, value_rows, value_begins, False, 0, False, p)[0]
        return out


class _AttendByBytes(nn.Module):
    """What `ByteCache` does."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, operands: list[Tensor], n_columns: int
    ) -> Tensor:
        keys, key_rows, key_begins, new_keys = operands[:4]
        values, value_rows, value_begins, new_values, hidden = operands[4:9]
        newest, newest_rows, newest_begins = operands[9:]
        n_rows, n_heads, size = q.size(0), q.size(1), q.size(3)
        newest.put_(new_keys, k)
        new = torch.ops.quantized.embedding_bag_byte_prepack(v.reshape(-1, size))
        values.index_copy_(0, new_values, new)
        q = q * size**-0.5
        scores = torch.embedding_bag(
            newest, newest_rows, newest_begins, False, 0, False, q.reshape(-1)
        )[0].view(n_rows, n_heads, -1)
        if len(key_begins) > 0:
            n_chunks = len(key_begins) // (n_rows * n_heads)
            q = q.expand(-1, -1, n_chunks, -1).reshape(-1)
            full = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
                keys, key_rows, key_begins, False, 0, False, q
            ).view(n_rows, n_heads, -1)
            scores = torch.cat([full, scores[:, :, : n_columns - full.size(-1)]], -1)
        else:
            scores = scores[:, :, :n_columns]
        if hidden.numel() > 0:
            scores.masked_fill_(hidden, -torch.inf)
        out: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            values, value_rows, value_begins, False, 0, False, scores.softmax(-1).reshape(-1)
        )
        return out


_ATTENTION: dict[type, type[nn.Module]] = {
    KVCache: _Attend,
    RowSumCache: _AttendBySums,
    ByteCache: _AttendByBytes,
}
_PRODUCTS = (OneDNNLinear, SmallLinear, Int8Linear, Int4Linear, Linear16)
