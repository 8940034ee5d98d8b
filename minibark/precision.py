"""What a precision means: how the large matrices are kept and multiplied.

    float16, bfloat16   matrices and tables in 16 bits
    int8                w[n, k] ~ scale[n] * q[n, k],                     q in [-127, 127]
    int4                w[n, k] ~ scale[n, g] * (q[n, k] - 8) + zero[n, g],  q in [0, 15],
                        with g = k // 32, a scale and a zero for each group of 32 columns

On a GPU the floating precisions are torch's own, and int8 is kept so that it is read fast: matrices
of the layers in int8, all else, activations too, in bfloat16. The rest of this page is about CPUs.

Whatever it is, a product takes float32 and gives float32; LayerNorms, cache, logits and the codec
are float32. int8's products quantize their activations too, over the range that they have in that
call. int4 is for the causal models' layers, whose steps read every weight for one position, and
their text tables. What changes the tokens more stays int8: the first layer, the heads, the small
tables. So does the fine model, whose products are bound by arithmetic.

Three torch operators here may be missing or slow in another torch or on another processor.
`describe_paths` tells which are used; where one is missing, plain torch gives the same within
rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import GPT, FineGPT, Head, SelfAttention
from .ops import SMALL

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRECISIONS = (*FLOATS, "int8", "int4")
SCALE = "_scale"  # a state dict has an int8 matrix as NAME (N, K) and NAME_scale (N,) float32
GROUP = 32  # columns that share a scale in int4
BIG_TABLE = 2**25  # numbers in a table from which it is int4: the released text tables
FOR_INT8 = torch.bfloat16  # what is not int8 in an int8 model on a GPU
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


# ---- what this torch and this processor can do


def has_int8_linear() -> bool:
    """Whether this torch multiplies int8 matrices; without, int8 saves memory but no time."""
    return hasattr(torch.ops.quantized, "linear_dynamic") and (
        torch.backends.quantized.engine not in ("none", "qnnpack")
    )


def has_int8_many_rows() -> bool:
    """Whether this torch has oneDNN's product of int8 matrices, and the processor is fit for it."""
    names = ("qlinear_prepack", "qlinear_pointwise")
    found = all(hasattr(torch.ops.onednn, name) for name in names)
    return found and has_vnni() and hasattr(torch, "quantize_per_tensor")


def has_int4_linear() -> bool:
    """Whether this torch multiplies int4 matrices on a CPU; without, int4 only saves memory."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and hasattr(
        torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"
    )


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; others are faster in float32."""
    return _processor_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_vnni() -> bool:
    """Whether this processor adds 8-bit products without saturating."""
    return _processor_has("_is_vnni_supported", "_is_avx512_vnni_supported")


def _processor_has(*tests: str) -> bool:
    """Whether one of `torch.cpu`'s tests says so; this torch need not have them."""
    return any(getattr(torch.cpu, name, lambda: False)() for name in tests)


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Say now, not in the middle, that this torch lacks an operator that makes a precision fast."""
    if device.type != "cpu":
        return
    if precision in ("int8", "int4") and not has_int8_linear():
        missing = "quantized::linear_dynamic"
    elif precision == "int4" and not has_int4_linear():
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
    large = "bfloat16" if has_fast_bfloat16() else "float32"
    if precision in FLOATS:
        return f"{precision} for single rows, {large} for many"
    int8 = "int8 dynamic" if has_int8_linear() else "int8 expanded to float32"
    int8 += "" if has_vnni() or not has_int8_linear() else ", 7-bit activations (no VNNI)"
    if precision == "int8":
        return int8
    return f"{'int4 packed' if has_int4_linear() else 'int4 expanded'} layers, else {int8}"


# ---- 16 bits


class Linear16(nn.Module):
    """A Linear with 16-bit weights: x (..., K) float32 -> (..., N) float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """From a weight (N, K) in float16 or bfloat16 and a bias (N,)."""
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype, copy=True)
        self.large = torch.bfloat16 if has_fast_bfloat16() else torch.float32

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


# ---- int8


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as int8 (N, K) in [-127, 127] and one float32 scale (N,) per row."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def dequantize_rows(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 rows (..., K) that int8 rows (..., K) and their scales (...) stand for."""
    return q.float().mul_(scale[..., None])


