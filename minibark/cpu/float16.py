"""16 bits on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import abilities
from .packed import Packed

FEW_ROWS = 4  # up to so many, torch multiplies float16 fast on a CPU


class Linear16(Packed):
    """A Linear with 16-bit weights: x (..., K) float32 -> (..., N) float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """From a weight (N, K) in float16 or bfloat16 and a bias (N,)."""
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype, copy=True)
        self.large = torch.bfloat16 if abilities.has_fast_bfloat16() else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K)."""
        weight, bias = self.weight, self.bias
        if weight.dtype != self.large and x.numel() > FEW_ROWS * x.shape[-1]:
            weight = weight.to(self.large)
            bias = None if bias is None else bias.to(self.large)
        return F.linear(x.to(weight.dtype), weight, bias).float()
