"""The two kernels of `linear.py` and their parts: one row of x at a time, or 16 by tensor cores.

See there for what they compute, and for who launches them with which arguments.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from .launch import gdc_launch_dependents, gdc_wait


@triton.jit
def _loaded(ptr, at, mask, PRESENT: tl.constexpr):
    """Values in float32, or nothing of that shape."""
    if PRESENT:
        return tl.load(ptr + at, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.zeros(at.shape, tl.float32)


@triton.jit
def _normalized(x, inside, K: tl.constexpr, gain, shift, eps):
    """LayerNorm of one row x (BLOCK_K,) whose places that are not inside are 0."""
    mean = tl.sum(x, axis=0) / K
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / K
    return centred * tl.rsqrt(variance + eps) * gain + shift


@triton.jit
def _combined(
    k, K: tl.constexpr, max_ptr, sum_ptr, acc_ptr, N_SPLITS: tl.constexpr, D: tl.constexpr
):
    """The attention output (BLOCK_K,) of the only row, all heads side by side, from its splits."""
    inside = k < K
    part = k // D * N_SPLITS
    largest = tl.full(k.shape, float("-inf"), tl.float32)
    for s in tl.static_range(N_SPLITS):
        split_max = tl.load(max_ptr + part + s, mask=inside, other=0.0)
        largest = tl.maximum(largest, split_max)
    total = tl.zeros(k.shape, tl.float32)
    acc = tl.zeros(k.shape, tl.float32)
    for s in tl.static_range(N_SPLITS):
        split_max = tl.load(max_ptr + part + s, mask=inside, other=0.0)
        weight = tl.exp2(split_max - largest)  # 0 for an empty split
        total += weight * tl.load(sum_ptr + part + s, mask=inside, other=1.0)
        acc += weight * tl.load(acc_ptr + (part + s) * D + k % D, mask=inside, other=0.0)
    return acc / total


@triton.jit
def _finished(y, scale, bias, INT8: tl.constexpr, GELU: tl.constexpr):
    """Scale, bias and activation of outputs y."""
    if INT8:
        y *= scale
    y += bias
    if GELU:
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    return y


@triton.jit
def _append(
    y,
    b,
    n,
    mask,
    length,
    out_ptr,
    kv_ptr,
    stride_kv,
    stride_b,
    stride_h,
    stride_t,
    H: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
):
    """Put q among outputs y, and k and v into the cache; b, n and mask have the shape of y."""
    C: tl.constexpr = H * D
    tl.store(out_ptr + b * C + n, y.to(out_ptr.dtype.element_ty), mask=mask & (n < C))
    # Lengths on a GPU cannot be checked without a wait; a wrong one must not write elsewhere.
    position = tl.minimum(tl.maximum(length, 1), T) - 1
    place = (
        (n // C - 1).to(tl.int64) * stride_kv
        + b.to(tl.int64) * stride_b
        + (n % C // D).to(tl.int64) * stride_h
        + position.to(tl.int64) * stride_t
        + n % D
    )
    tl.store(kv_ptr + place, y.to(kv_ptr.dtype.element_ty), mask=mask & (n >= C))


@triton.jit
def _linear_kernel(
    x_ptr,  # (1, K) float32
    norm_weight_ptr,  # (K,)
    norm_bias_ptr,  # (K,)
    eps,
    max_ptr,  # (H, N_SPLITS) float32
    sum_ptr,  # (H, N_SPLITS) float32
    acc_ptr,  # (H, N_SPLITS, D) float32
    weight_ptr,  # (N, K)
    scale_ptr,  # (N,) float32
    bias_ptr,  # (N,)
    out_ptr,  # (1, N), out, or with APPEND (1, H, 1, D)
    kv_ptr,  # (2, 1, H, T, D), out
    lengths_ptr,  # (1,) int32, the new position included
    N,
    stride_kv,
    stride_b,
    stride_h,
    stride_t,
    K: tl.constexpr,
    H: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    N_SPLITS: tl.constexpr,  # 0: x is read
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    INT8: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    APPEND: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mask = (n[:, None] < N) & (k[None, :] < K)
    w = tl.load(weight_ptr + n[:, None].to(tl.int64) * K + k[None, :], mask=mask, other=0)
    gain = _loaded(norm_weight_ptr, k, k < K, NORM)
    shift = _loaded(norm_bias_ptr, k, k < K, NORM_BIAS)
    scale = _loaded(scale_ptr, n, n < N, INT8)
    bias = _loaded(bias_ptr, n, n < N, BIAS)
    if PDL:
        gdc_wait()  # what follows was made by the kernel in front
        gdc_launch_dependents()
    # All of it is asked for before any is used: each wait for memory is a share of the step.
    residual = _loaded(out_ptr, n, n < N, ADD)
    if APPEND:
        length = tl.load(lengths_ptr)
    if N_SPLITS:
        x = _combined(k, K, max_ptr, sum_ptr, acc_ptr, N_SPLITS, D)
        x = tl.where(k < K, x, 0.0)[None, :]
    elif NORM:
        x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        x = _normalized(x, k < K, K, gain, shift, eps)[None, :]
    else:
        # As a tile like W's: then each thread loads what it multiplies, and hands on nothing.
        every = k[None, :] + tl.zeros_like(n)[:, None]
        x = tl.load(x_ptr + every, mask=mask, other=0.0).to(tl.float32)
    y = tl.sum(w.to(tl.float32) * x, axis=1)  # (BLOCK_N,)
    y = _finished(y, scale, bias, INT8, GELU)
    if APPEND:
        _append(
            y, tl.zeros_like(n), n, n < N, length, out_ptr, kv_ptr,
            stride_kv, stride_b, stride_h, stride_t, H, T, D,
        )  # fmt: skip
    else:
        tl.store(out_ptr + n, (y + residual).to(out_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def _batched_linear_kernel(
    x_ptr,  # (B, K)
    norm_weight_ptr,  # (K,)
    norm_bias_ptr,  # (K,)
    eps,
    weight_ptr,  # (N, K)
    scale_ptr,  # (N,) float32
    bias_ptr,  # (N,)
    out_ptr,  # (B, N), out, or with APPEND (B, H, 1, D)
    kv_ptr,  # (2, B, H, T, D), out
    lengths_ptr,  # (B,) int32, the new position included
    B,
    N,
    stride_kv,
    stride_b,
    stride_h,
    stride_t,
    K: tl.constexpr,
    H: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    INT8: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    APPEND: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRODUCT_TYPE: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    scale = _loaded(scale_ptr, n, n < N, INT8)
    bias = _loaded(bias_ptr, n, n < N, BIAS)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    wanted = (b[:, None] < B) & (n[None, :] < N)
    place = b[:, None].to(tl.int64) * N + n[None, :]
    residual = _loaded(out_ptr, place, wanted, ADD)
    if APPEND:
        length = tl.load(lengths_ptr + b, mask=b < B, other=1)
    rows = x_ptr + b[:, None].to(tl.int64) * K
    mean = tl.zeros((ROWS,), tl.float32)
    rstd = tl.zeros((ROWS,), tl.float32)
    if NORM:
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            mask = (b[:, None] < B) & (k[None, :] < K)
            mean += tl.sum(tl.load(rows + k[None, :], mask=mask, other=0.0).to(tl.float32), axis=1)
        mean = mean / K
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            mask = (b[:, None] < B) & (k[None, :] < K)
            x = tl.load(rows + k[None, :], mask=mask, other=0.0).to(tl.float32)
            centred = tl.where(mask, x - mean[:, None], 0.0)
            rstd += tl.sum(centred * centred, axis=1)
        rstd = tl.rsqrt(rstd / K + eps)
    acc = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mask = (b[:, None] < B) & (k[None, :] < K)
        x = tl.load(rows + k[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM:
            gain = tl.load(norm_weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
            x = (x - mean[:, None]) * rstd[:, None] * gain[None, :]
            if NORM_BIAS:
                shift = tl.load(norm_bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)
                x += shift[None, :]
            x = tl.where(mask, x, 0.0)
        w = tl.load(
            weight_ptr + n[None, :].to(tl.int64) * K + k[:, None],
            mask=(n[None, :] < N) & (k[:, None] < K),
            other=0,
        )  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(x.to(PRODUCT_TYPE), w.to(PRODUCT_TYPE), acc, input_precision="ieee")
    y = _finished(acc, scale[None, :], bias[None, :], INT8, GELU)
    if APPEND:
        _append(
            y,
            b[:, None] + tl.zeros((1, BLOCK_N), tl.int32),
            n[None, :] + tl.zeros((ROWS, 1), tl.int32),
            wanted, length[:, None], out_ptr, kv_ptr,
            stride_kv, stride_b, stride_h, stride_t, H, T, D,
        )  # fmt: skip
    else:
        tl.store(out_ptr + place, (y + residual).to(out_ptr.dtype.element_ty), mask=wanted)
