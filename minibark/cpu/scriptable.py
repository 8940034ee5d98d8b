"""What can run as TorchScript of a model, and the scripts that have been made of it."""

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

from ..model import GPT, MLP, Block, Cache, Head, KVCache, SelfAttention
from .byte_sums import ByteCache
from .float16 import Linear16
from .float32 import OneDNNHead, OneDNNLinear, SmallLinear
from .gelu import FewGELU
from .int4 import Int4Linear, Int4Twice
from .int8 import MANY_ROWS, Int8Linear, Int8Twice, Twice
from .reduce import ReducedHead
from .row_sums import RowSumCache
from .scripts import Float16, Float32, Int4, Int8, Layer, ReducedRows, Rows32, Steps, attend
from .tables import ReducedTable

MOST_HEADS = 8  # ranges of ids that one script has heads for


@dataclass(frozen=True)
class Script:
    """A model's steps over caches of one kind, if there can be a script, and what it is made of.

    Attributes:
        ids: (first, end) of the ids that each head is for.
    """

    steps: Any
    kind: type[Cache]
    parts: list[nn.Module]
    ids: list[tuple[int, int]]

    def which(self, ids: slice) -> int:
        """The head for these ids."""
        return self.ids.index((ids.start, ids.stop))

    def knows(self, ids: Sequence[slice]) -> bool:
        """Whether there is a head for all of these."""
        return all((own.start, own.stop) in self.ids for own in ids)


_MADE: weakref.WeakKeyDictionary[GPT, Script] = weakref.WeakKeyDictionary()
_SCRIPTING = threading.Lock()


def script_of(model: GPT, cache: Cache, parts: Sequence[nn.Module], ids: Sequence[slice]) -> Script:
    """The script of a model's parts for such ids; what is known of it is kept."""
    made, needed = _MADE.get(model), {(own.start, own.stop) for own in ids}
    is_of_these = (
        made is not None
        and made.kind is type(cache)
        and len(made.parts) == len(parts)
        and all(a is b for a, b in zip(made.parts, parts, strict=True))
    )
    if made is not None and is_of_these:
        if made.knows(ids):
            return made
        if len(needed | set(made.ids)) <= MOST_HEADS:
            needed |= set(made.ids)
    places = sorted(needed)
    made = Script(_script(model, cache, places), type(cache), list(parts), places)
    _MADE[model] = made
    return made


def parts_of(model: GPT) -> list[nn.Module]:
    """The modules that a script stands for; none if it would not do what they do."""
    transformer, head = model.transformer, model.lm_head
    parts = [transformer.wte, head, transformer.ln_f]
    norms = [transformer.ln_f]
    for block in transformer.h:
        if type(block) is not Block or type(block.attn) is not SelfAttention:
            return []
        attn, mlp = block.attn, block.mlp
        if type(mlp) is not MLP or type(mlp.act) not in (nn.GELU, FewGELU, nn.Identity):
            return []
        norms += [block.ln_1, block.ln_2]
        parts += [block, attn, mlp, mlp.act, block.ln_1, block.ln_2, *_products(block)]
    if any(type(norm) is not nn.LayerNorm or norm.bias is not None for norm in norms):
        return []
    modules = nn.modules.module
    is_watched = modules._global_forward_hooks or modules._global_forward_pre_hooks
    if is_watched or any(
        one._forward_hooks or one._forward_pre_hooks or "forward" in vars(one) for one in parts
    ):
        return []
    # With gradients, steps that write into a cache are torch's to judge.
    return [] if any(one.requires_grad for one in model.parameters()) else parts


def _script(model: GPT, cache: Cache, ids: Sequence[tuple[int, int]]) -> Any:
    """Steps as TorchScript, or None."""
    attention, blocks = _ATTENTION.get(type(cache)), model.transformer.blocks
    products = [[_scriptable(one) for one in _products(block)] for block in blocks]
    table = _scriptable_table(model.transformer.wte)
    heads = [_scriptable_head(model.lm_head, slice(*own)) for own in ids]
    needed = [table, *heads, *(one for own in products for one in own)]
    if attention is None or any(one is None for one in needed):
        return None
    # Whatever goes wrong with it, there is the plain way.
    with _SCRIPTING, warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore", DeprecationWarning)
        layers = [Layer(block, attention, own) for block, own in zip(blocks, products, strict=True)]
        return torch.jit.script(Steps(table, layers, heads, model.transformer.ln_f.eps))
    return None


def _products(block: Block) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj


def _scriptable(product: nn.Module) -> nn.Module | None:
    # A class made of one of these may do something else.
    if type(product) not in _PRODUCTS or getattr(product, "bias", None) is not None:
        return None
    if isinstance(product, OneDNNLinear):
        return Float32(gelu=product.gelu, by_torch=1 if isinstance(product, SmallLinear) else 0)
    few, act = (product.few, product.act) if isinstance(product, Twice) else (product, None)
    after = act if isinstance(act, FewGELU) else None
    if isinstance(few, Int8Linear):
        return Int8(few, after) if few.packed is not None else None
    if isinstance(few, Int4Linear):
        return Int4(few, after) if few.fast else None
    return Float16(few) if isinstance(few, Linear16) else None


def _scriptable_table(table: nn.Module) -> nn.Module | None:
    if type(table) is ReducedTable:
        return ReducedRows(table)
    return Rows32() if type(table) is nn.Embedding and table.max_norm is None else None


def _scriptable_head(head: nn.Module, ids: slice) -> nn.Module | None:
    if type(head) is ReducedHead:
        return _scriptable(head.part(ids))
    if type(head) is OneDNNHead and head.bias is None:
        return Float32()
    return Float32(by_torch=MANY_ROWS) if type(head) is Head else None


def floats_around(model: GPT, n_rows: int, ids: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """Float32 tensors of each layer and of what is around them, as `Steps` is told them."""
    transformer, head = model.transformer, model.lm_head
    x = transformer.wpe.weight[:1].expand(n_rows, -1)
    nothing = x[:0]

    def factor(product: nn.Module) -> Tensor:
        return product.factor(x) if isinstance(product, OneDNNLinear) else nothing

    layers = [
        [
            block.ln_1.weight,
            block.ln_2.weight,
            *(factor(one) for one in _products(block)),
        ]
        for block in transformer.blocks
    ]
    heads = [nothing for _ in ids]
    if isinstance(head, OneDNNHead):
        heads = [head.factor(x, slice(*own)) for own in ids]
    elif isinstance(head, Head):
        heads = [head.weight[slice(*own)] for own in ids]
    table = transformer.wte.weight if isinstance(transformer.wte, nn.Embedding) else nothing
    return [*layers, [table, transformer.wpe.weight, transformer.ln_f.weight, *heads]]


_ATTENTION: dict[type, Callable[..., Tensor]] = {
    KVCache: attend,
    RowSumCache: RowSumCache.attention,
    ByteCache: ByteCache.attention,
}
_PRODUCTS = (OneDNNLinear, SmallLinear, Int8Linear, Int8Twice, Int4Linear, Int4Twice, Linear16)
