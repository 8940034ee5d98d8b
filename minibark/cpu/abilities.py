"""What this torch, this processor and this system can do on a CPU.

The operators that make int8 and int4 fast may be missing, or slow, in another torch or on another
processor. Where one is missing, plain torch gives the same within rounding.
"""

from __future__ import annotations

import ctypes
import functools
import sys

import torch


@functools.cache
def has_onednn_linear() -> bool:
    """Whether torch has oneDNN's linear for float32."""
    built: bool = torch._C._has_mkldnn
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def has_onednn_order() -> bool:
    """Whether torch puts a weight into the order that oneDNN multiplies fastest."""
    return has_onednn_linear() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def has_int8_linear() -> bool:
    """Whether this torch multiplies int8 matrices; without, int8 saves memory but no time."""
    return hasattr(torch.ops.quantized, "linear_dynamic") and (
        torch.backends.quantized.engine not in ("none", "qnnpack")
    )


def has_int8_many_rows() -> bool:
    """Whether this torch has oneDNN's product of int8 matrices, and the processor is fit for it."""
    names = ("qlinear_prepack", "qlinear_pointwise")
    return all(hasattr(torch.ops.onednn, name) for name in names) and _is_fit_for_bytes()


@functools.cache
def has_int8_matmul() -> bool:
    """Whether torch multiplies plain int8 matrices on a CPU, and the processor is fit for it."""
    ones = torch.ones(2, 32, dtype=torch.int8)
    try:
        return _is_fit_for_bytes() and bool((torch._int_mm(ones, ones.T) == 32).all())
    except (AttributeError, RuntimeError):  # older torch has no such name, or has it for CUDA only
        return False


def has_int4_linear() -> bool:
    """Whether this torch multiplies int4 matrices on a CPU; without, int4 only saves memory."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and hasattr(
        torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"
    )


def has_byte_sums() -> bool:
    """Whether this torch adds up weighted rows of bytes."""
    names = ("embedding_bag_byte_rowwise_offsets", "embedding_bag_byte_prepack")
    return all(hasattr(torch.ops.quantized, name) for name in names)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; others are faster in float32."""
    return _processor_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_vector_loops() -> bool:
    """Whether torch's own loops over numbers take several of them at once."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def has_vnni() -> bool:
    """Whether this processor adds 8-bit products without saturating."""
    return _processor_has("_is_vnni_supported", "_is_avx512_vnni_supported")


def _is_fit_for_bytes() -> bool:
    """Whether this processor multiplies bytes well, and torch makes bytes of floats fast."""
    return has_vnni() and hasattr(torch, "quantize_per_tensor")


def _processor_has(*tests: str) -> bool:
    """Whether one of `torch.cpu`'s tests says so; this torch need not have them."""
    return any(getattr(torch.cpu, name, lambda: False)() for name in tests)


def give_memory_back() -> None:
    """Let the system have the memory that is free but kept by the C library, if that is glibc.

    What is freed in small pieces stays with the process otherwise: 30 MB or none, as chance has it,
    after a released small model has been made int4.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
