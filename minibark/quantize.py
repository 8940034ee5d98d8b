"""int8 weights on a CPU: a quarter of float32's memory, read in a quarter of the time.

    w[n, k] ~ scale[n] * q[n, k],    q in [-127, 127],    scale[n] = max_k |w[n, k]| / 127

Every matrix of a transformer has one scale per output channel, every embedding table one per row.
A product quantizes its activations too, over the range that they have in that call, and gives
float32; LayerNorms, attention, cache, logits and the codec stay float32. A checkpoint may hold q
and scale in place of w: quantizing what they stand for gives them again, bit for bit.

The fast product is torch's dynamic int8 linear, the one operator here that torch may drop one day:
`has_int8_linear` tells whether this torch has it, and plain torch multiplies where it has not.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import GPT, FineGPT, Head


def has_int8_linear() -> bool:
    """Whether this torch multiplies int8 matrices; without, int8 saves memory but no time."""
    return hasattr(torch.ops.quantized, "linear_dynamic") and (
        torch.backends.quantized.engine not in ("none", "qnnpack")
    )


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
        self.bias = None if bias is None else bias.detach().float()
        self.scale = scale
        self.weight = None if has_int8_linear() else weight
        self.packed = _pack(weight, scale, self.bias) if has_int8_linear() else None
        # Without VNNI, pairs of 8-bit products saturate: one bit less for the activations.
        self.reduce_range = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        if self.weight is not None:
            return F.linear(x, dequantize_rows(self.weight, self.scale), self.bias)
        out: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return out


class Int8Head(nn.Module):
    """A Head with int8 weights; each range of rows is packed when it is first asked for."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight, self.scale = quantize_rows(head.weight)
        self.parts: dict[tuple[int, int], Int8Linear] = {}

    def forward(self, x: Tensor, rows: slice) -> Tensor:
        """Logits (..., V) of the given rows from x (..., C)."""
        first, last, _ = rows.indices(len(self.scale))
        if (first, last) not in self.parts:
            self.parts[first, last] = Int8Linear(self.weight[first:last], self.scale[first:last])
        out: Tensor = self.parts[first, last](x)
        return out


class Int8Embedding(nn.Module):
    """An embedding table with int8 rows: ids (...) -> (..., C) float32."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.scale = quantize_rows(table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up."""
        return dequantize_rows(self.weight[ids], self.scale[ids])


def quantize(model: GPT | FineGPT) -> None:
    """Replace the large matrices of a float32 model on the CPU by int8 ones, in place.

    The fine model's tables stay: they are its heads too, and small.
    """
    for block in model.transformer.h:
        for name, child in list(block.named_modules()):
            if isinstance(child, nn.Linear):
                block.set_submodule(name, Int8Linear(*quantize_rows(child.weight), child.bias))
    if isinstance(model, GPT):
        table, head = model.transformer.wte, model.lm_head
        assert isinstance(table, nn.Embedding) and isinstance(head, Head)
        model.transformer.wte, model.lm_head = Int8Embedding(table), Int8Head(head)


def _pack(weight: Tensor, scale: Tensor, bias: Tensor | None) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of quantized tensors
        zero = torch.zeros(len(scale), dtype=torch.int64)
        tensor = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero, 0)
        return torch.ops.quantized.linear_prepack(tensor, bias)
