"""What TorchScript is made of: a layer of a step, its products, and attention over `KVCache`.

Each does what the module or cache does that it is named for, bit for bit. `scripted.py` puts them
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Block
from .abilities import has_onednn_linear
from .float16 import FEW_ROWS, Linear16
from .float32 import OneDNNLinear, SmallLinear
from .int4 import GROUP, Int4Linear
from .int8 import Int8Linear


class Layer(nn.Module):
    """What `Block` does for one step: rows x (B, C) -> (B, C)."""

    def __init__(
        self, block: Block, attend: Callable[..., Tensor], products: Sequence[Any]
    ) -> None:
        """`attend` is told q, k, v and operands, as the layer is; it must be a plain function."""
        super().__init__()
        self.attend = attend
        self.c_attn, self.c_proj, self.c_fc, self.c_out = products
        self.n_head, self.n_embd = block.attn.n_head, len(block.ln_1.weight)
        self.eps_1, self.eps_2 = block.ln_1.eps, block.ln_2.eps
        self.gelu = isinstance(block.mlp.act, nn.GELU)  # else c_fc ends in it

    def forward(
        self, x: Tensor, weights: list[Tensor], operands: list[Tensor], n_columns: int
    ) -> Tensor:
        """Rows (B, C), with LayerNorms' weights and those of products, over a cache's operands."""
        size, floats = [self.n_embd], weights[2:]
        y = F.layer_norm(x, size, weights[0], None, self.eps_1)
        qkv = self.c_attn(y, floats, 0).view(len(x), 3, self.n_head, 1, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        y = self.attend(q, k, v, operands, n_columns).reshape(x.shape)
        x = x + self.c_proj(y, floats, 1)
        y = F.layer_norm(x, size, weights[1], None, self.eps_2)
        y = self.c_fc(y, floats, 2)
        if self.gelu:
            y = F.gelu(y)
        out: Tensor = x + self.c_out(y, floats, 3)
        return out


class Float32(nn.Module):
    """What `OneDNNLinear` does for rows x."""

    def __init__(self, product: OneDNNLinear) -> None:
        super().__init__()
        self.gelu = product.gelu
        self.is_small, self.has_onednn = isinstance(product, SmallLinear), has_onednn_linear()

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        weight = floats[place]
        if self.is_small and (len(x) == 1 or not self.has_onednn):
            y = F.linear(x, weight)
            return F.gelu(y) if self.gelu else y
        after, algorithm = ("gelu", "none") if self.gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, after, [], algorithm)
        return out


class Int8(nn.Module):
    """What `Int8Linear` does, or `Int8Twice` for few rows x."""

    def __init__(self, product: Int8Linear, gelu: bool = False) -> None:
        super().__init__()
        self.packed, self.reduce_range = product.packed, product.reduce_range
        self.gelu = gelu

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return F.gelu(y) if self.gelu else y


class Int4(nn.Module):
    """What `Int4Linear` does for few rows x."""

    def __init__(self, product: Int4Linear) -> None:
        super().__init__()
        self.packed, self.scale_and_zero = product.packed, product.scale_and_zero
        self.widen, self.group = product.widen, GROUP

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group, self.scale_and_zero
        )
        return y.float() if self.widen else y


class Float16(nn.Module):
    """What `Linear16` does."""

    def __init__(self, product: Linear16) -> None:
        super().__init__()
        self.weight, self.large, self.few = product.weight, product.large, FEW_ROWS
        self.is_large = product.weight.dtype == product.large

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        weight = self.weight
        if not self.is_large and len(x) > self.few:
            weight = weight.to(self.large)
        return F.linear(x.to(weight.dtype), weight).float()


def attend(q: Tensor, k: Tensor, v: Tensor, operands: list[Tensor], n_columns: int) -> Tensor:
    """What `KVCache.attend` does: write k and v (B, H, 1, D), and what q sees."""
    kv, rows, newest, mask = operands
    keys, values = kv[0, : len(q), :, :n_columns], kv[1, : len(q), :, :n_columns]
    if mask.numel() == 0:
        keys[:, :, -1:] = k
        values[:, :, -1:] = v
        return F.scaled_dot_product_attention(q, keys, values)
    keys[rows, :, newest] = k[:, :, 0]
    values[rows, :, newest] = v[:, :, 0]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
