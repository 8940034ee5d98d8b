"""What a precision means: how the large matrices are kept and multiplied.

    float16, bfloat16   matrices and tables in 16 bits
    int8                a scale for each row (`int8.py`)
    int4                a scale and a zero for each 32 numbers of a row (`int4.py`)

On a GPU the floating precisions are torch's own, and int8 is kept so that it is read fast: matrices
of the layers in int8, all else, activations too, in bfloat16. The rest of this page is about CPUs.

Whatever it is, a product takes float32 and gives float32; LayerNorms, cache, logits and the codec
are float32. int4 is for the causal models' layers, whose steps read every weight for one position,
and their text tables. What changes the tokens more stays int8: the first layer, the heads, the
small tables. So does the fine model, whose products are bound by arithmetic.

Operators that make this fast may be missing or slow elsewhere (`cpu.py`); `describe_paths` tells
which are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu
from .int4 import GROUP, Int4Embedding, Int4Linear, is_expanded
from .int8 import (
    FOR_INT8,
    Int8Embedding,
    Int8Linear,
    Int8ManyRows,
    Int8Weight,
    dequantize_rows,
    quantize_rows,
)
from .model import GPT, FineGPT, Head, SelfAttention
from .ops import SMALL

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRECISIONS = (*FLOATS, "int8", "int4")
SCALE = "_scale"  # a state dict has an int8 matrix as NAME (N, K) and NAME_scale (N,) float32
BIG_TABLE = 2**25  # numbers in a table from which it is int4: the released text tables
FEW_ROWS = 4  # up to so many, torch multiplies float16 fast on a CPU


def parse_precision(name: str) -> str:
    """The name, if it is one of `PRECISIONS`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; expected {', '.join(PRECISIONS)}")
    return name


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        ValueError: an unknown name, or one that does not run there.
    """
    parse_precision(name)
    places = {"int8": ("cpu", "cuda"), "int4": ("cpu",)}.get(name)
    if places and device.type not in places:
        raise ValueError(
            f"precision {name!r} runs on {' and '.join(places)}, not on {device.type!r}; "
            "take bfloat16 there"
        )


def is_reduced(name: str, device: torch.device) -> bool:
    """Whether a precision on a device asks for `reduce`, not just for another type."""
    return name == "int8" or (device.type == "cpu" and name != "float32")


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


# ---- 16 bits


class Linear16(nn.Module):
    """A Linear with 16-bit weights: x (..., K) float32 -> (..., N) float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """From a weight (N, K) in float16 or bfloat16 and a bias (N,)."""
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype, copy=True)
        self.large = torch.bfloat16 if cpu.has_fast_bfloat16() else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        weight, bias = self.weight, self.bias
        if weight.dtype != self.large and x.numel() > FEW_ROWS * x.shape[-1]:
            weight = weight.to(self.large)
            bias = None if bias is None else bias.to(self.large)
        return F.linear(x.to(weight.dtype), weight, bias).float()


class Embedding16(nn.Module):
    """An embedding table in 16 bits: ids (...) -> (..., C) float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        return F.embedding(ids, self.weight).float()


# ---- whole models


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


def reduce(
    model: GPT | FineGPT,
    state: Mapping[str, Tensor],
    precision: str,
    device: torch.device | None = None,
) -> None:
    """Give a model its weights in a precision other than float32, in place.

    The fine model's tables stay float32: they are its heads too, and small. Nothing of `state` is
    kept, so that a mapped file can go when every stage has been made of it.

    Args:
        model: its own weights do not matter and may be on the meta device.
        state: weights in any floating type, or int8 matrices with their scales beside them.
        precision: one of `PRECISIONS`.
        device: where it will run, if not on a CPU; the weights stay on the CPU.
    """
    if device is not None and device.type != "cpu":
        _reduce_to_int8_weights(model, state)
        return
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
                made = Int8ManyRows(*_rows(weight, scale), bias, gelu=first)
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
        name: _floats(tensor, state.get(name + SCALE)).to(torch.float32, copy=True)
        for name, tensor in rest.items()
    }
    model.load_state_dict(floats, strict=True, assign=True)


def _reduce_to_int8_weights(model: GPT | FineGPT, state: Mapping[str, Tensor]) -> None:
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(SCALE)}
    for name, child in list(model.named_modules()):
        if isinstance(child, nn.Linear) and not isinstance(child, Head):
            weight, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias", None)
            rows = _rows(weight, state.get(f"{name}.weight{SCALE}"))
            model.set_submodule(name, Int8Weight(*rows, bias))
    own = {name: buffer for name, buffer in model.named_buffers()}
    floats = {
        name: _floats(tensor, state.get(name + SCALE)).to(FOR_INT8, copy=True)
        for name, tensor in rest.items()
    }
    model.load_state_dict(own | floats, strict=True, assign=True)


def _linear(weight: Tensor, scale: Tensor | None, bias: Tensor | None, precision: str) -> nn.Module:
    if precision == "int4" and weight.shape[1] % GROUP == 0:
        return Int4Linear(_floats(weight, scale), bias)
    if precision in FLOATS:
        return Linear16(_floats(weight, scale).to(FLOATS[precision], copy=True), bias)
    return Int8Linear(*_rows(weight, scale), bias)


def _table(weight: Tensor, scale: Tensor | None, precision: str) -> nn.Module:
    if precision in FLOATS:
        return Embedding16(_floats(weight, scale).to(FLOATS[precision], copy=True))
    if precision == "int4" and weight.numel() > BIG_TABLE and weight.shape[1] % GROUP == 0:
        return Int4Embedding(_floats(weight, scale))
    return Int8Embedding(*_rows(weight, scale))


def _head(weight: Tensor, scale: Tensor | None, precision: str) -> nn.Module:
    if precision in FLOATS:
        floats = _floats(weight, scale).to(FLOATS[precision], copy=True)
        return ReducedHead(len(floats), lambda rows: Linear16(floats[rows]))
    q, scales = (part.clone() for part in _rows(weight, scale))
    return ReducedHead(len(q), lambda rows: Int8Linear(q[rows], scales[rows]))


def _floats(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else dequantize_rows(weight, scale)


def _rows(weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return quantize_rows(weight) if scale is None else (weight, scale)
