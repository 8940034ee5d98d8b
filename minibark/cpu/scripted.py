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
from torch import Tensor, nn

from ..decoding import CachedDecoder
from ..model import GPT, MLP, Block, Cache, KVCache, SelfAttention
from .byte_sums import ByteCache
from .float16 import Linear16
from .float32 import OneDNNLinear, SmallLinear
from .int4 import Int4Linear
from .int8 import MANY_ROWS, Int8Linear, Int8Twice
from .row_sums import RowSumCache
from .scripts import Float16, Float32, Int4, Int8, Layer, attend

# Steps of a model: making scripts takes what they save in so many.
PAYS_AFTER: dict[type[Cache], int] = {KVCache: 512, RowSumCache: 64, ByteCache: 64}


class ScriptedDecoder(CachedDecoder):
    """A `CachedDecoder` whose steps run as TorchScript, if they can; they give the same bits.

    The first steps of a model are plain. Then weights, hooks and whatever was put into the model
    are seen when rows begin.
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
        self._begin()
        return logits

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        cache, n_rows = self.cache, len(tokens)
        if cache is None or not self._layers or n_rows >= MANY_ROWS:
            logits = super().decode_one(tokens, ids)
            taken = _TAKEN[self.model] = _TAKEN.get(self.model, 0) + 1
            if cache is not None and taken == PAYS_AFTER.get(type(cache)):
                self._begin()
            return logits
        transformer = self.model.transformer
        x = transformer.wte(tokens) + transformer.wpe.weight[cache.begin_step()]  # (B, C)
        if n_rows != self._n_rows_of_weights:
            self._weights = [_weights(block, x) for block in transformer.blocks]
            self._n_rows_of_weights = n_rows
        for layer, (script, weights) in enumerate(zip(self._layers, self._weights, strict=True)):
            x = script(x, weights, *_operands(cache, layer))
        scores: Tensor = self.model.lm_head(transformer.ln_f(x), ids)
        return scores.float()

    def _begin(self) -> None:
        """Go on with scripts, if they pay and can be had."""
        assert self.cache is not None
        pays = _TAKEN.get(self.model, 0) >= PAYS_AFTER.get(type(self.cache), 0)
        self._layers = layers_of(self.model, self.cache) if pays else []
        self._n_rows_of_weights = 0


# ---- what there is of a model


@dataclass(frozen=True)
class _Made:
    """The layers of a model, none if there is no script for one, and what they were made of."""

    layers: list[Any]
    kind: type[Cache]
    parts: list[nn.Module]


_MADE: weakref.WeakKeyDictionary[GPT, _Made] = weakref.WeakKeyDictionary()
_TAKEN: weakref.WeakKeyDictionary[GPT, int] = weakref.WeakKeyDictionary()  # plain steps, so far
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
    attention, blocks = _ATTENTION.get(type(cache)), model.transformer.blocks
    scripts = [[_scriptable(one) for one in _products(block)] for block in blocks]
    if attention is None or not all(all(products) for products in scripts):
        return []
    # Whatever goes wrong with it, there is the plain way.
    with _SCRIPTING, warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore", DeprecationWarning)
        return [
            torch.jit.script(Layer(block, attention, products))
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
        return Float32(product)
    if isinstance(product, (Int8Linear, Int8Twice)):
        few = product.few if isinstance(product, Int8Twice) else product
        return Int8(few, getattr(product, "gelu", False)) if few.packed is not None else None
    if isinstance(product, Int4Linear):
        return Int4(product) if product.fast else None
    return Float16(product) if isinstance(product, Linear16) else None


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


_ATTENTION: dict[type, Callable[..., Tensor]] = {
    KVCache: attend,
    RowSumCache: RowSumCache.attention,
    ByteCache: ByteCache.attention,
}
_PRODUCTS = (OneDNNLinear, SmallLinear, Int8Linear, Int8Twice, Int4Linear, Linear16)
