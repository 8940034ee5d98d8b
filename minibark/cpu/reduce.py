"""A whole model in a precision other than float32 on a CPU: which matrix is kept how.

    float16, bfloat16   matrices and tables in 16 bits (`float16.py`)
    int8                a scale for each row (`int8.py`)
    int4                a scale and a zero for each 32 numbers of a row (`int4.py`)

LayerNorms, logits and the codec are float32. A product takes float32 and gives it, or bfloat16
where what follows rounds to that or adds it to float32. With int8 and int4 the cache of wide models
is in bytes (`byte_sums.py`). int4 is for the causal models' layers, whose steps read every weight
for one position. What changes the tokens more stays int8: the first layer, heads and tables. So
does the fine model, whose products are bound by arithmetic.

Operators that make this fast may be missing or slow elsewhere (`abilities.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.rows import SCALE, floats_of, rows_of
from ..files import warn
from ..model import GPT, Block, FineGPT
from ..precision import FLOATS
from . import abilities, attention
from .float16 import Linear16
from .gelu import FewGELU
from .int4 import GROUP, Int4Linear, Int4Twice, is_expanded
from .int8 import Int8Linear, Int8ManyRows, Int8Twice
from .packed import Packed
from .passes import BlockInParts
from .tables import ReducedTable


class ReducedHead(Packed):
    """A Head whose ranges of ids are made into a Linear when they are first asked for."""

    def __init__(self, n_ids: int, make: Callable[[slice], nn.Module]) -> None:
        """`make` returns the Linear of a range of the `n_ids` output ids."""
        super().__init__()
        self.n_ids, self.make = n_ids, make
        self.parts: dict[tuple[int, int], nn.Module] = {}

    def forward(self, x: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits (..., V) of the output ids in `ids` from x (..., C)."""
        out: Tensor = self.part(ids)(x)
        return out

    def part(self, ids: slice) -> nn.Module:
        """The Linear of these ids."""
        first, last, _ = ids.indices(self.n_ids)
        if (first, last) not in self.parts:
            self.parts[first, last] = self.make(slice(first, last))
        return self.parts[first, last]


def reduce(
    model: GPT | FineGPT,
    state: Mapping[str, Tensor],
    precision: str,
    *,
    prompts_recur: bool = False,
) -> None:
    """Give a model its weights in a precision other than float32, in place.

    The fine model's tables stay float32: they are its heads too, and small. No tensor of `state` is
    kept, so that a mapped file can go when every stage has been made of it; a big table is mapped
    anew (`tables.py`).

    Args:
        model: its own weights do not matter and may be on the meta device.
        state: weights in any floating type, or int8 matrices with their scales beside them.
        precision: one of `PRECISIONS`, not float32.
        prompts_recur: whether a causal model reads a long prompt every few steps, for which int8
            matrices are kept beside those for steps.
    """
    weights = _Weights(state)
    attention.dress(model)
    if isinstance(model, GPT):
        table = ReducedTable(*weights.matrix("transformer.wte"), FLOATS.get(precision))
        model.transformer.wte = table
        model.lm_head = _head(*weights.matrix("lm_head"), precision)
        twice = prompts_recur and precision not in FLOATS and abilities.has_int8_many_rows()
        for layer, block in enumerate(model.transformer.blocks):
            suffers = precision == "int4" and layer == 0
            own = "int8" if suffers else precision
            if twice:
                both = Int4Twice if own == "int4" else Int8Twice
                _reduce_layer_with_gelu(block, layer, weights, both)
            else:
                _reduce_layer(block, layer, weights, own)
    else:
        # All its products have many rows.
        many = "bfloat16" if abilities.has_fast_bfloat16() else "float16"
        kind = {"int4": "int8", "float16": many}.get(precision, precision)
        in_int8 = kind == "int8" and abilities.has_int8_many_rows()
        for layer, block in enumerate(model.transformer.blocks):
            if in_int8:
                _reduce_layer_with_gelu(block, layer, weights, Int8ManyRows)
                model.transformer.h[layer] = BlockInParts(block)
            else:
                _reduce_layer(block, layer, weights, kind)
    model.load_state_dict(weights.rest(), strict=True, assign=True)


