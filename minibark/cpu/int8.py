"""int8 on a CPU."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.rows import dequantize_rows
from . import abilities
from .gelu import FewGELU
from .packed import Packed

MANY_ROWS = 32  # rows, from which a product of its own for many rows pays


class Int8Linear(Packed):
    """A Linear with int8 weights: x (..., K) float32 -> (..., N) float32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """From `quantize_rows`' (N, K) int8 and (N,) float32, and a bias (N,)."""
        super().__init__()
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        fast = abilities.has_int8_linear()
        self.scale = None if fast else scale.clone()
        self.weight = None if fast else weight.clone()
        self.packed = _pack_int8(weight, scale, self.bias) if fast else None
        # Without VNNI, pairs of 8-bit products saturate: one bit less for the activations.
        self.reduce_range = not abilities.has_vnni()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        if self.weight is not None and self.scale is not None:
            return F.linear(x, dequantize_rows(self.weight, self.scale), self.bias)
        out: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return out


class Int8ManyRows(Packed):
    """A Linear with int8 weights for many rows, and GELU after it if asked for.

    oneDNN's own operator: the same numbers as `Int8Linear`'s in half to three quarters of the time.
    It is for processors with VNNI, without which it saturates.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        gelu: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """From `quantize_rows`' (N, K) int8 and (N,) float32, and a bias (N,).

        `dtype` is that of the result, float32 or bfloat16.
        """
        super().__init__()
        self.gelu, self.dtype = gelu, dtype
        _hear_announcement()
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale, self.zero = scale.clone(), torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.after: tuple[str, list[float], str] = (
            ("gelu", [], "none") if gelu else ("none", [], "")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) float32 -> (..., N)."""
        rows, shape = x.reshape(-1, x.shape[-1]).contiguous(), (*x.shape[:-1], len(self.scale))
        low, high = (float(bound) for bound in torch.aminmax(rows))
        if not math.isfinite(high - low):
            return torch.full(shape, math.nan, dtype=self.dtype)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-12)
        zero = round(-low / scale)
        q = _to_bytes(rows, scale, zero, torch.quint8)
        weight = (self.packed, self.scale, self.zero, self.bias)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, scale, zero, *weight, 1.0, 0, self.dtype, *self.after
        )
        return out.view(shape)


class Twice(Packed):
    """A Linear with its weights kept twice, for few rows and for many, and GELU if asked for.

    For a model whose prompts recur.

    Attributes:
        few: the product for fewer than `MANY_ROWS` rows, which `act` follows.
        many: that for more.
    """

    def __init__(self, few: nn.Module, many: Int8ManyRows) -> None:
        super().__init__()
        self.few, self.many = few, many
        self.bias = many.bias
        self.act = FewGELU() if many.gelu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) -> (..., N)."""
        if x.numel() >= MANY_ROWS * x.shape[-1]:
            out: Tensor = self.many(x)
            return out
        y: Tensor = self.act(self.few(x))
        return y


class Int8Twice(Twice):
    """The same int8 weights in two orders."""

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, **options: Any
    ) -> None:
        """As `Int8ManyRows`, whose `dtype` is that of many rows' result; few rows' is float32."""
        super().__init__(
            Int8Linear(weight, scale, bias), Int8ManyRows(weight, scale, bias, **options)
        )


def multiply_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """X W, with an int8 matrix as it is, and X's rows quantized each over its own range.

    Needs `abilities.has_int8_matmul`.

    Args:
        x: (M, K) float32.
        weight: (K, N) int8.
        scale: (N,) float32, what a step of each column of `weight` stands for.

    Returns:
        (M, N) float32; rows of X that are not finite give no finite number.
    """
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    step = largest.div_(127).clamp_(min=1e-12)
    product = torch._int_mm(_to_bytes(x / step, 1.0, 0, torch.qint8), weight)
    return product.float().mul_(scale).mul_(step)


def _to_bytes(x: Tensor, scale: float, zero: int, dtype: torch.dtype) -> Tensor:
    """A contiguous x / scale + zero, rounded, in the bytes of torch.quint8 or torch.qint8."""
    quantized = torch.quantize_per_tensor(x, scale, zero, dtype)
    # Its bytes as they lie there: torch's casts and `int_repr` take five times as long.
    storage = quantized.untyped_storage()
    plain = torch.uint8 if dtype == torch.quint8 else torch.int8
    return torch.empty(0, dtype=plain).set_(storage, 0, x.shape, x.stride())


def _pack_int8(weight: Tensor, scale: Tensor, bias: Tensor | None) -> object:
    _hear_announcement()
    zero = torch.zeros(len(scale), dtype=torch.int64)
    tensor = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero, 0)
    return torch.ops.quantized.linear_prepack(tensor, bias)


@functools.cache
def _hear_announcement() -> None:
    """Let torch announce the end of quantized tensors, which it does once, to nobody.

    Here, while a stage is built, and not at every product: filters of warnings are the process's,
    and two threads that set and restore them can leave them set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(1, 1, dtype=torch.float32)
        torch.quantize_per_tensor(one, 1.0, 0, torch.qint8)
        zero = torch.zeros(1, dtype=torch.int64)
        torch._make_per_channel_quantized_tensor(one.char(), one[0].double(), zero, 0)
