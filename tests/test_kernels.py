"""The Triton kernels against their plain-torch references: interpreted, compiled, on a GPU.

The interpreter takes some milliseconds per tile, so all lengths run at one dtype and one head count
(decoding) or one head (attention); other dtypes, head counts, batches and head sizes run at few.
"""

import importlib.util
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install triton (Linux)", allow_module_level=True)

from kernel_runs import (
    BF16,
    F16,
    F32,
    LENGTHS,
    POINTERS,
    T_MAX,
    assert_close,
    compile_for_nvidia,
    empty_is_nan,
    gpu,
    loads_before_the_wait,
    skip_if_interpreted,
    skip_unless_native,
)

from minibark.kernels import attention as attention_file
from minibark.kernels import decode_attention as decode_file
from minibark.kernels import launch
from minibark.kernels.attention import attention, attention_ref
from minibark.kernels.decode_attention import (
    MAX_SPLITS,
    choose_n_splits,
    decode_attention,
    decode_attention_ref,
)
from minibark.model import causal_attention, full_attention

# ---- decode_attention


def decode_inputs(
    device: torch.device,
    lengths: list[int],
    n_head: int,
    head_size: int,
    dtype: torch.dtype,
    t_max: int = T_MAX,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, and buffers that hold NaN after each row's length."""
    generator = torch.Generator(device).manual_seed(0)
    q = torch.randn(
        len(lengths), n_head, 1, head_size, generator=generator, device=device, dtype=dtype
    )
    k, v = (
        torch.full((len(lengths), n_head, t_max, head_size), math.nan, device=device, dtype=dtype)
        for _ in range(2)
    )
    for b, length in enumerate(lengths):
        for buffer in (k, v):
            filled = buffer[b, :, :length]
            filled.copy_(torch.randn(filled.shape, generator=generator, device=device))
    return q, k, v


def check_decode(
    device: torch.device,
    lengths: list[int],
    n_head: int = 12,
    head_size: int = 64,
    dtype: torch.dtype = F32,
    sharpness: float = 1.0,
    layout: str = "(B, H, T, D)",
    as_tensor: bool = False,
) -> None:
    q, k, v = decode_inputs(device, lengths, n_head, head_size, dtype)
    q = q * sharpness
    if layout == "k (B, T, H, D)":
        k = k.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "packed":
        q, k, v = torch.cat((q.expand_as(k), k, v), dim=-1).chunk(3, dim=-1)
        q = q[:, :, 1:2]
    given = torch.tensor(lengths, dtype=torch.int32, device=device) if as_tensor else lengths
    with empty_is_nan():
        out = decode_attention(q, k, v, given)
    assert out.is_contiguous()
    assert_close(out, decode_attention_ref(q, k, v, given), sharpness)


@pytest.mark.thinned
@pytest.mark.parametrize("length", LENGTHS)
def test_decode_attention_at_each_length(run, length):
    run(check_decode, [length])


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("length", [63, 887])
def test_decode_attention_in_half_precision(run, length, dtype):
    run(check_decode, [length], 4, 64, dtype)


@pytest.mark.thinned
@pytest.mark.parametrize(("n_head", "dtype"), [(4, BF16), (12, F16), (16, F32)])
def test_decode_attention_over_rows_of_different_lengths(run, n_head, dtype):
    run(check_decode, [257, 1, 1024], n_head, 64, dtype)


def test_decode_attention_with_more_heads_than_multiprocessors(run):
    run(check_decode, [65] * 10, 16)


@pytest.mark.thinned
@pytest.mark.parametrize("head_size", [16, 32, 40, 56, 128, 256])
def test_decode_attention_head_sizes(run, head_size):
    run(check_decode, [257], 2, head_size)


@pytest.mark.thinned
@pytest.mark.parametrize("layout", ["k (B, T, H, D)", "packed"])
def test_decode_attention_of_strided_buffers(run, layout):
    run(check_decode, [65, 130], 4, 64, F32, 1.0, layout)


def test_decode_attention_lengths_on_the_device(run):
    # The splits are chosen for a full buffer then, so that most of them are empty at length 5.
    run(check_decode, [5, 300], 4, 64, F32, 1.0, "(B, H, T, D)", True)


def test_decode_attention_with_scores_that_overflow_exp2(run):
    run(check_decode, [200], 4, 64, F32, 40.0)


def check_decode_errors(device: torch.device) -> None:
    q, k, v = decode_inputs(device, [8, 8], 2, 16, F32, t_max=8)
    good = [8, 8]

    def raises(error: type[Exception], words: str, *args: object) -> None:
        with pytest.raises(error, match=words):
            decode_attention(*args)  # type: ignore[arg-type]

    raises(TypeError, "share one dtype", q.half(), k, v, good)
    raises(TypeError, "share one dtype", q.double(), k.double(), v.double(), good)
    raises(ValueError, "must be \\(B, H, T, D\\)", q[0], k, v, good)
    raises(ValueError, "not empty", q, k[:, :, :0], v[:, :, :0], good)
    raises(ValueError, "agree in B", q[:1], k, v, good)
    raises(ValueError, "agree in B", q, k[:, :, :7], v, good)
    raises(ValueError, "multiple of 8", q[..., :12], k[..., :12], v[..., :12], good)
    raises(ValueError, "multiple of 8", q[..., :8], k[..., :8], v[..., :8], good)
    raises(ValueError, "one position per row", k, k, v, good)
    raises(ValueError, "last dimension of k", q, k.mT.contiguous().mT, v, good)
    raises(ValueError, "one device", q, k.to("meta"), v, good)
    for lengths in ([0, 8], [8, 9], [-1, 8]):
        raises(ValueError, "lengths must be in \\[1, 8\\]", q, k, v, lengths)
    raises(ValueError, "one per row", q, k, v, [8])
    raises(TypeError, "float", q, k, v, [8.0, 8.0])

    def on_device(*lengths: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(lengths, dtype=dtype, device=device)

    raises(TypeError, "int32", q, k, v, on_device(8, 8, dtype=torch.int64))
    raises(ValueError, "must be \\(2,\\)", q, k, v, on_device(8, 8, 8))
    raises(ValueError, "contiguous", q, k, v, on_device(8, 8, 8, 8)[::2])
    raises(ValueError, "lengths must be on", q, k, v, on_device(8, 8).to("meta"))
    if device.type == "cpu":
        raises(ValueError, "lengths must be in \\[1, 8\\]", q, k, v, on_device(8, 9))
    else:  # not read by the host, so clamped by the kernel
        clamped = decode_attention(q, k, v, on_device(0, 1000))
        assert_close(clamped, decode_attention_ref(q, k, v, [1, 8]))


def test_decode_attention_errors(run):
    run(check_decode_errors)


def test_decode_attention_ref_is_the_model_s_own():
    lengths = [64, 1, 1024]
    q, k, v = decode_inputs(torch.device("cpu"), lengths, 4, 64, F32)
    rows = zip(q.split(1), k.split(1), v.split(1), lengths, strict=True)
    own = [full_attention(q, k[:, :, :n], v[:, :, :n]) for q, k, v, n in rows]
    assert_close(decode_attention_ref(q, k, v, lengths), torch.cat(own))


def test_choose_n_splits():
    assert choose_n_splits(12, 900, 132) == 11  # small, H200
    assert choose_n_splits(16, 900, 132) == 8  # large, H200
    assert choose_n_splits(12, 1, 132) == 1
    assert choose_n_splits(133, 1024, 132) == 1
    for n_heads in (1, 4, 12, 16, 48, 500):
        for length in LENGTHS:
            n_splits = choose_n_splits(n_heads, length, 132)
            assert 1 <= n_splits <= MAX_SPLITS
            assert n_splits * n_heads <= max(132, n_heads)


def check_graph(device: torch.device) -> None:
    """One captured call serves growing lengths."""
    q, k, v = decode_inputs(device, [T_MAX, T_MAX], 12, 64, BF16)
    lengths = torch.tensor([1, 1], dtype=torch.int32, device=device)
    decode_attention(q, k, v, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(q, k, v, lengths)
    for now in ([1, 64], [887, 63], [1024, 1]):
        lengths.copy_(torch.tensor(now))
        graph.replay()
        assert_close(out, decode_attention_ref(q, k, v, now))


@pytest.mark.gpu
def test_decode_attention_in_a_cuda_graph():
    check_graph(gpu())


# ---- attention


def packed_inputs(
    device: torch.device,
    n_batch: int,
    n_head: int,
    n_positions: int,
    head_size: int,
    dtype: torch.dtype = F32,
) -> tuple[Tensor, ...]:
    """q, k and v as the model makes them: transposed views of one (B, T, 3 * C)."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (n_batch, n_positions, 3 * n_head * head_size)
    qkv = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return tuple(
        part.unflatten(-1, (n_head, head_size)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
    )


def check_attention(
    device: torch.device,
    n_batch: int,
    n_head: int,
    n_positions: int,
    causal: bool,
    dtype: torch.dtype = F32,
    head_size: int = 64,
    sharpness: float = 1.0,
    n_queries: int | None = None,
) -> None:
    q, k, v = packed_inputs(device, n_batch, n_head, n_positions, head_size, dtype)
    q.mul_(sharpness)
    q = q[:, :, -(n_queries or n_positions) :]
    with empty_is_nan():
        out = attention(q, k, v, causal=causal)
    assert out.transpose(1, 2).is_contiguous()
    assert_close(out, attention_ref(q, k, v, causal=causal), sharpness)


@pytest.mark.thinned
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_positions", LENGTHS)
def test_attention_at_each_length(run, n_positions, causal):
    run(check_attention, 1, 1, n_positions, causal)


@pytest.mark.thinned
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(("n_batch", "n_head"), [(3, 4), (1, 12), (1, 16)])
def test_attention_heads_and_rows(run, request, n_batch, n_head, dtype, causal):
    skip_if_interpreted(request, dtype)
    run(check_attention, n_batch, n_head, 65, causal, dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_attention_in_half_precision(run, request, dtype):
    skip_if_interpreted(request, dtype)
    run(check_attention, 1, 1, 887, True, dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("head_size", [16, 32, 128, 256])
def test_attention_head_sizes(run, head_size, dtype):
    run(check_attention, 1, 2, 70, True, dtype, head_size)


@pytest.mark.thinned
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_queries", "n_positions"), [(1, 70), (60, 257), (64, 65), (130, 191)])
def test_attention_of_the_last_queries(run, n_queries, n_positions, causal):
    run(check_attention, 2, 2, n_positions, causal, F32, 16, 1.0, n_queries)


def test_attention_with_scores_that_overflow_exp2(run):
    run(check_attention, 1, 2, 130, False, F32, 64, 40.0)


def check_attention_errors(device: torch.device) -> None:
    q, k, v = packed_inputs(device, 2, 2, 8, 16)

    def raises(error: type[Exception], words: str, *args: Tensor) -> None:
        with pytest.raises(error, match=words):
            attention(*args, causal=True)

    raises(TypeError, "share one dtype", q, k.half(), v)
    raises(ValueError, "must be \\(B, H, T, D\\)", q, k, v[0])
    raises(ValueError, "not empty", q[:0], k[:0], v[:0])
    raises(ValueError, "agree in B", q, k[:, :1], v[:, :1])
    raises(ValueError, "8 queries for 7 keys", q, k[:, :, :7], v[:, :, :7])
    raises(ValueError, "power of two", q[..., :12], k[..., :12], v[..., :12])
    raises(ValueError, "last dimension of q", q.mT.contiguous().mT, k, v)
    vast = torch.empty_strided(v.shape, (0, 0, 2**28, 1), device="meta")
    raises(ValueError, "2\\*\\*31", q, k, vast)
    raises(ValueError, "one device", q, k, v.to("meta"))


def test_attention_errors(run):
    run(check_attention_errors)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_ref_is_the_model_s_own(causal):
    q, k, v = packed_inputs(torch.device("cpu"), 2, 4, 257, 64)
    for first in (0, 200):
        last = q[:, :, first:]
        own = (causal_attention if causal else full_attention)(q, k, v)
        assert_close(attention_ref(last, k, v, causal=causal), own[:, :, first:])


# ---- both


def test_cpu_tensors_without_the_interpreter_are_an_error():
    skip_unless_native()
    q, k, v = packed_inputs(torch.device("cpu"), 1, 1, 1, 16)
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        attention(q, k, v, causal=True)
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        decode_attention(q, k, v, [1])


def test_importing_minibark_leaves_triton_alone():
    code = "import sys, minibark; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.thinned
@pytest.mark.parametrize(
    ("dtype", "capability", "ones"),
    [
        (F32, 90, ()),
        (F16, 90, ()),
        (BF16, 90, ()),
        (BF16, 80, ()),
        (BF16, 90, ("H", "Q", "T", "n_splits")),
        (BF16, 90, ("Q",)),
    ],
)
def test_kernels_compile_for_nvidia(monkeypatch, tmp_path, dtype, capability, ones):
    """Triton makes a constant of an argument that is 1."""
    skip_unless_native()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), POINTERS[dtype])
    kinds |= dict.fromkeys(("max_ptr", "sum_ptr", "acc_ptr"), "*fp32")
    kinds |= {"lengths_ptr": "*i32", "scale": "fp32"}
    block_q, block_k, num_warps = attention_file.choose_tiles(64 * dtype.itemsize)
    constants = {"D": 64, "BLOCK_D": 64, "CAUSAL": not ones, "BLOCK_Q": block_q}
    constants |= {"BLOCK_T": decode_file.TILE_SIZE // 64, "BLOCK_SPLITS": 1 if ones else 16}
    constants |= dict.fromkeys(ones, 1)
    constants |= {"PDL": capability >= 90 and launch.has_dependent_launch(), "EARLY": False}
    for kernel, block, warps in (
        (attention_file._attention_kernel, block_k, num_warps),
        (decode_file._decode_attention_kernel, None, 4),
        (decode_file._decode_attention_combine_kernel, None, 4),
    ):
        these = constants | {"BLOCK_K": block}
        compiled = compile_for_nvidia(kernel, kinds, these, capability, warps, 2)
        if constants["PDL"] and "PDL" in kernel.arg_names:
            assert not loads_before_the_wait(compiled)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_old_positions_are_asked_for_before_the_wait(monkeypatch, tmp_path, dtype):
    """A length, and a whole tile of keys and of values; q and the newest position come after."""
    skip_unless_native()
    if not launch.has_dependent_launch():
        pytest.skip("this Triton has no dependent launch")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), POINTERS[dtype])
    kinds |= dict.fromkeys(("max_ptr", "sum_ptr", "acc_ptr"), "*fp32")
    kinds |= {"lengths_ptr": "*i32", "scale": "fp32"}
    block_t = decode_file.TILE_SIZE // 64
    constants = {"D": 64, "BLOCK_D": 64, "BLOCK_T": block_t, "PDL": True, "EARLY": True}
    kernel = decode_file._decode_attention_kernel
    compiled = compile_for_nvidia(kernel, kinds, constants, 90, 4, 3, strides=True)
    loads = loads_before_the_wait(compiled)
    assert loads.count("ld.global.b32") == 1
    n_threads, n_bytes = 4 * 32, 16
    wide = loads.count("ld.global.v4.b32")
    assert len(loads) == 1 + wide
    assert wide * n_threads * n_bytes == 2 * block_t * 64 * dtype.itemsize
