"""The operations that have more than one implementation; plain torch is the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Softmax attention of every position over all positions, or over those up to itself.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        causal: True hides later positions from earlier ones.

    Returns:
        (B, H, T, D), dtype of `q`.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


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
