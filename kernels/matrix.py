"""The parameters of a linear layer and of a LayerNorm, as the kernels take them."""

from typing import NamedTuple

from torch import Tensor


class Matrix(NamedTuple):
    """A linear layer's parameters.

    Attributes:
        weight: (N, K) in float32, float16, bfloat16 or int8.
        scale: (N,) float32 where `weight` is int8, else None.
        bias: (N,), or None.
    """

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    def floats(self) -> Tensor:
        """The weight (N, K) in float32."""
        weight = self.weight.float()
        return weight if self.scale is None else weight * self.scale[:, None]


class Norm(NamedTuple):
    """A LayerNorm's parameters: weight (K,), bias (K,) or None, what is added to the variance."""

    weight: Tensor
    bias: Tensor | None
    eps: float
