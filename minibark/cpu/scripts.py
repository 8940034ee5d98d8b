"""What TorchScript is made of: steps, their layers and products, and attention over `KVCache`.

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
from ..sampling import distribution
from .abilities import has_onednn_linear
from .float16 import FEW_ROWS, Linear16
from .gelu import FewGELU, gelu_of_few
from .int4 import GROUP, Int4Linear
from .int8 import Int8Linear
from .tables import ReducedTable, look_up


class Steps(nn.Module):
    """Steps of a causal model: each appends a token to every row and chooses the next."""

    def __init__(
        self, table: Any, layers: Sequence[nn.Module], heads: Sequence[Any], eps: float
    ) -> None:
        """`eps` is that of the final LayerNorm; each head is a product for one range of ids."""
        super().__init__()
        self.table, self.eps = table, eps
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)

    @torch.jit.export
    def logits(
        self,
        tokens: Tensor,
        floats: list[list[Tensor]],
        tables: list[list[Tensor]],
        step: tuple[Tensor, list[Tensor], int, int],
    ) -> Tensor:
        """Append one token (B,) to every row; logits (B, V).

        Args:
            tokens: (B,) int64.
            floats: tensors of each layer, and of what is around them: the token table, positions
                and the final LayerNorm, and a weight for each head.
            tables: a cache's tensors of each layer.
            step: new positions (B,), the cache's tensors of the step, its columns, and which head.
        """
        newest, operands, n_columns, which = step
        around = floats[-1]
        x = self.table(tokens, around) + around[1][newest]
        for i, layer in enumerate(self.layers):
            x = layer(x, floats[i], tables[i], operands, n_columns)
        x = F.layer_norm(x, [x.size(-1)], around[2], None, self.eps)
        out = x
        for i, head in enumerate(self.heads):
            if i == which:
                out = head(x, around[3:], i)
        return out.float()

    def forward(
        self,
        tokens: Tensor,
        floats: list[list[Tensor]],
        tables: list[list[Tensor]],
        steps: list[tuple[Tensor, list[Tensor], int, int]],
        firsts: list[int],
        noise: Tensor,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Several steps: the tokens (n, B) chosen, and the probability (n, B) of the last id.

        Args:
            tokens: (B,) int64.
            floats: as in `logits`.
            tables: as in `logits`.
            steps: each as in `logits`.
            firsts: the first id of each step.
            noise: by which probabilities (B, V) are divided, one of the n after the other.
            temperature: of `Sampling`.
            top_k: of `Sampling`.
            top_p: of `Sampling`.
        """
        chosen, last_p = [], []
        for i, step in enumerate(steps):
            logits = self.logits(tokens, floats, tables, step)
            probs = distribution(logits, temperature, top_k, top_p)
            last_p.append(probs[:, -1])
            tokens = (probs / noise[i]).argmax(-1) + firsts[i]
            chosen.append(tokens)
        return torch.stack(chosen), torch.stack(last_p)


class Rows32(nn.Module):
    """What `nn.Embedding` does for ids (B,)."""

    def forward(self, ids: Tensor, around: list[Tensor]) -> Tensor:
        """Rows (B, C) of the first tensor of those around the layers."""
        return F.embedding(ids, around[0])


class ReducedRows(nn.Module):
    """What `ReducedTable` does for ids (B,)."""

    def __init__(self, table: ReducedTable) -> None:
        super().__init__()
        self.weight, self.scale, self.dtype = table.weight, table.scale, table.dtype

    def forward(self, ids: Tensor, around: list[Tensor]) -> Tensor:
        """Rows (B, C) float32."""
        return look_up(ids, self.weight, self.scale, self.dtype)