class Int8Linear(nn.Module):
    """A Linear with int8 weights: x (..., K) float32 -> (..., N) float32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """From `quantize_rows`' (N, K) int8 and (N,) float32, and a bias (N,)."""
        super().__init__()
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        fast = has_int8_linear()
        self.scale = None if fast else scale.clone()
        self.weight = None if fast else weight.clone()
        self.packed = _pack_int8(weight, scale, self.bias) if has_int8_linear() else None
        # Without VNNI, pairs of 8-bit products saturate: one bit less for the activations.
        self.reduce_range = not has_vnni()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        if self.weight is not None and self.scale is not None:
            return F.linear(x, dequantize_rows(self.weight, self.scale), self.bias)
        out: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return out


class Int8ManyRows(nn.Module):
    """A Linear with int8 weights for many rows, and GELU after it if asked for.

    oneDNN's own operator: the same numbers as `Int8Linear`'s in half to three quarters of the time.
    It is for processors with VNNI, without which it saturates.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, gelu: bool = False
    ) -> None:
        """From `quantize_rows`' (N, K) int8 and (N,) float32, and a bias (N,)."""
        super().__init__()
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale, self.zero = scale.clone(), torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.after: tuple[str, list[float], str] = (
            ("gelu", [], "none") if gelu else ("none", [], "")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) -> (..., N) float32."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        low, high = (float(bound) for bound in torch.aminmax(rows))
        if not math.isfinite(high - low):
            return x.new_full((*x.shape[:-1], len(self.scale)), math.nan)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-12)
        zero = round(-low / scale)
        q = _to_bytes(rows, scale, zero)
        weight = (self.packed, self.scale, self.zero, self.bias)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, scale, zero, *weight, 1.0, 0, torch.float32, *self.after
        )
        return out.view(*x.shape[:-1], len(self.scale))


def _to_bytes(x: Tensor, scale: float, zero: int) -> Tensor:
    """A contiguous x / scale + zero, rounded, as uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces, once, the end of quantized tensors
        quantized = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    # Its bytes as they lie there: torch's casts and `int_repr` take five times as long.
    storage = quantized.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, x.shape, x.stride())


class Int8Embedding(nn.Module):
    """An embedding table with int8 rows: ids (...) -> (..., C) float32."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """From `quantize_rows`' (N, C) int8 and (N,) float32."""
        super().__init__()
        self.weight, self.scale = weight.clone(), scale.clone()

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        return dequantize_rows(self.weight[ids], self.scale[ids])


class Int8Weight(nn.Module):
    """A Linear whose int8 weights are expanded for each product: x (..., K) -> (..., N), x's dtype.

    For GPUs, where one row goes through the kernels, which read the int8 weights themselves, and
    the cost of expanding is small beside products of many rows.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """From `quantize_rows`' (N, K) int8 and (N,) float32, and a bias (N,)."""
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", weight.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().to(FOR_INT8))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        return F.linear(x, dequantize_rows(self.weight, self.scale).to(x.dtype), self.bias)


def _pack_int8(weight: Tensor, scale: Tensor, bias: Tensor | None) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of quantized tensors
        zero = torch.zeros(len(scale), dtype=torch.int64)
        tensor = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero, 0)
        return torch.ops.quantized.linear_prepack(tensor, bias)


# ---- int4


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as 4-bit numbers in groups of `GROUP` columns.

    Of several ranges for each group, the one with the least squared error is taken: leaving out
    the extremes often costs less than a coarse step for all. Each range is fitted to its numbers
    once more by least squares.

    Returns:
        q: (N, K) int32 in [0, 15].
        scale_and_zero: (N, K / GROUP, 2) bfloat16.

    Raises:
        ValueError: K is not a multiple of `GROUP`.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"int4 needs a multiple of {GROUP} columns, got {weight.shape[1]}")
    # In parts, so that what is only needed on the way stays small and in the cache.
    parts = [_quantize_groups(part) for part in torch.split(weight, 128)]
    q, scale_and_zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return q, scale_and_zero


