"""What the kernels share: the checks of their arguments before a launch, and the way to launch."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, bfloat16, float16, float32

DTYPES = (float32, float16, bfloat16)

# Programmatic dependent launch: a kernel starts while the one in front still runs, and waits for
# its results in its own code. Kernels name these two only where `dependent_launch` says PDL.
gdc_wait: Any = getattr(tl.extra.cuda, "gdc_wait", None)
gdc_launch_dependents: Any = getattr(tl.extra.cuda, "gdc_launch_dependents", None)


def interpreted(kernel: object) -> bool:
    """Whether a `@triton.jit` function runs in Triton's interpreter, on a CPU."""
    return not isinstance(kernel, triton.JITFunction)


@triton.jit  # type: ignore[untyped-decorator]
def _nothing() -> None:
    pass


def interpreting() -> bool:
    """Whether Triton's interpreter runs all kernels, on a CPU."""
    return interpreted(_nothing)


def has_dependent_launch() -> bool:
    """Whether the installed Triton can compile the two instructions; 3.4's cannot be called."""

    def hidden(function: Any) -> set[str]:  # the argument that the compiler itself passes
        return {"_builder", "_semantic"} & set(inspect.signature(function).parameters)

    known = gdc_wait is not None and gdc_launch_dependents is not None
    return known and hidden(gdc_wait) == hidden(tl.load)


@functools.cache
def dependent_launch(device: torch.device) -> dict[str, Any]:
    """The options of a kernel that can start before the one in front has ended.

    Such a launch needs compute capability 9.0 and a Triton that knows the two instructions.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    if able and has_dependent_launch():
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def check_on_gpu(x: Tensor, kernel: object) -> None:
    """Raise ValueError unless a kernel can run where x is."""
    if not x.is_cuda and not interpreted(kernel):
        raise ValueError(
            f"the kernels run on a GPU, got tensors on {x.device}; to interpret them there, set "
            "TRITON_INTERPRET=1 before anything imports triton"
        )


def check_range(lengths: Sequence[int], n_positions: int) -> None:
    """Raise ValueError unless all lengths are in [1, n_positions]."""
    if not 1 <= min(lengths) <= max(lengths) <= n_positions:
        raise ValueError(f"lengths must be in [1, {n_positions}], got {list(lengths)}")


def check_positions(lengths: Tensor, rows: Tensor, n_positions: int) -> None:
    """Raise unless a tensor of lengths fits the first dimension of `rows` and, on a CPU, the range.

    Values on a GPU cannot be read without a wait.

    Raises:
        TypeError: it is not int32.
        ValueError: another shape or device, or values outside [1, n_positions].
    """
    n_batch = len(rows)
    if lengths.dtype != torch.int32:
        raise TypeError(f"a tensor of lengths must be int32, got {lengths.dtype}")
    if lengths.shape != (n_batch,) or not lengths.is_contiguous():
        raise ValueError(
            f"a tensor of lengths must be ({n_batch},) and contiguous, "
            f"got {tuple(lengths.shape)} with strides {lengths.stride()}"
        )
    if lengths.device != rows.device:
        raise ValueError(f"lengths must be on {rows.device}, got {lengths.device}")
    if not lengths.is_cuda:
        check_range(lengths.tolist(), n_positions)


def check_qkv(
    q: Tensor, k: Tensor, v: Tensor, kernel: object, *, power_of_two: bool = True
) -> None:
    """Raise unless q, k and v can be given to a kernel together.

    Args:
        q: queries (B, H, Q, D).
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        kernel: the `@triton.jit` function to launch.
        power_of_two: whether the head size must be one; else it is a multiple of 8.

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
    wrong = head_size & (head_size - 1) if power_of_two else head_size % 8
    if not 16 <= head_size <= 256 or wrong:
        kind = "power of two" if power_of_two else "multiple of 8"
        raise ValueError(f"the head size must be a {kind} in [16, 256], got {head_size}")
    if k.device != q.device or v.device != q.device:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}"
        )
    check_on_gpu(q, kernel)
