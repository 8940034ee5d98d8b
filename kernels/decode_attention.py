"""Attention of one new position per row over a key/value cache, split along the keys.

    out = sum_t softmax_t(q . k_t / sqrt(D)) v_t,   t < lengths[b]

One program per head would leave most of the GPU idle, so each head's keys are cut into equal
splits. A split yields its largest score m, its sum of exp(score - m) and its sum of
exp(score - m) v; a second kernel brings the splits of a head to one common m and adds them up.

Source: Dao et al. 2023 (Flash-Decoding).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    check_positions,
    check_qkv,
    check_range,
    dependent_launch,
    gdc_launch_dependents,
    gdc_wait,
)

TILE_SIZE = 8192  # elements of k, and of v, that a program holds: 128 positions of Bark's heads
MIN_SPLIT_SIZE = 32  # positions
MAX_SPLITS = 32
INTERPRETED_SMS = 132  # the interpreter splits as an H100 or H200 would


class Splits(NamedTuple):
    """What the splits of all heads yield, before they are brought together.

    Attributes:
        max: (B * H, n_splits) float32, the largest score times log2(e); -inf if a split is empty.
        sum: (B * H, n_splits) float32, the sum of 2 ** (score - max).
        acc: (B * H, n_splits, D) float32, the sum of 2 ** (score - max) v.
    """

    max: Tensor
    sum: Tensor
    acc: Tensor


@triton.jit
def _add_tile(q, k, v, filled, running_max, running_sum, acc):
    """Maximum, sum and weighted values with those of a tile's BLOCK_T keys and values."""
    scores = tl.sum(q[None, :] * k.to(tl.float32), axis=1)  # (BLOCK_T,)
    scores = tl.where(filled, scores, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(scores, axis=0))
    # Nothing so far and an empty tile: -inf less -inf is no number.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    rescale = tl.exp2(running_max - shift)
    p = tl.exp2(scores - shift)
    running_sum = running_sum * rescale + tl.sum(p, axis=0)
    acc = acc * rescale + tl.sum(p[:, None] * v.to(tl.float32), axis=0)
    return new_max, running_sum, acc


