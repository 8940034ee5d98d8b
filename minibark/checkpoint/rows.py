"""int8 rows: w[n, k] ~ scale[n] * q[n, k], q in [-127, 127], as they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import State

SCALE = "_scale"  # a state dict has an int8 matrix as NAME (N, K) and NAME_scale (N,) float32


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as int8 (N, K) in [-127, 127] and one float32 scale (N,) per row."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def dequantize_rows(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 rows (..., K) that int8 rows (..., K) and their scales (...) stand for."""
    return q.float().mul_(scale[..., None])


def floats_state(state: State, dtype: torch.dtype) -> State:
    """A state without int8."""
    floats = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.int8:
            tensor = dequantize_rows(tensor, state[f"{name}{SCALE}"])
        if not name.endswith(SCALE):
            floats[name] = tensor.to(dtype)
    return floats


def int8_state(state: State) -> State:
    """A state whose matrices are all int8, with scales beside them."""
    quantized = {}
    for name, tensor in state.items():
        quantized[name] = tensor
        if tensor.ndim == 2 and tensor.dtype != torch.int8:
            quantized[name], quantized[f"{name}{SCALE}"] = quantize_rows(tensor)
    return quantized


def floats_of(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A weight in floats; `scale` is there if it is int8."""
    return weight if scale is None else dequantize_rows(weight, scale)


def rows_of(weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """A weight in int8 with its scales; `scale` is there if it is so already."""
    return quantize_rows(weight) if scale is None else (weight, scale)
