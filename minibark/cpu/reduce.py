"""A whole model in a precision other than float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..checkpoint.rows import SCALE, floats_of, rows_of
from ..model import GPT, FineGPT, Head, SelfAttention
from ..ops import SMALL
from ..precision import FLOATS
from . import abilities as cpu
from .float16 import Embedding16, Linear16
from .int4 import GROUP, Int4Embedding, Int4Linear, is_expanded
from .int8 import Int8Embedding, Int8Linear, Int8ManyRows

BIG_TABLE = 2**25  # numbers in a table from which it is int4: the released text tables


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Say now, not in the middle, that this torch lacks an operator that makes a precision fast."""
    if device.type != "cpu":
        return
    if precision in ("int8", "int4") and not cpu.has_int8_linear():
        missing = "quantized::linear_dynamic"
    elif precision == "int4" and not cpu.has_int4_linear():
        missing = "_weight_int4pack_mm_for_cpu"
    else:
        return
    warnings.warn(
        f"this torch ({torch.__version__}) has no {missing}: {precision} saves memory here but is "
        "slower than float32",
        stacklevel=3,
    )


def describe_paths(precision: str) -> str:
    """How a precision's products run on this machine, in words; for benchmarks and reports."""
    if precision == "float32":
        return "float32 products"
    large = "bfloat16" if cpu.has_fast_bfloat16() else "float32"
    if precision in FLOATS:
        return f"{precision} for single rows, {large} for many"
    int8 = "int8 dynamic" if cpu.has_int8_linear() else "int8 expanded to float32"
    int8 += "" if cpu.has_vnni() or not cpu.has_int8_linear() else ", 7-bit activations (no VNNI)"
    if precision == "int8":
        return int8
    if not cpu.has_int4_linear():
        return f"int4 expanded to float32 layers, else {int8}"
    many = "int8" if is_expanded() else "int4"
    return f"int4 packed layers ({many} for many rows), else {int8}"


class ReducedHead(nn.Module):
    """A Head whose ranges of rows are made into a Linear when they are first asked for."""

    def __init__(self, n_rows: int, make: Callable[[slice], nn.Module]) -> None:
        """`make` gives the Linear of a range of the `n_rows` rows."""
        super().__init__()
        self.n_rows, self.make = n_rows, make
        self.parts: dict[tuple[int, int], nn.Module] = {}

    def forward(self, x: Tensor, rows: slice) -> Tensor:
        """Logits (..., V) of the given rows from x (..., C)."""
        first, last, _ = rows.indices(self.n_rows)
        if (first, last) not in self.parts:
            self.parts[first, last] = self.make(slice(first, last))
        out: Tensor = self.parts[first, last](x)
        return out


def lay_out(model: nn.Module) -> None:
    """Keep a model's small float32 matrices column after column in memory, in place.

    On a CPU a single row is multiplied by them up to twice as fast. Large ones are oneDNN's, which
    is fast with either (`ops.linear`), and stay where they are, in the mapped file.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() <= SMALL:
            columns = module.weight.detach().T.contiguous()
            module.weight = nn.Parameter(columns.T, requires_grad=False)


def reduce(model: GPT | FineGPT, state: Mapping[str, Tensor], precision: str) -> None:
    """Give a model its weights in a precision other than float32, in place.

    The fine model's tables stay float32: they are its heads too, and small. Nothing of `state` is
    kept, so that a mapped file can go when every stage has been made of it.

    Args:
        model: its own weights do not matter and may be on the meta device.
        state: weights in any floating type, or int8 matrices with their scales beside them.
        precision: one of `PRECISIONS`.
    """
    if isinstance(model, FineGPT):
        # All its products have many rows.
        many = "bfloat16" if cpu.has_fast_bfloat16() else "float16"
        precision = {"int4": "int8", "float16": many}.get(precision, precision)
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(SCALE)}
    for name, child in list(model.named_modules()):
        if isinstance(child, SelfAttention):
            child.product_dtype = torch.bfloat16 if cpu.has_fast_bfloat16() else None
        if not isinstance(child, nn.Linear) and name != "transformer.wte":
            continue
        weight, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias", None)
        scale = state.get(f"{name}.weight{SCALE}")
        if isinstance(child, Head):
            made = _head(weight, scale, precision)
        elif isinstance(child, nn.Linear):
            suffers = precision == "int4" and name.startswith("transformer.h.0.")
            kind = "int8" if suffers else precision
            if isinstance(model, FineGPT) and kind == "int8" and cpu.has_int8_many_rows():
                first = name.endswith("mlp.c_fc")
                made = Int8ManyRows(*rows_of(weight, scale), bias, gelu=first)
                if first:
                    model.set_submodule(name.replace("c_fc", "act"), nn.Identity())
            else:
                made = _linear(weight, scale, bias, kind)
                if isinstance(made, Int4Linear):
                    made.widen = name.endswith("c_attn")  # its answer is cached in float32
        else:
            made = _table(weight, scale, precision)
        model.set_submodule(name, made)
    floats = {
        name: floats_of(tensor, state.get(name + SCALE)).to(torch.float32, copy=True)
        for name, tensor in rest.items()
    }
    model.load_state_dict(floats, strict=True, assign=True)


def _linear(weight: Tensor, scale: Tensor | None, bias: Tensor | None, precision: str) -> nn.Module:
    if precision == "int4" and weight.shape[1] % GROUP == 0:
        return Int4Linear(floats_of(weight, scale), bias)
    if precision in FLOATS:
        return Linear16(floats_of(weight, scale).to(FLOATS[precision], copy=True), bias)
    return Int8Linear(*rows_of(weight, scale), bias)


def _table(weight: Tensor, scale: Tensor | None, precision: str) -> nn.Module:
    if precision in FLOATS:
        return Embedding16(floats_of(weight, scale).to(FLOATS[precision], copy=True))
    if precision == "int4" and weight.numel() > BIG_TABLE and weight.shape[1] % GROUP == 0:
        return Int4Embedding(floats_of(weight, scale))
    return Int8Embedding(*rows_of(weight, scale))


def _head(weight: Tensor, scale: Tensor | None, precision: str) -> nn.Module:
    if precision in FLOATS:
        floats = floats_of(weight, scale).to(FLOATS[precision], copy=True)
        return ReducedHead(len(floats), lambda rows: Linear16(floats[rows]))
    q, scales = (part.clone() for part in rows_of(weight, scale))
    return ReducedHead(len(q), lambda rows: Int8Linear(q[rows], scales[rows]))
