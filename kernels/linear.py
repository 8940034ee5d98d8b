"""Linear layers of one new position per row, with what stands before and after them fused in.

    norm_linear       out[b, n] = f(sum_k W[n, k] LN(x[b])[k] + c[n])     f: nothing, or GELU (erf)
    norm_qkv          the same without f: the first third of n is q; k and v go into the cache
    linear_residual   x[b, n] += sum_k W[n, k] h[b, k] + c[n]
    combine_residual  the same, with h the splits of `decode_attention.py` brought together

    LN(x) = (x - mean x) / sqrt(var x + eps) * g + d

W may be int8 with a scale for each n. With one row a product is bound by reading W: a program takes
BLOCK_N whole rows of W in one tile, asked for before the kernel in front has ended where the GPU
can do that (programmatic dependent launch), and multiplies and sums in float32. More rows, 16 at a
time, go through the tensor cores.

Source: Ba et al. 2016 (LayerNorm); Hendrycks and Gimpel 2016 (GELU).
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .decode_attention import Splits
from .launch import DTYPES, check_on_gpu, check_positions, dependent_launch, interpreted
from .linear_kernels import _batched_linear_kernel, _linear_kernel
from .matrix import Matrix, Norm

TILE_SIZE = 8192  # elements of W that a program holds
FEW_OUTPUTS = 1024  # up to so many, half a tile, so that there are two programs for each processor
NUM_WARPS = 4
ROWS = 16  # rows of x in a tensor core's tile
BATCH_BLOCK_N, BATCH_BLOCK_K = 32, 64


def norm_linear(x: Tensor, norm: Norm, matrix: Matrix, *, gelu: bool = False) -> Tensor:
    """LayerNorm, linear layer and, if asked for, GELU.

    Args:
        x: (B, K) float32.
        norm: of K.
        matrix: (N, K).
        gelu: True applies the exact GELU in the end.

    Returns:
        (B, N) float32.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: shapes that do not fit, strides other than a plain matrix's, or tensors that are
            not on the GPU.
    """
    out = torch.empty((len(x), len(matrix.weight)), device=x.device, dtype=torch.float32)
    _launch(x, norm, None, matrix, out, None, None, gelu=gelu, add=False)
    return out


def norm_qkv(x: Tensor, norm: Norm, matrix: Matrix, kv: Tensor, lengths: Tensor) -> Tensor:
    """LayerNorm and the linear layer to q, k and v, of which k and v are appended to the cache.

    Args:
        x: (B, C) float32.
        norm: of C.
        matrix: (3 C, C).
        kv: the cache of one layer, (2, B, H, T, D) with H D = C; any strides but 1 in D.
        lengths: (B,) int32: how much each row holds with the new position, in [1, T]. On a GPU
            values are not checked but clamped.

    Returns:
        q (B, H, 1, D), dtype of `kv`.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: shapes that do not fit, lengths out of range, tensors that are not on the GPU.
    """
    if kv.dim() != 5 or kv.shape[:2] != (2, len(x)) or kv.stride(4) != 1:
        raise ValueError(
            f"kv must be (2, {len(x)}, H, T, D), contiguous in D, got {tuple(kv.shape)} with "
            f"strides {kv.stride()}"
        )
    if kv.dtype not in DTYPES:
        raise TypeError(f"kv must be float32, float16 or bfloat16, got {kv.dtype}")
    n_head, n_positions, head_size = kv.shape[2:]
    n_embd = n_head * head_size
    if matrix.weight.shape[0] != 3 * n_embd or kv.device != x.device:
        raise ValueError(
            f"the matrix must have 3 * {n_embd} rows and kv be on {x.device}, got "
            f"{matrix.weight.shape[0]} rows and {kv.device}"
        )
    check_positions(lengths, x, n_positions)
    q = torch.empty((len(x), n_head, 1, head_size), device=x.device, dtype=kv.dtype)
    _launch(x, norm, None, matrix, q, kv, lengths, gelu=False, add=False)
    return q


def linear_residual(x: Tensor, matrix: Matrix, residual: Tensor) -> None:
    """Add a linear layer's output to `residual`, in place.

    Args:
        x: (B, K) float32, float16 or bfloat16.
        matrix: (N, K).
        residual: (B, N) float32.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: shapes that do not fit, strides other than a plain matrix's, or tensors that are
            not on the GPU.
    """
    _check_residual(residual, len(x), matrix)
    _launch(x, None, None, matrix, residual, None, None, gelu=False, add=True)


def combine_residual(splits: Splits, matrix: Matrix, residual: Tensor) -> None:
    """Bring the splits of one row's attention together, and add a linear layer of it in place.

    Args:
        splits: of one row.
        matrix: (N, H D).
        residual: (1, N) float32.

    Raises:
        TypeError: dtypes that the kernel does not take.
        ValueError: more than one row, shapes that do not fit, or tensors that are not on the GPU.
    """
    _check_residual(residual, 1, matrix)
    _check_splits(splits, matrix)
    _launch(None, None, splits, matrix, residual, None, None, gelu=False, add=True)


def _check_residual(residual: Tensor, n_rows: int, matrix: Matrix) -> None:
    expected = (n_rows, len(matrix.weight))
    if residual.dtype != torch.float32:
        raise TypeError(f"the residual must be float32, got {residual.dtype}")
    if residual.shape != expected or not residual.is_contiguous():
        raise ValueError(
            f"the residual must be {expected} and contiguous, got {tuple(residual.shape)} with "
            f"strides {residual.stride()}"
        )
    if residual.device != matrix.weight.device:
        raise ValueError(f"the residual must be on {matrix.weight.device}, got {residual.device}")


def _check_splits(splits: Splits, matrix: Matrix) -> None:
    acc, n_columns = splits.acc, matrix.weight.shape[-1]
    if acc.dim() != 3 or not acc.is_contiguous():
        raise ValueError(
            f"the splits' acc must be (H, n_splits, D) and contiguous, got {tuple(acc.shape)} with "
            f"strides {acc.stride()}"
        )
    n_heads, n_splits, head_size = acc.shape
    if n_heads * head_size != n_columns:
        raise ValueError(
            f"the splits of one row must have {n_columns} columns, got {n_heads} heads of "
            f"{head_size}"
        )
    for part in splits[:2]:
        if part.shape != (n_heads, n_splits) or not part.is_contiguous():
            raise ValueError(
                f"the splits' max and sum must be ({n_heads}, {n_splits}) and contiguous, got "
                f"{tuple(part.shape)} with strides {part.stride()}"
            )
    for part in splits:
        if part.dtype != torch.float32:
            raise TypeError(f"the splits must be float32, got {part.dtype}")
        if part.device != matrix.weight.device:
            raise ValueError(f"the splits must be on {matrix.weight.device}, got {part.device}")


def _check(x: Tensor, norm: Norm | None, matrix: Matrix) -> None:
    weight, scale, bias = matrix
    if x.dtype not in DTYPES or (norm is not None and x.dtype != torch.float32):
        raise TypeError(
            f"x must be float32 (without a LayerNorm also float16 or bfloat16), got {x.dtype}"
        )
    if weight.dtype not in (*DTYPES, torch.int8) or (weight.dtype == torch.int8) != (
        scale is not None
    ):
        raise TypeError(
            "the weight must be float32, float16, bfloat16, or int8 with a scale; got "
            f"{weight.dtype} {'without' if scale is None else 'with'} one"
        )
    if weight.dim() != 2 or not weight.is_contiguous() or weight.shape[1] % 16:
        raise ValueError(
            "the weight must be (N, K), contiguous, with K a multiple of 16, got "
            f"{tuple(weight.shape)} with strides {weight.stride()}"
        )
    n_out, n_in = weight.shape
    if x.dim() != 2 or x.shape[1] != n_in or not x.is_contiguous() or not len(x):
        raise ValueError(
            f"x must be (B, {n_in}), contiguous and not empty, got {tuple(x.shape)} with strides "
            f"{x.stride()}"
        )
    vectors = {"scale": (scale, n_out), "bias": (bias, n_out)}
    if norm is not None:
        vectors |= {"norm weight": (norm.weight, n_in), "norm bias": (norm.bias, n_in)}
    for name, (vector, size) in vectors.items():
        if vector is None:
            continue
        if vector.shape != (size,) or not vector.is_contiguous():
            raise ValueError(f"the {name} must be ({size},), got {tuple(vector.shape)}")
        if vector.dtype not in DTYPES or (name == "scale" and vector.dtype != torch.float32):
            raise TypeError(f"the {name} must be floats (a scale float32), got {vector.dtype}")
        if vector.device != x.device:
            raise ValueError(f"the {name} must be on {x.device}, got {vector.device}")
    if weight.device != x.device:
        raise ValueError(f"the weight must be on {x.device}, got {weight.device}")
    check_on_gpu(x, _linear_kernel)


def _launch(
    x: Tensor | None,
    norm: Norm | None,
    splits: Splits | None,
    matrix: Matrix,
    out: Tensor,
    kv: Tensor | None,
    lengths: Tensor | None,
    *,
    gelu: bool,
    add: bool,
) -> None:
    """Check what all wrappers share, choose the tiles and run the kernel."""
    weight, scale, bias = matrix
    given = splits.acc.view(1, -1)[:, : weight.shape[-1]] if splits is not None else x
    assert given is not None
    _check(given, norm, matrix)
    n_out, n_in = weight.shape
    unused = weight  # a pointer that is never followed
    n_head, n_positions, head_size = (1, 1, 1) if kv is None else kv.shape[2:]
    if splits is not None:
        n_head, head_size = splits.acc.shape[0], splits.acc.shape[2]
    flags = {
        "K": n_in,
        "H": n_head,
        "T": n_positions,
        "D": head_size,
        "NORM": norm is not None,
        "NORM_BIAS": norm is not None and norm.bias is not None,
        "INT8": scale is not None,
        "BIAS": bias is not None,
        "GELU": gelu,
        "APPEND": kv is not None,
        "ADD": add,
    }
    norms = (unused, unused, 0.0)
    if norm is not None:
        norms = (norm.weight, unused if norm.bias is None else norm.bias, norm.eps)
    params = (weight, unused if scale is None else scale, unused if bias is None else bias)
    cache = (unused if kv is None else kv, unused if lengths is None else lengths)
    strides = (0, 0, 0, 0) if kv is None else kv.stride()[:4]
    launch = dependent_launch(weight.device)
    with torch.cuda.device(weight.get_device()):
        if splits is not None or len(given) == 1:
            block_n, block_k = choose_tile(n_out, n_in)
            parts = (unused,) * 3 if splits is None else splits
            _linear_kernel[(triton.cdiv(n_out, block_n),)](
                unused if x is None else x, *norms, *parts, *params, out, *cache, n_out, *strides,
                **flags,
                N_SPLITS=0 if splits is None else splits.acc.shape[1],
                BLOCK_N=block_n,
                BLOCK_K=block_k,
                num_warps=NUM_WARPS,
                **launch,
            )  # fmt: skip
        else:
            grid = (triton.cdiv(n_out, BATCH_BLOCK_N), triton.cdiv(len(given), ROWS))
            _batched_linear_kernel[grid](
                given, *norms, *params, out, *cache, len(given), n_out, *strides,
                **flags,
                ROWS=ROWS,
                BLOCK_N=BATCH_BLOCK_N,
                BLOCK_K=BATCH_BLOCK_K,
                PRODUCT_TYPE=_product_type(weight),
                num_warps=4,
                num_stages=3,
                **launch,
            )  # fmt: skip


def _product_type(weight: Tensor) -> tl.dtype:
    """What the tensor cores multiply; the interpreter's `tl.dot` is wrong in bfloat16."""
    if interpreted(_linear_kernel):
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16}.get(weight.dtype, tl.bfloat16)


