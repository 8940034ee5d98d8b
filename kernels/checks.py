"""The checks that every attention kernel makes of its arguments before it launches."""

import triton
from torch import Tensor, bfloat16, float16, float32

DTYPES = (float32, float16, bfloat16)


def check_qkv(q: Tensor, k: Tensor, v: Tensor, kernel: object) -> None:
    """Raise unless q, k and v can be given to a kernel together.

    Args:
        q: queries (B, H, T, D), or (B, H, 1, D) beside longer keys.
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        kernel: the `@triton.jit` function to launch.

    Raises:
        TypeError: unequal dtypes, or one that is not float32, float16 or bfloat16.
        ValueError: shapes, strides or devices that the kernels do not take.
    """
    tensors = {"q": q, "k": k, "v": v}
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            "q, k and v must share one dtype, float32, float16 or bfloat16; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    for name, x in tensors.items():
        if x.dim() != 4 or x.numel() == 0:
            raise ValueError(f"{name} must be (B, H, T, D) and not empty, got {tuple(x.shape)}")
        if x.stride(3) != 1:
            raise ValueError(
                f"the last dimension of {name} must be contiguous, its stride is {x.stride(3)}; "
                f"pass {name}.contiguous()"
            )
        if x.shape[2] * x.stride(2) >= 2**31:
            raise ValueError(f"one head of {name} spans 2**31 elements or more")
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "q, k and v must agree in B, H and D, and k and v in T; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    head_size = q.shape[3]
    if not 16 <= head_size <= 256 or head_size & (head_size - 1):
        raise ValueError(f"the head size must be a power of two in [16, 256], got {head_size}")
    if k.device != q.device or v.device != q.device:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}"
        )
    if not q.is_cuda and isinstance(kernel, triton.JITFunction):
        raise ValueError(
            f"the kernels run on a GPU, got tensors on {q.device}; to interpret them there, set "
            "TRITON_INTERPRET=1 before anything imports triton"
        )
