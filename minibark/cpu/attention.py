"""Attention over long sequences with products in bfloat16, where the processor multiplies it.

Torch's own reads and writes the scores of all queries. Here those of one head, or of one block of
queries, are made and used up while they are in the cache. What comes out is float32 and lies as q
does: the heads of a position side by side, as they are multiplied next.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import GPT, Attend, FineGPT, causal_attention, full_attention
from .abilities import has_fast_bfloat16

SHORT = 512  # queries, up to which torch's own attention over all positions is faster
BLOCK = 160  # queries whose scores, of all heads, stay in the cache


def dress(model: GPT | FineGPT) -> None:
    """Give a model whose precision is not float32 the faster attention and heads, in place."""
    if has_fast_bfloat16():
        if isinstance(model, FineGPT):
            model.project = in_bfloat16
        attend: Attend = causal_by_block if isinstance(model, GPT) else full_by_head
        for block in model.transformer.blocks:
            block.attn.attend = attend


def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T, both rounded to bfloat16."""
    return F.linear(x.bfloat16(), weight.bfloat16())


def full_by_head(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """As `full_attention`, one head after the other, with products in a dtype; gives float32."""
    if q.shape[2] <= SHORT:
        return full_attention(q.float(), k.float(), v.float())
    out = torch.empty_like(q, dtype=torch.float32)
    q, k, v = (q * q.shape[-1] ** -0.5).to(dtype), k.to(dtype), v.to(dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = (q[b, h] @ k[b, h].T).softmax(-1) @ v[b, h]
    return out


def causal_by_block(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """As `causal_attention`, one block of queries after the other, over the keys up to its end."""
    n = q.shape[2]
    if n <= BLOCK:
        return causal_attention(q.float(), k.float(), v.float())
    out = torch.empty_like(q, dtype=torch.float32)
    # Transposed whole: `bmm` would copy each block's keys, column by column.
    q, k, v = (x.to(dtype).contiguous() for x in (q, k.mT, v))
    q = q * q.shape[-1] ** -0.5
    hidden = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
    for b in range(q.shape[0]):
        for first in range(0, n, BLOCK):
            last = min(first + BLOCK, n)
            # By `bmm`, since `matmul` copies what is part of a tensor first.
            scores = torch.bmm(q[b, :, first:last], k[b, :, :, :last])
            scores[..., first:] += hidden[: last - first, : last - first]
            out[b, :, first:last] = torch.bmm(scores.softmax(-1), v[b, :, :last])
    return out
