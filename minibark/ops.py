"""The operations that have more than one implementation; plain torch is the reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 2**18  # numbers in a matrix up to which calling oneDNN costs more than it saves
SHORT = 512  # queries, up to which torch's own attention over all positions is faster
BLOCK = 160  # queries whose scores, of all heads, stay in the cache


@functools.cache
def has_onednn_linear() -> bool:
    """Whether torch has oneDNN's linear: a tenth faster than its own, for single rows twice as."""
    built: bool = torch._C._has_mkldnn
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or none.

    Returns:
        (..., N).
    """
    # oneDNN's operator has no gradient.
    if (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and weight.numel() > SMALL
        and torch.is_inference_mode_enabled()
        and has_onednn_linear()
    ):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, product_dtype: torch.dtype | None = None
) -> Tensor:
    """Softmax attention of every position over all positions, or over those up to itself.

    Args:
        q: queries (B, H, T, D); there may be fewer of them than keys: the last ones.
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        causal: True hides later positions from earlier ones.
        product_dtype: type of the two products of a long sequence on a CPU, where that is faster;
            None is q's.

    Returns:
        (B, H, T, D), dtype of `q`.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    if product_dtype is None or n_queries <= (BLOCK if causal else SHORT):
        if not causal or n_queries == n_keys:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
        seen = seen.tril_(n_keys - n_queries)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    out = torch.empty_like(q)
    q = q * q.shape[-1] ** -0.5
    q, k, v = (x.to(product_dtype, memory_format=torch.contiguous_format) for x in (q, k, v))
    (_causal_attention_by_block if causal else _attention_by_head)(q, k, v, out)
    return out


def _attention_by_head(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """One head after the other, so that its scores stay in the cache; q is scaled."""
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = (q[b, h] @ k[b, h].T).softmax(-1) @ v[b, h]


def _causal_attention_by_block(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """One block of queries after the other, over the keys up to its end; q is scaled."""
    hidden = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
    past = k.shape[2] - q.shape[2]
    for first in range(0, q.shape[2], BLOCK):
        last = min(first + BLOCK, q.shape[2])
        n = last - first
        scores = q[:, :, first:last] @ k[:, :, : past + last].transpose(2, 3)
        scores[..., past + first :] += hidden[:n, :n]
        out[:, :, first:last] = scores.softmax(-1) @ v[:, :, : past + last]


def common_length(lengths: Sequence[int]) -> int | None:
    """The length that all rows have, or None if they differ."""
    return lengths[0] if lengths.count(lengths[0]) == len(lengths) else None


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
    """Softmax attention of one new position per row over that row's own past.

    Args:
        q: queries (B, H, 1, D).
        k: key buffer (B, H, T, D), filled up to `lengths[b]` in row b.
        v: value buffer (B, H, T, D), likewise.
        lengths: positions to attend to in each row, at least 1. A tensor (B,) is not waited for:
            all T keys are read, and what is beyond a row's length must be finite.

    Returns:
        (B, H, 1, D), dtype of `q`.
    """
    if isinstance(lengths, Tensor):
        seen = torch.arange(k.shape[2], device=k.device) < lengths[:, None]  # (B, T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
    n = common_length(lengths)
    if n is not None:
        return F.scaled_dot_product_attention(q, k[:, :, :n], v[:, :, :n])
    rows = [
        F.scaled_dot_product_attention(q[b : b + 1], k[b : b + 1, :, :own], v[b : b + 1, :, :own])
        for b, own in enumerate(lengths)
    ]
    return torch.cat(rows)
