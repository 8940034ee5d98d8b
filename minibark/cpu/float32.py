"""float32 products by oneDNN's linear, which torch has but does not take by itself.

It is a tenth faster than torch's own for many rows, up to twice for few, for single rows twice. It
has no gradient. Single rows are multiplied by small matrices as torch does, few rows by a copy of
the weight in oneDNN's order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import GPT, FineGPT, Head
from .abilities import has_onednn_linear, has_onednn_order

FEW = 64  # rows, up to which oneDNN's own order of a weight pays
TYPICAL = 8  # rows, for which that order is chosen
SMALL = 2**18  # numbers in a matrix up to which calling oneDNN for one row costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """X W^T + b, and GELU of it if asked for: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    if torch.compiler.is_compiling():  # which finds its own product, and does not know this one
        return _torch_linear(x, weight, bias, gelu)
    after, algorithm = ("gelu", "none") if gelu else ("none", "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], algorithm)
    return out


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


class OneDNNLinear(nn.Module):
    """A Linear over the weight and bias of another one.

    Attributes:
        gelu: whether GELU comes after it.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.gelu = plain.weight, plain.bias, False
        self._ordered = Ordered()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) -> (..., N)."""
        if _is_passage(x) and self.bias is None:
            return _multiply_passage(x, self.weight, self.gelu)
        return linear(x, self.factor(x), self.bias, self.gelu)

    def factor(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """These rows of the weight, in the order that is the fastest for x."""
        return self._ordered.rows(x, self.weight, rows)


class SmallLinear(OneDNNLinear):
    """The same with a small weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) -> (..., N)."""
        if _n_rows(x) == 1 or not has_onednn_linear():
            return _torch_linear(x, self.weight, self.bias, self.gelu)
        return linear(x, self.factor(x), self.bias, self.gelu)


class OneDNNHead(OneDNNLinear):
    """The same of a Head."""

    def forward(self, x: Tensor, ids: slice = slice(None)) -> Tensor:
        """Logits (..., V) of the output ids in `ids` from x (..., C)."""
        if _is_passage(x):
            return _multiply_passage(x, self.weight[ids])
        return linear(x, self.factor(x, ids))


class Ordered:
    """A weight in oneDNN's own order, for products of a few rows.

    So eight rows take a quarter less time. It is a copy, made for the first few rows that come, and
    one utterance never needs it: its positions are a passage, for which the copy is not used. One
    row is multiplied as ever, for its numbers must not depend on what was there before.

    Whoever loads or changes weights gets products of the new ones, unless he changes them in place
    where torch does not see it (`weight.data`, its NumPy view): then `made` is to be cleared.
    """

    def __init__(self) -> None:
        # By which rows, of which weight, in which state.
        self.made: dict[tuple[int, int], tuple[Tensor, tuple[int, int], Tensor]] = {}

    def rows(self, x: Tensor, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """What to multiply x (..., K) by: these rows of the weight (N, K), or that copy of them."""
        if (
            not 1 < _n_rows(x) <= FEW
            or _is_passage(x)
            or torch.compiler.is_compiling()
            or weight.is_inference()  # which counts no changes
            or not has_onednn_order()
        ):
            return weight[rows]
        first, last, _ = rows.indices(len(weight))
        made, now = self.made.get((first, last)), (weight._version, weight.data_ptr())
        if made is None or made[0] is not weight or made[1] != now:
            ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach()[rows], TYPICAL)
            self.made[first, last] = made = weight, now, ordered
        return made[2]

    def __reduce__(self) -> tuple[type[Ordered], tuple[()]]:
        return Ordered, ()  # copies and pickles make their own of their weights


def _is_passage(x: Tensor) -> bool:
    """Whether x (B, T, K) holds a few positions of utterances, and not one of each."""
    return x.ndim == 3 and x.shape[1] > 1 and _n_rows(x) <= FEW


def _multiply_passage(x: Tensor, weight: Tensor, gelu: bool = False) -> Tensor:
    """`linear` of a passage, as W X^T: 16 positions take oneDNN a quarter less time so."""
    out = linear(weight, x.flatten(0, 1), None, gelu)
    return out.T.contiguous().view(*x.shape[:2], len(weight))


def _n_rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def dress(model: GPT | FineGPT) -> None:
    """Give a float32 model the faster products, in place; it keeps the names of its weights.

    Large matrices stay where they are, in the mapped file: oneDNN is fast with either layout.
    """
    if isinstance(model, FineGPT) and has_onednn_linear():
        model.project = linear
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if module.weight.numel() <= SMALL:
            columns = module.weight.detach().T.contiguous()  # faster in either way
            module.weight = nn.Parameter(columns.T, requires_grad=False)
            if not isinstance(module, Head):
                model.set_submodule(name, SmallLinear(module))
        elif has_onednn_linear():
            dressed = OneDNNHead if isinstance(module, Head) else OneDNNLinear
            model.set_submodule(name, dressed(module))
    for block in model.transformer.blocks:
        if isinstance(block.mlp.c_fc, OneDNNLinear):
            block.mlp.c_fc.gelu, block.mlp.act = True, nn.Identity()
