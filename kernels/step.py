"""The beginning and the end of a decode step: tokens in, tokens out.

    embed_tokens    lengths[b] += 1,  x[b] = W[token[b]] + P[lengths[b] - 1]
    choose_tokens   p = softmax(logits[b] / temperature),  token[b] = first + argmax_v p_v / noise_v

With noise from Exponential(1), that argmax is a draw from p; without, it is the likeliest. Both
keep what changes from step to step on the GPU, so that one CUDA graph serves them all: `index` says
how many steps were begun, and so where the token and the probability of the last id go.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    DTYPES,
    check_on_gpu,
    check_positions,
    dependent_launch,
    gdc_launch_dependents,
    gdc_wait,
)

MAX_WIDTH = 2**16  # channels, or ids to choose from: what one program can hold


@triton.jit
def _embed_kernel(
    token_ptr,  # (B,) int64
    table_ptr,  # (V, C)
    position_ptr,  # (T, C)
    lengths_ptr,  # (B,) int32, in and out
    index_ptr,  # (1,) int64, in and out
    out_ptr,  # (B, C) float32, out
    V,
    T,
    C,
    BLOCK_C: tl.constexpr,
):
    b = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    length = tl.load(lengths_ptr + b) + 1
    # Values on a GPU cannot be checked without a wait; wrong ones must not read elsewhere.
    position = (tl.minimum(tl.maximum(length, 1), T) - 1).to(tl.int64)
    token = tl.minimum(tl.maximum(tl.load(token_ptr + b), 0), V - 1)
    x = tl.load(table_ptr + token * C + c, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(position_ptr + position * C + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + b.to(tl.int64) * C + c, x, mask=mask)
    tl.store(lengths_ptr + b, length)
    if b == 0:
        tl.store(index_ptr, tl.load(index_ptr) + 1)


@triton.jit
def _choose_kernel(
    logits_ptr,  # (B, V) float32
    noise_ptr,  # (N, B, V) float32
    index_ptr,  # (1,) int64: the step is index - 1
    token_ptr,  # (B,) int64, out
    tokens_ptr,  # (N, B) int64, out
    last_p_ptr,  # (N, B) float32, out
    first,
    temperature,
    B,
    N,
    V,
    NOISE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK_V)
    mask = v < V
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    step = tl.minimum(tl.maximum(tl.load(index_ptr), 1), N) - 1
    logits = tl.load(logits_ptr + b * V + v, mask=mask, other=float("-inf"))
    if NOISE:
        logits = logits / temperature
        weights = tl.exp(logits - tl.max(logits, axis=0))
        p = weights / tl.sum(weights, axis=0)
        noise = tl.load(noise_ptr + (step * B + b) * V + v, mask=mask, other=1.0)
        scores = tl.where(mask, p / noise, -1.0)
        last_p = tl.sum(tl.where(v == V - 1, p, 0.0), axis=0)
    else:
        scores = logits
        last_p = 0.0
    best = tl.argmax(scores, axis=0)
    if not NOISE:
        last_p = (best == V - 1).to(tl.float32)  # as a distribution, greedy is a single 1
    token = best.to(tl.int64) + first
    tl.store(token_ptr + b, token)
    tl.store(tokens_ptr + step * B + b, token)
    tl.store(last_p_ptr + step * B + b, last_p)


def embed_tokens(
    tokens: Tensor, table: Tensor, positions: Tensor, lengths: Tensor, index: Tensor
) -> Tensor:
    """Begin a step: one position more in every row, and the embedding of its token there.

    Args:
        tokens: (B,) int64 in [0, V).
        table: (V, C).
        positions: (T, C), dtype of `table`.
        lengths: (B,) int32, what each row holds so far, in [0, T); 1 is added.
        index: (1,) int64; 1 is added.

    Returns:
        (B, C) float32. On a GPU tokens and lengths are not checked but clamped.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: shapes that do not fit, values out of range, or tensors that are not on the GPU.
    """
    n_ids, n_channels = table.shape
    if table.dtype not in DTYPES or positions.dtype != table.dtype:
        raise TypeError(
            "the tables must share one dtype, float32, float16 or bfloat16; "
            f"got {table.dtype}, {positions.dtype}"
        )
    if positions.shape[1:] != (n_channels,) or n_channels > MAX_WIDTH:
        raise ValueError(
            f"the tables must have the same columns, at most {MAX_WIDTH}; "
            f"got {tuple(table.shape)}, {tuple(positions.shape)}"
        )
    if not (table.is_contiguous() and positions.is_contiguous()):
        raise ValueError("the tables must be contiguous")
    _check_counters(tokens, index)
    if lengths.is_cuda:
        check_positions(lengths, tokens, len(positions))
    else:
        check_positions(lengths + 1, tokens, len(positions))
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < n_ids:
            raise ValueError(f"tokens must be in [0, {n_ids}), got {tokens.tolist()}")
    if not table.device == positions.device == tokens.device:
        raise ValueError(f"the tables must be on {tokens.device}, got {table.device}")
    check_on_gpu(tokens, _embed_kernel)
    out = torch.empty((len(tokens), n_channels), device=tokens.device, dtype=torch.float32)
    with torch.cuda.device(tokens.get_device()):
        _embed_kernel[(len(tokens),)](
            tokens,
            table,
            positions,
            lengths,
            index,
            out,
            n_ids,
            len(positions),
            n_channels,
            BLOCK_C=triton.next_power_of_2(n_channels),
            num_warps=4,
        )
    return out


def choose_tokens(
    logits: Tensor,
    noise: Tensor | None,
    temperature: float,
    first: int,
    index: Tensor,
    token: Tensor,
    tokens: Tensor,
    last_p: Tensor,
) -> None:
    """End a step: choose a token for every row.

    Args:
        logits: (B, V) float32.
        noise: (N, B, V) float32 from Exponential(1), one for each of N steps; None is greedy.
        temperature: positive; of no meaning if greedy.
        first: the id of the first logit.
        index: (1,) int64: the step is `index` - 1, in [0, N); on a GPU clamped.
        token: (B,) int64, out: the tokens.
        tokens: (N, B) int64, out: the same, in the step's row.
        last_p: (N, B) float32, out, in the step's row: the probability of the last id.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: shapes that do not fit, an index out of range, or tensors not on the GPU.
    """
    n_steps = len(tokens)
    n_rows, width = logits.shape
    _check_counters(token, index)
    expected = {
        "logits": (logits, torch.float32, (n_rows, width)),
        "token": (token, torch.int64, (n_rows,)),
        "tokens": (tokens, torch.int64, (n_steps, n_rows)),
        "last_p": (last_p, torch.float32, (n_steps, n_rows)),
    }
    if noise is not None:
        expected["noise"] = (noise, torch.float32, (n_steps, n_rows, width))
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {shape} and contiguous, got {tuple(tensor.shape)} with strides "
                f"{tensor.stride()}"
            )
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on {logits.device}, got {tensor.device}")
    if width > MAX_WIDTH:
        raise ValueError(f"at most {MAX_WIDTH} ids can be chosen from, got {width}")
    if noise is not None and not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if not index.is_cuda and not 1 <= int(index) <= n_steps:
        raise ValueError(f"index must be in [1, {n_steps}], got {int(index)}")
    check_on_gpu(logits, _choose_kernel)
    with torch.cuda.device(logits.get_device()):
        _choose_kernel[(n_rows,)](
            logits,
            logits if noise is None else noise,
            index,
            token,
            tokens,
            last_p,
            first,
            float(temperature),
            n_rows,
            n_steps,
            width,
            NOISE=noise is not None,
            BLOCK_V=triton.next_power_of_2(width),
            num_warps=16 if width > 2048 else 4,
            **dependent_launch(logits.device),
        )


def _check_counters(tokens: Tensor, index: Tensor) -> None:
    for name, tensor in {"tokens": tokens, "index": index}.items():
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if tokens.dim() != 1 or not len(tokens) or not tokens.is_contiguous():
        raise ValueError(f"tokens must be (B,) and contiguous, got {tuple(tokens.shape)}")
    if index.shape != (1,) or index.device != tokens.device:
        raise ValueError(
            f"index must be (1,) on {tokens.device}, got {tuple(index.shape)} on {index.device}"
        )


# ---- references


def embed_tokens_ref(
    tokens: Tensor, table: Tensor, positions: Tensor, lengths: Tensor, index: Tensor
) -> Tensor:
    """Same as `embed_tokens`, by the equation and in float32."""
    lengths += 1
    index += 1
    return table[tokens].float() + positions[lengths.long() - 1].float()


def choose_tokens_ref(
    logits: Tensor,
    noise: Tensor | None,
    temperature: float,
    first: int,
    index: Tensor,
    token: Tensor,
    tokens: Tensor,
    last_p: Tensor,
) -> None:
    """Same as `choose_tokens`, by the equation."""
    step = int(index) - 1
    if noise is None:
        best = logits.argmax(-1)
        last_p[step] = (best == logits.shape[1] - 1).float()
    else:
        p = (logits / temperature).softmax(-1)
        best = (p / noise[step]).argmax(-1)
        last_p[step] = p[:, -1]
    token.copy_(best + first)
    tokens[step] = token