class _Weights:
    """A state from which matrices are taken by name, and the rest at the end."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)

    def matrix(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A weight and, if it is int8, its scales."""
        weight = self._state.pop(f"{name}.weight")
        return weight, self._state.pop(f"{name}.weight{SCALE}", None)

    def linear(self, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same and a bias, if there is one."""
        return *self.matrix(name), self._state.pop(f"{name}.bias", None)

    def rest(self) -> dict[str, Tensor]:
        """What has not been taken, in float32, copied."""
        return {
            name: floats_of(tensor, self._state.get(name + SCALE)).to(torch.float32, copy=True)
            for name, tensor in self._state.items()
            if not name.endswith(SCALE)
        }


def _reduce_layer(block: Block, layer: int, weights: _Weights, precision: str) -> None:
    name = f"transformer.h.{layer}"
    attn, mlp = block.attn, block.mlp
    attn.c_attn = _linear(*weights.linear(f"{name}.attn.c_attn"), precision)  # cached in float32
    attn.c_proj = _linear(*weights.linear(f"{name}.attn.c_proj"), precision, widen=False)
    mlp.c_fc = _linear(*weights.linear(f"{name}.mlp.c_fc"), precision, widen=False)
    mlp.act = FewGELU()
    mlp.c_proj = _linear(*weights.linear(f"{name}.mlp.c_proj"), precision, widen=False)


def _reduce_layer_with_gelu(
    block: Block,
    layer: int,
    weights: _Weights,
    kind: type[Int8ManyRows] | type[Int8Twice] | type[Int4Twice],
) -> None:
    """With GELU inside the product in front of it; what makes no groups of int4 is int8."""

    def product(name: str, *, widen: bool = False, **options: Any) -> nn.Module:
        weight, scale, bias = weights.linear(f"transformer.h.{layer}.{name}")
        if not issubclass(kind, Int4Twice):
            return kind(*rows_of(weight, scale), bias, **options)
        if weight.shape[1] % GROUP:
            return Int8Twice(*rows_of(weight, scale), bias, **options)
        return Int4Twice(floats_of(weight, scale), bias, widen=widen, **options)

    # What attention would round them to.
    dtype = torch.bfloat16 if abilities.has_fast_bfloat16() else torch.float32
    block.attn.c_attn = product("attn.c_attn", dtype=dtype, widen=True)
    block.attn.c_proj = product("attn.c_proj")
    block.mlp.c_fc, block.mlp.act = product("mlp.c_fc", gelu=True), nn.Identity()
    block.mlp.c_proj = product("mlp.c_proj")


def _linear(
    weight: Tensor, scale: Tensor | None, bias: Tensor | None, precision: str, *, widen: bool = True
) -> nn.Module:
    if precision == "int4" and weight.shape[1] % GROUP == 0:
        return Int4Linear(floats_of(weight, scale), bias, widen=widen)
    if precision in FLOATS:
        return Linear16(floats_of(weight, scale).to(FLOATS[precision], copy=True), bias)
    return Int8Linear(*rows_of(weight, scale), bias)


def _head(weight: Tensor, scale: Tensor | None, precision: str) -> nn.Module:
    if precision in FLOATS:
        floats = floats_of(weight, scale).to(FLOATS[precision], copy=True)
        return ReducedHead(len(floats), lambda ids: Linear16(floats[ids]))
    q, scales = (part.clone() for part in rows_of(weight, scale))
    return ReducedHead(len(q), lambda ids: Int8Linear(q[ids], scales[ids]))


def warn_if_slow(precision: str) -> None:
    """Warn, before anything is loaded, if this torch lacks what makes a precision fast."""
    if precision in ("int8", "int4") and not abilities.has_int8_linear():
        missing = "quantized::linear_dynamic"
    elif precision == "int4" and not abilities.has_int4_linear():
        missing = "_weight_int4pack_mm_for_cpu"
    else:
        return
    warn(
        f"this torch ({torch.__version__}) has no {missing}: {precision} saves memory here but is "
        "slower than float32"
    )


def describe(precision: str) -> str:
    """How a precision's products run on this machine, in words."""
    if precision == "float32":
        return "float32 products"
    large = "bfloat16" if abilities.has_fast_bfloat16() else "float32"
    if precision in FLOATS:
        return f"{precision} for single rows, {large} for many"
    fast = abilities.has_int8_linear()
    int8 = "int8 dynamic" if fast else "int8 expanded to float32"
    if fast and not abilities.has_vnni():
        int8 += ", 7-bit activations (no VNNI)"
    if precision == "int8":
        return int8
    if not abilities.has_int4_linear():
        return f"int4 expanded to float32 layers, else {int8}"
    many = "int8" if is_expanded() else "int4"
    return f"int4 packed layers ({many} for many rows), else {int8}"