class Layer(nn.Module):
    """What `Block` does for one step: rows x (B, C) -> (B, C)."""

    def __init__(
        self, block: Block, attend: Callable[..., Tensor], products: Sequence[Any]
    ) -> None:
        """`attend`, a plain function, is told q, k, v and what the layer is told of a cache."""
        super().__init__()
        self.attend = attend
        self.c_attn, self.c_proj, self.c_fc, self.c_out = products
        self.n_head, self.n_embd = block.attn.n_head, len(block.ln_1.weight)
        self.eps_1, self.eps_2 = block.ln_1.eps, block.ln_2.eps
        act = block.mlp.act
        self.gelu = isinstance(act, nn.GELU)  # else c_fc ends in it
        self.few_gelu = act.most if isinstance(act, FewGELU) else 0

    def forward(
        self,
        x: Tensor,
        weights: list[Tensor],
        tables: list[Tensor],
        operands: list[Tensor],
        n_columns: int,
    ) -> Tensor:
        """Rows (B, C), with LayerNorms' weights and those of products, over a cache.

        The cache's tables are those of the layer, its operands and columns those of the step.
        """
        size, floats = [self.n_embd], weights[2:]
        y = F.layer_norm(x, size, weights[0], None, self.eps_1)
        qkv = self.c_attn(y, floats, 0).view(len(x), 3, self.n_head, 1, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        y = self.attend(q, k, v, tables, operands, n_columns).reshape(x.shape)
        x = x + self.c_proj(y, floats, 1)
        y = F.layer_norm(x, size, weights[1], None, self.eps_2)
        y = self.c_fc(y, floats, 2)
        if self.gelu:
            y = gelu_of_few(y, self.few_gelu)
        out: Tensor = x + self.c_out(y, floats, 3)
        return out


class Float32(nn.Module):
    """What `OneDNNLinear` and `SmallLinear` do for rows x, and heads in float32."""

    def __init__(self, *, gelu: bool = False, by_torch: int = 0) -> None:
        """`by_torch` is up to how many rows torch's own product is taken."""
        super().__init__()
        self.gelu, self.by_torch, self.has_onednn = gelu, by_torch, has_onednn_linear()

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        weight = floats[place]
        if len(x) <= self.by_torch or not self.has_onednn:
            y = F.linear(x, weight)
            return F.gelu(y) if self.gelu else y
        after, algorithm = ("gelu", "none") if self.gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, after, [], algorithm)
        return out


class Int8(nn.Module):
    """What `Int8Linear` does for rows x, and GELU if asked for."""

    def __init__(self, product: Int8Linear, act: FewGELU | None = None) -> None:
        super().__init__()
        self.packed, self.reduce_range = product.packed, product.reduce_range
        self.gelu, self.few_gelu = act is not None, act.most if act else 0

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return gelu_of_few(y, self.few_gelu) if self.gelu else y


class Int4(nn.Module):
    """What `Int4Linear` does for few rows x, and GELU if asked for."""

    def __init__(self, product: Int4Linear, act: FewGELU | None = None) -> None:
        super().__init__()
        self.packed, self.scale_and_zero = product.packed, product.scale_and_zero
        self.widen, self.group = product.widen, GROUP
        self.gelu, self.few_gelu = act is not None, act.most if act else 0

    def forward(self, x: Tensor, floats: list[Tensor], place: int) -> Tensor:
        """Multiply x (B, K) -> (B, N); `floats` has a float32 weight at its place in the layer."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group, self.scale_and_zero
        )
        y = y.float() if self.widen else y
        return gelu_of_few(y, self.few_gelu) if self.gelu else y


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


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], operands: list[Tensor], n_columns: int
) -> Tensor:
    """What `KVCache.attend` does: write k and v (B, H, 1, D), and what q sees."""
    kv = tables[0]
    rows, newest, mask = operands
    keys, values = kv[0, : len(q), :, :n_columns], kv[1, : len(q), :, :n_columns]
    if mask.numel() == 0:
        keys[:, :, -1:] = k
        values[:, :, -1:] = v
        return F.scaled_dot_product_attention(q, keys, values)
    keys[rows, :, newest] = k[:, :, 0]
    values[rows, :, newest] = v[:, :, 0]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