@triton.jit
def _decode_attention_kernel(
    q_ptr,  # (B, H, 1, D)
    k_ptr,  # (B, H, T, D)
    v_ptr,  # (B, H, T, D)
    lengths_ptr,  # (B,) int32
    max_ptr,  # (B * H, n_splits) float32, out: largest score of a split; -inf if it is empty
    sum_ptr,  # (B * H, n_splits) float32, out: sum of 2 ** (score - max)
    acc_ptr,  # (B * H, n_splits, D) float32, out: sum of 2 ** (score - max) * v
    stride_qb,
    stride_qh,
    stride_kb,
    stride_kh,
    stride_kt,
    stride_vb,
    stride_vh,
    stride_vt,
    H,
    T,
    scale,  # log2(e) / sqrt(D), so that exp2 gives the softmax
    BLOCK_T: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D rounded up to a power of two
    EARLY: tl.constexpr,  # the kernel in front writes nothing of the cache but the newest position
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    if PDL and not EARLY:
        gdc_wait()
        gdc_launch_dependents()
    n_splits = tl.num_programs(1)
    b = (row // H).to(tl.int64)
    h = (row % H).to(tl.int64)

    # Lengths on a GPU cannot be checked without a wait; out of range, they must not read elsewhere.
    length = tl.minimum(tl.maximum(tl.load(lengths_ptr + b), 1), T)
    newest = length - 1
    split_size = tl.cdiv(length, n_splits)
    start = split * split_size
    end = tl.minimum(start + split_size, length)
    old_end = tl.minimum(end, newest)

    d = tl.arange(0, BLOCK_D)
    inside = d < D
    k_row = k_ptr + b * stride_kb + h * stride_kh
    v_row = v_ptr + b * stride_vb + h * stride_vh
    t = start + tl.arange(0, BLOCK_T)
    mask = (t < old_end)[:, None] & inside[None, :]
    k = tl.load(k_row + t[:, None] * stride_kt + d[None, :], mask=mask, other=0.0)
    v = tl.load(v_row + t[:, None] * stride_vt + d[None, :], mask=mask, other=0.0)
    if PDL and EARLY:
        gdc_wait()  # q and the newest position were made by the kernel in front
        gdc_launch_dependents()
    q = tl.load(q_ptr + b * stride_qb + h * stride_qh + d, mask=inside, other=0.0)  # (BLOCK_D,)
    q = q.to(tl.float32) * scale

    # The split that holds the newest position begins with it, the others with nothing.
    here = (start <= newest) & (newest < end)
    k_newest = tl.load(k_row + newest * stride_kt + d, mask=inside, other=0.0).to(tl.float32)
    v_newest = tl.load(v_row + newest * stride_vt + d, mask=inside, other=0.0).to(tl.float32)
    running_max = tl.where(here, tl.sum(q * k_newest, axis=0), float("-inf"))
    running_sum = tl.where(here, 1.0, 0.0)
    acc = tl.where(here, v_newest, 0.0)  # (BLOCK_D,)
    running_max, running_sum, acc = _add_tile(q, k, v, t < old_end, running_max, running_sum, acc)
    for first in range(start + BLOCK_T, old_end, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t < old_end)[:, None] & inside[None, :]
        k = tl.load(k_row + t[:, None] * stride_kt + d[None, :], mask=mask, other=0.0)
        v = tl.load(v_row + t[:, None] * stride_vt + d[None, :], mask=mask, other=0.0)
        running_max, running_sum, acc = _add_tile(
            q, k, v, t < old_end, running_max, running_sum, acc
        )

    part = row.to(tl.int64) * n_splits + split
    tl.store(max_ptr + part, running_max)
    tl.store(sum_ptr + part, running_sum)
    tl.store(acc_ptr + part * D + d, acc, mask=inside)


@triton.jit
def _decode_attention_combine_kernel(
    max_ptr,  # (B * H, n_splits) float32
    sum_ptr,  # (B * H, n_splits) float32
    acc_ptr,  # (B * H, n_splits, D) float32
    out_ptr,  # (B, H, 1, D) contiguous, out
    n_splits,
    BLOCK_SPLITS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    split = tl.arange(0, BLOCK_SPLITS)
    d = tl.arange(0, BLOCK_D)
    part = row * n_splits + split
    mask = split < n_splits
    both = mask[:, None] & (d[None, :] < D)
    split_max = tl.load(max_ptr + part, mask=mask, other=float("-inf"))
    split_sum = tl.load(sum_ptr + part, mask=mask, other=0.0)
    acc = tl.load(acc_ptr + part[:, None] * D + d[None, :], mask=both, other=0.0)
    weight = tl.exp2(split_max - tl.max(split_max, axis=0))  # (BLOCK_SPLITS,), 0 where empty
    total = tl.sum(weight * split_sum, axis=0)
    out = tl.sum(weight[:, None] * acc, axis=0) / total  # (BLOCK_D,)
    tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)


def choose_n_splits(n_heads: int, length: int, n_sms: int) -> int:
    """Into how many splits each head's keys are cut: enough to fill the GPU once.

    Args:
        n_heads: heads of all rows together, B * H.
        length: positions in the longest row.
        n_sms: multiprocessors of the GPU.
    """
    return max(1, min(n_sms // n_heads, length // MIN_SPLIT_SIZE, MAX_SPLITS))


def count_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU; on a CPU, as many as are interpreted."""
    if device.type != "cuda":
        return INTERPRETED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | Tensor, *, early: bool = False
) -> Tensor:
    """Softmax attention of one new position per row over that row's own past, without gradients.

    Args:
        q: queries (B, H, 1, D); D a multiple of 8 in [16, 256], fastest as a power of two.
        k: key buffer (B, H, T, D), filled up to `lengths[b]` in row b; dtype of `q`, any strides
            but 1 in the last dimension.
        v: value buffer (B, H, T, D), likewise.
        lengths: positions to attend to in each row, in [1, T]. A sequence is copied to the GPU at
            every call. An int32 tensor (B,) on the device of `q` is read there, without a copy or
            a wait, so that a CUDA graph can hold the call; on a GPU its values are not checked but
            clamped to [1, T].
        early: the kernel in front writes q and the newest position, and no older one, so those may
            be read before it has ended.

    Returns:
        (B, H, 1, D), dtype of `q`.

    Raises:
        TypeError: a dtype other than float32, float16 or bfloat16, or than that of `q`.
        ValueError: other shapes, lengths out of range, or tensors that are not on the GPU.
    """
    splits = decode_attention_splits(q, k, v, lengths, early=early)
    n_heads, n_splits, head_size = splits.acc.shape
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    with torch.cuda.device(q.get_device()):
        _decode_attention_combine_kernel[(n_heads,)](
            *splits,
            out,
            n_splits,
            BLOCK_SPLITS=triton.next_power_of_2(n_splits),
            D=head_size,
            BLOCK_D=triton.next_power_of_2(head_size),
            num_warps=4,
            **dependent_launch(q.device),
        )
    return out


def decode_attention_splits(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | Tensor, *, early: bool = False
) -> Splits:
    """The first half of `decode_attention`, with the same arguments and errors."""
    check_qkv(q, k, v, _decode_attention_kernel, power_of_two=False)
    n_batch, n_head, n_query, head_size = q.shape
    n_positions = k.shape[2]
    if n_query != 1:
        raise ValueError(f"q must hold one position per row, (B, H, 1, D), got {tuple(q.shape)}")
    lengths, longest = _lengths(lengths, q, n_positions)

    n_splits = choose_n_splits(n_batch * n_head, longest, count_sms(q.device))
    block_d = triton.next_power_of_2(head_size)
    shape = (n_batch * n_head, n_splits)
    splits = Splits(
        *(
            torch.empty(size, device=q.device, dtype=torch.float32)
            for size in (shape, shape, (*shape, head_size))
        )
    )
    with torch.cuda.device(q.get_device()):
        _decode_attention_kernel[shape](
            q,
            k,
            v,
            lengths,
            *splits,
            *q.stride()[:2],
            *k.stride()[:3],
            *v.stride()[:3],
            n_head,
            n_positions,
            math.log2(math.e) / math.sqrt(head_size),
            BLOCK_T=TILE_SIZE // block_d,
            D=head_size,
            BLOCK_D=block_d,
            EARLY=early,
            num_warps=4,
            **dependent_launch(q.device),
        )
    return splits


def decode_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | Tensor
) -> Tensor:
    """Same as `decode_attention`, by the equation and in float32."""
    rows = []
    for b, length in enumerate(lengths):
        q_b, k_b, v_b = (x.float() for x in (q[b], k[b, :, :length], v[b, :, :length]))
        scores = q_b @ k_b.mT / math.sqrt(q.shape[3])  # (H, 1, length)
        rows.append(scores.softmax(dim=-1) @ v_b)
    return torch.stack(rows).to(q.dtype)


def _lengths(lengths: Sequence[int] | Tensor, q: Tensor, n_positions: int) -> tuple[Tensor, int]:
    """The lengths as (B,) int32 on the device of q, and the longest that is possible."""
    if isinstance(lengths, Tensor):
        check_positions(lengths, q, n_positions)
        return lengths, n_positions
    if len(lengths) != len(q):
        raise ValueError(f"lengths must hold one per row, {len(q)}, got {len(lengths)}")
    values = [operator.index(length) for length in lengths]
    check_range(values, n_positions)
    return torch.tensor(values, device=q.device, dtype=torch.int32), max(values)