def choose_tile(n_out: int, n_in: int) -> tuple[int, int]:
    """Return (BLOCK_N, BLOCK_K) for one row: whole rows of W, and programs for the whole GPU."""
    block_k = triton.next_power_of_2(n_in)
    size = TILE_SIZE if n_out > FEW_OUTPUTS or block_k >= TILE_SIZE // 2 else TILE_SIZE // 2
    return max(1, size // block_k), block_k


# ---- references


def norm_linear_ref(x: Tensor, norm: Norm, matrix: Matrix, *, gelu: bool = False) -> Tensor:
    """Same as `norm_linear`, by the equation and in float32."""
    bias = None if norm.bias is None else norm.bias.float()
    x = F.layer_norm(x.float(), x.shape[1:], norm.weight.float(), bias, norm.eps)
    y = _linear_ref(x, matrix)
    return F.gelu(y) if gelu else y


def norm_qkv_ref(x: Tensor, norm: Norm, matrix: Matrix, kv: Tensor, lengths: Tensor) -> Tensor:
    """Same as `norm_qkv`, by the equation and in float32."""
    n_head, _, head_size = kv.shape[2:]
    parts = norm_linear_ref(x, norm, matrix).view(len(x), 3, n_head, head_size).to(kv.dtype)
    for b, length in enumerate(lengths.tolist()):
        kv[:, b, :, length - 1] = parts[b, 1:]
    return parts[:, 0, :, None]


def linear_residual_ref(x: Tensor, matrix: Matrix, residual: Tensor) -> None:
    """Same as `linear_residual`, by the equation and in float32."""
    residual += _linear_ref(x.float(), matrix)


def combine_residual_ref(splits: Splits, matrix: Matrix, residual: Tensor) -> None:
    """Same as `combine_residual`, by the equation and in float32."""
    weight = torch.exp2(splits.max - splits.max.amax(1, keepdim=True))  # (H, n_splits)
    acc = (weight[..., None] * splits.acc).sum(1) / (weight * splits.sum).sum(1, keepdim=True)
    residual += _linear_ref(acc.view(1, -1), matrix)


def _linear_ref(x: Tensor, matrix: Matrix) -> Tensor:
    return F.linear(x, matrix.floats(), None if matrix.bias is None else matrix.bias.float())
