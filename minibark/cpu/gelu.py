"""GELU of a few rows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from . import abilities

MOST = 32 * 1024  # numbers, up to which torch's own loop is faster than oneDNN or as fast


def gelu_of_few(x: Tensor, most: int) -> Tensor:
    """GELU (erf) of x, of any shape, by torch's own loop up to `most` numbers.

    Torch hands what is contiguous to oneDNN, which takes 12 us longer to begin than a row of 3,072
    takes altogether. So torch is shown a transposed view. Also as TorchScript.
    """
    if x.numel() > most or x.numel() % 2 != 0 or x.numel() == 0:
        return gelu(x)
    return gelu(x.reshape(2, -1).t()).t().reshape(x.shape)


class FewGELU(nn.GELU):
    """GELU (erf) for a model whose steps have few rows.

    Attributes:
        most: up to how many numbers torch's own loop takes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = MOST if abilities.has_vector_loops() else 0

    def forward(self, x: Tensor) -> Tensor:
        """GELU of x."""
        return gelu_of_few(x, self.most)
