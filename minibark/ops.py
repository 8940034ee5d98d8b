"""The operations that have more than one implementation; plain torch is the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512  # queries, up to which torch's own attention is faster in any precision
BLOCK = 256  # queries that are worked on at once in causal attention of reduced precision


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, product_dtype: torch.dtype | None = None
) -> Tensor:
    """Softmax attention of every position over all positions, or over those up to itself.

    Args:
        q: queries (B, H, T, D); fewer of them than keys are the last ones, or there is no mask.
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        causal: True hides later positions from earlier ones.
        product_dtype: type of the two products on a CPU, less precise and faster; None is q's.

    Returns:
        (B, H, T, D), dtype of `q`.
    """
    if product_dtype is None or q.shape[2] <= SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return _attention_by_head(q, k, v, causal, product_dtype)


def _attention_by_head(q: Tensor, k: Tensor, v: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """One head after the other, so that its scores stay in the cache.

    If causal, in blocks of queries, each of which looks at the keys up to its last query only.
    """
    out = torch.empty_like(q)
    length, scale = q.shape[2], q.shape[-1] ** -0.5
    block = BLOCK if causal else length
    q, k, v = (x.to(dtype, memory_format=torch.contiguous_format) for x in (q, k, v))
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for first in range(0, length, block):
                last = min(first + block, length)
                seen = last if causal else k.shape[2]
                scores = (q[b, h, first:last] * scale) @ k[b, h, :seen].T
                if causal:
                    later = torch.ones(last - first, last - first, dtype=torch.bool).triu_(1)
                    scores[:, first:].masked_fill_(later, -torch.inf)
                out[b, h, first:last] = scores.softmax(-1) @ v[b, h, :seen]
    return out


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Softmax attention of one new position per row over that row's own past.

    Args:
        q: queries (B, H, 1, D).
        k: key buffer (B, H, T, D), filled up to `lengths[b]` in row b.
        v: value buffer (B, H, T, D), likewise.
        lengths: positions to attend to in each row, at least 1.

    Returns:
        (B, H, 1, D), dtype of `q`.
    """
    if lengths.count(lengths[0]) == len(lengths):
        n = lengths[0]
        return F.scaled_dot_product_attention(q, k[:, :, :n], v[:, :, :n])
    rows = [
        F.scaled_dot_product_attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n])
        for b, n in enumerate(lengths)
    ]
    return torch.cat(rows)