def _quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    q, scale, zero = torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low)
    mean = groups.mean(-1, keepdim=True)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        s = ((high - low) * (share / 15)).clamp(min=1e-12).bfloat16().float()
        z = ((high + low + s) / 2).bfloat16().float()
        for _ in range(2):
            tried = ((groups - z) / s).round_().add_(8).clamp_(0, 15)
            error = ((tried - 8) * s + z - groups).square().sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            q, scale, zero = (
                torch.where(better, new, old) for new, old in ((tried, q), (s, scale), (z, zero))
            )
            centred = tried - tried.mean(-1, keepdim=True)
            s = (centred * groups).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True)
            s = s.nan_to_num().clamp(min=1e-12).bfloat16().float()
            z = (mean - (tried.mean(-1, keepdim=True) - 8) * s).bfloat16().float()
    return q.flatten(1).int(), torch.cat((scale, zero), dim=-1).bfloat16()


def dequantize_groups(q: Tensor, scale_and_zero: Tensor) -> Tensor:
    """The float32 matrix (N, K) that `quantize_groups`' answer stands for."""
    scale, zero = scale_and_zero.float().unbind(-1)
    groups = q.view(len(q), -1, GROUP).float() - 8
    floats: Tensor = groups * scale[..., None] + zero[..., None]
    return floats.flatten(1)


def _pack_nibbles(q: Tensor) -> Tensor:
    """Numbers (N, K) in [0, 15] as bytes (N, K / 2)."""
    return (q[:, ::2] * 16 + q[:, 1::2]).to(torch.uint8)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """The numbers (N, K) of `_pack_nibbles`' bytes."""
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1)


class Int4Embedding(nn.Module):
    """An embedding table with int4 rows: ids (...) -> (..., C) float32."""

    def __init__(self, weight: Tensor) -> None:
        """From a table (N, C) of any floating type."""
        super().__init__()
        # A large table at a time would need several times its own size on the way.
        parts = [quantize_groups(part) for part in torch.split(weight, 4096)]
        self.packed = torch.cat([_pack_nibbles(q) for q, _ in parts])  # (N, C / 2)
        self.scale_and_zero = torch.cat([both for _, both in parts])  # (N, C / GROUP, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        flat = ids.flatten()
        rows = dequantize_groups(_unpack_nibbles(self.packed[flat]), self.scale_and_zero[flat])
        return rows.view(*ids.shape, rows.shape[1])


class Int4Linear(nn.Module):
    """A Linear with int4 weights in groups: x (..., K) -> (..., N) float32.

    The operator takes and gives bfloat16. With `widen` False its answer is left so, where what
    follows rounds it to that anyway or adds it to float32: the same numbers with fewer calls.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, widen: bool = True) -> None:
        """From a weight (N, K) of any floating type and a bias (N,)."""
        super().__init__()
        self.widen = widen
        q, scale_and_zero = quantize_groups(weight)
        self.n_out = len(q)
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.fast = has_int4_linear() and len(q) % 16 == 0
        if self.fast:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 2)
            self.scale_and_zero = scale_and_zero.transpose(0, 1).contiguous()  # (K / GROUP, N, 2)
        else:
            self.packed = _pack_nibbles(q)
            self.scale_and_zero = scale_and_zero

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        if not self.fast:
            weight = dequantize_groups(_unpack_nibbles(self.packed), self.scale_and_zero)
            return F.linear(x.float(), weight, self.bias)
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.bfloat16(), self.packed, GROUP, self.scale_and_zero
        )
        out = out if x.ndim == 2 else out.view(*x.shape[:-1], self.n_out)
        if self.bias is not None:
            return out.float().add_(self.bias)
        return out.float() if self.widen else out


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
        many = "bfloat16" if has_fast_bfloat16() else "float16"
        precision = {"int4": "int8", "float16": many}.get(precision, precision)
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(SCALE)}
    for name, child in list(model.named_modules()):
        if isinstance(child, SelfAttention):
            child.product_dtype = torch.bfloat16 if has_fast_bfloat16() else None
        if not isinstance(child, nn.Linear) and name != "transformer.wte":
            continue
        weight, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias", None)
        scale = state.get(f"{name}.weight{SCALE}")
        if isinstance(child, Head):
            made = _head(weight, scale, precision)
        elif isinstance(child, nn.Linear):
            suffers = precision == "int4" and name.startswith("transformer.h.0.")
            kind = "int8" if suffers else precision
            if isinstance(model, FineGPT) and kind == "int8" and has_int8_many_rows():
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
