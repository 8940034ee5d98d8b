"""Where the kernels run in a test: interpreted, on a GPU, or compiled for one that is not there.

The interpreter takes some milliseconds per tile, so that the sizes of its tests are few and small.
"""

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from minibark.kernels.attention import _attention_kernel
from minibark.kernels.launch import interpreted

LENGTHS = (1, 63, 64, 257, 887, 1023, 1024)
T_MAX = 1024
F32, F16, BF16, INT8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
POINTERS = {F32: "*fp32", F16: "*fp16", BF16: "*bf16", INT8: "*i8"}
TOLERANCES = {F32: (5e-6, 1e-5), F16: (1e-3, 2e-3), BF16: (8e-3, 1.6e-2)}  # (atol, rtol)
Run = Callable[..., None]


def gpu() -> torch.device:
    """The GPU; skips the test where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    skip_unless_native()
    return torch.device("cuda")


def skip_unless_native() -> None:
    if interpreted(_attention_kernel):
        pytest.skip("TRITON_INTERPRET is set")


def skip_if_interpreted(request: pytest.FixtureRequest, dtype: torch.dtype) -> None:
    if dtype == BF16 and request.node.callspec.params["run"] == "interpreted":
        pytest.skip("the interpreter's tl.dot is wrong in bfloat16")


@contextlib.contextmanager
def empty_is_nan() -> Iterator[None]:
    """Fill what torch.empty gives with NaN, so that reading an unwritten slot shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_close(
    out: Tensor, expected: Tensor, sharpness: float = 1.0, dtype: torch.dtype | None = None
) -> None:
    """Compare, as closely as `dtype`, or else the dtype of what is expected, allows.

    Where values come of larger ones, as attention does of scores, `sharpness` says how much larger.
    """
    atol, rtol = (sharpness * bound for bound in TOLERANCES[dtype or expected.dtype])
    torch.testing.assert_close(out, expected, atol=atol, rtol=rtol)


def compile_for_nvidia(
    kernel: object,
    kinds: dict[str, str],
    constants: dict[str, object],
    capability: int,
    num_warps: int,
    num_stages: int,
    *,
    strides: bool = False,
) -> CompiledKernel:
    """Compile a kernel; Triton's own compiler needs no GPU.

    Args:
        kernel: the `@triton.jit` function.
        kinds: the types of arguments by name; the others are int32. Pointers are aligned.
        constants: values by name, those of a kernel's own arguments are used.
        capability: compute capability times 10.
        num_warps: warps of one program.
        num_stages: depth of loops' pipelines.
        strides: whether they are multiples of 16, which Triton sees at a launch.
    """
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: kinds.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name.endswith("_ptr") or (strides and name.startswith("stride_"))
    }
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if constants.get("PDL"):
        options["launch_pdl"] = True
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 99 * 1024  # what all GPUs since 8.0 give one program
    return compiled


def loads_before_the_wait(compiled: CompiledKernel) -> list[str]:
    """The loads that a kernel asks for while the one in front may still run."""
    ptx = compiled.asm["ptx"]
    assert ptx.count("griddepcontrol.wait") == ptx.count("griddepcontrol.launch_dependents") == 1
    before, after = ptx.split("griddepcontrol.wait")
    assert "griddepcontrol" not in before  # others may start when this one need not wait any more
    assert not re.search(r"\b(st|red|atom)\.(global|async)", before)
    assert "ld.global" in after
    return re.findall(r"ld\.global\.\S+", before)
