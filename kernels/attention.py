"""Attention of every position over all positions, or over those up to itself, in tiles.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j,   j <= i if causal

Queries may be fewer than keys: then they are those of the last positions.

A program owns BLOCK_Q queries of one head and walks over the keys, BLOCK_K at a time, with a
running maximum and sum per query, so that the (T, T) scores never leave the chip. A causal program
stops at its diagonal.

Source: Milakov and Gimelshein 2018 (online softmax); Dao 2023 (FlashAttention-2), algorithm 1.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check_qkv


@triton.jit
def _attention_kernel(
    q_ptr,  # (B, H, Q, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    out_ptr,  # (B, H, Q, D), out
    stride_qb,
    stride_qh,
    stride_qt,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    stride_ob,
    stride_oh,
    stride_ot,
    H,
    Q,
    T,
    scale,  # log2(e) / sqrt(D), so that exp2 gives the softmax
    CAUSAL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    D: tl.constexpr,
):
    row = tl.program_id(0)
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest causal blocks start first
    b = (row // H).to(tl.int64)
    h = (row % H).to(tl.int64)

    d = tl.arange(0, D)
    i = block * BLOCK_Q + tl.arange(0, BLOCK_Q)  # a query; its position is T - Q + i
    k_row = k_ptr + b * stride_kb + h * stride_kh
    v_row = v_ptr + b * stride_vb + h * stride_vh
    q = tl.load(
        q_ptr + b * stride_qb + h * stride_qh + i[:, None] * stride_qt + d[None, :],
        mask=i[:, None] < Q,
        other=0.0,
    )  # (BLOCK_Q, D)
    running_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    running_sum = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, D), tl.float32)
    end = tl.minimum(T - Q + (block + 1) * BLOCK_Q, T) if CAUSAL else T
    for first in range(0, end, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        k = tl.load(
            k_row + j[None, :] * stride_kt + d[:, None], mask=j[None, :] < T, other=0.0
        )  # (D, BLOCK_K)
        v = tl.load(
            v_row + j[:, None] * stride_vt + d[None, :], mask=j[:, None] < T, other=0.0
        )  # (BLOCK_K, D)
        # "ieee" keeps float32 out of the tensor cores' 10-bit mantissa; half precisions ignore it.
        scores = tl.dot(q, k, input_precision="ieee") * scale  # (BLOCK_Q, BLOCK_K) float32
        visible = j[None, :] < T
        if CAUSAL:
            visible = visible & (j[None, :] <= T - Q + i[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        rescale = tl.exp2(running_max - new_max)
        p = tl.exp2(scores - new_max[:, None])
        running_sum = running_sum * rescale + tl.sum(p, axis=1)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        running_max = new_max

    out = acc / running_sum[:, None]
    tl.store(
        out_ptr + b * stride_ob + h * stride_oh + i[:, None] * stride_ot + d[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=i[:, None] < Q,
    )


def choose_tiles(row_bytes: int) -> tuple[int, int, int]:
    """Return (BLOCK_Q, BLOCK_K, num_warps) that keep a program's tiles in registers.

    Args:
        row_bytes: size of one query, key or value: D times the size of an element.
    """
    block_q = 64 if row_bytes <= 512 else 32
    block_k = max(16, min(64, 8192 // row_bytes))
    return block_q, block_k, 4 if row_bytes < 256 else 8


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Softmax attention of every position over all, or those up to itself, without gradients.

    Args:
        q: queries (B, H, Q, D) of the last Q of T positions; D a power of two in [16, 256], any
            strides but 1 in the last dimension.
        k: keys (B, H, T, D), likewise, dtype of `q`.
        v: values (B, H, T, D), likewise, dtype of `q`.
        causal: True hides later positions from earlier ones.

    Returns:
        (B, H, Q, D), dtype of `q`; (B, Q, H, D) in memory, so that joining heads copies nothing.

    Raises:
        TypeError: a dtype other than float32, float16 or bfloat16, or than that of `q`.
        ValueError: other shapes, or tensors that are not on the GPU.
    """
    check_qkv(q, k, v, _attention_kernel)
    n_batch, n_head, n_queries, head_size = q.shape
    if n_queries > k.shape[2]:
        raise ValueError(f"there are {n_queries} queries for {k.shape[2]} keys")
    block_q, block_k, num_warps = choose_tiles(head_size * q.element_size())
    out = torch.empty(
        (n_batch, n_queries, n_head, head_size), device=q.device, dtype=q.dtype
    ).transpose(1, 2)
    with torch.cuda.device(q.get_device()):
        _attention_kernel[(n_batch * n_head, -(-n_queries // block_q))](
            q,
            k,
            v,
            out,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            n_head,
            n_queries,
            k.shape[2],
            math.log2(math.e) / math.sqrt(head_size),
            CAUSAL=causal,
            BLOCK_Q=block_q,
            BLOCK_K=block_k,
            D=head_size,
            num_warps=num_warps,
            num_stages=2,
        )
    return out


def attention_ref(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Same as `attention`, by the equation and in float32."""
    scores = q.float() @ k.float().mT / math.sqrt(q.shape[3])  # (B, H, Q, T)
    if causal:
        n_before = k.shape[2] - q.shape[2]
        hidden = torch.ones(scores.shape[2:], device=q.device, dtype=torch.bool).triu(1 + n_before)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(dim=-1) @ v.float()).to(q.dtype)
