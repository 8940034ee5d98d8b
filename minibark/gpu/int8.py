"""int8 weights as kept on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.rows import SCALE, dequantize_rows, floats_of, rows_of
from ..model import GPT, FineGPT, Head

FOR_INT8 = torch.bfloat16  # what is not int8 in an int8 model on a GPU


class Int8Linear(nn.Module):
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


def reduce_to_int8(model: GPT | FineGPT, state: Mapping[str, Tensor]) -> None:
    """Give a model int8 layers for a GPU, and all else in bfloat16, in place; on the CPU still."""
    rest = {name: tensor for name, tensor in state.items() if not name.endswith(SCALE)}
    for name, child in list(model.named_modules()):
        if isinstance(child, nn.Linear) and not isinstance(child, Head):
            weight, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias", None)
            rows = rows_of(weight, state.get(f"{name}.weight{SCALE}"))
            model.set_submodule(name, Int8Linear(*rows, bias))
    own = {name: buffer for name, buffer in model.named_buffers()}
    floats = {
        name: floats_of(tensor, state.get(name + SCALE)).to(FOR_INT8, copy=True)
        for name, tensor in rest.items()
    }
    model.load_state_dict(own | floats, strict=True, assign=True)
