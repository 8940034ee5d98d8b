"""The fused linear layers and the decode layer made of them, as `test_kernels.py` has attention."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install triton (Linux)", allow_module_level=True)

import triton
import triton.language as tl
from kernel_runs import (
    BF16,
    F16,
    F32,
    INT8,
    LENGTHS,
    POINTERS,
    T_MAX,
    assert_close,
    compile_for_nvidia,
    empty_is_nan,
    gpu,
    loads_before_the_wait,
    skip_unless_native,
)
from triton.compiler import CompiledKernel

from minibark.checkpoint.rows import quantize_rows
from minibark.config import GPTConfig
from minibark.gpu.fused import _layer
from minibark.kernels import decode_attention as decode_file
from minibark.kernels import launch, linear_kernels
from minibark.kernels import linear as linear_file
from minibark.kernels.decode_attention import Splits, decode_attention_ref, decode_attention_splits
from minibark.kernels.layer import Layer, decode_layer, decode_layer_ref
from minibark.kernels.linear import (
    TILE_SIZE,
    choose_tile,
    combine_residual,
    combine_residual_ref,
    linear_residual,
    linear_residual_ref,
    norm_linear,
    norm_linear_ref,
    norm_qkv,
    norm_qkv_ref,
)
from minibark.kernels.matrix import Matrix, Norm
from minibark.model import GPT, KVCache

DTYPES = (F32, F16, BF16, INT8)
IN_A_ROW = 4  # times the tolerance of one operation, for a layer and more


def randn(rng: torch.Generator, *shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device).to(dtype)


def make_rng(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def make_norm(
    rng: torch.Generator, size: int, dtype: torch.dtype = F32, *, bias: bool = True
) -> Norm:
    weight, shift = 1 + 0.1 * randn(rng, size), 0.1 * randn(rng, size)
    return Norm(weight.to(dtype), shift.to(dtype) if bias else None, 1e-5)


def make_matrix(
    rng: torch.Generator, n_out: int, n_in: int, dtype: torch.dtype = F32, *, bias: bool = True
) -> Matrix:
    """Weights that give outputs about as large as the inputs, with NaN behind them in memory."""
    weight = randn(rng, n_out, n_in) / math.sqrt(n_in)
    shift = randn(rng, n_out) if bias else None
    if dtype == INT8:
        return Matrix(*quantize_rows(weight), shift)
    memory = torch.full((n_out + 4, n_in), math.nan, device=rng.device, dtype=dtype)
    memory[:n_out] = weight
    return Matrix(memory[:n_out], None, None if shift is None else shift.to(dtype))


def rounded_to(dtype: torch.dtype, x: Tensor) -> torch.dtype:
    """What the factors of x and weights are rounded to: nothing if interpreted or with one row."""
    if len(x) == 1 or not x.is_cuda:
        return F32
    return BF16 if dtype == INT8 else dtype


# ---- norm_linear


def check_norm_linear(
    device: torch.device,
    n_rows: int,
    n_out: int,
    n_in: int,
    dtype: torch.dtype = F32,
    norm_bias: bool = True,
    bias: bool = True,
    gelu: bool = False,
) -> None:
    rng = make_rng(device)
    x = randn(rng, n_rows, n_in)
    norm = make_norm(rng, n_in, F32 if dtype == INT8 else dtype, bias=norm_bias)
    matrix = make_matrix(rng, n_out, n_in, dtype, bias=bias)
    before = x.clone()
    with empty_is_nan():
        out = norm_linear(x, norm, matrix, gelu=gelu)
    assert out.dtype == F32
    expected = norm_linear_ref(x, norm, matrix, gelu=gelu)
    assert_close(out, expected, dtype=rounded_to(dtype, x))
    assert torch.equal(x, before)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("n_out", LENGTHS)
def test_norm_linear_at_each_number_of_outputs(run, n_out, n_rows):
    run(check_norm_linear, n_rows, n_out, 64)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", [1, 3, 17])
def test_norm_linear_dtypes(run, n_rows, dtype):
    run(check_norm_linear, n_rows, 100, 192, dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("norm_bias", "bias"), [(False, False), (False, True), (True, False)])
def test_norm_linear_without_some_of_it(run, norm_bias, bias, gelu, n_rows):
    run(check_norm_linear, n_rows, 40, 64, F32, norm_bias, bias, gelu)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 17])
@pytest.mark.parametrize(
    ("n_out", "n_in"), [(1, 16), (70, 768), (33, 1024), (5, 3072), (3, 4096), (3, 9216)]
)
def test_norm_linear_sizes(run, n_out, n_in, n_rows):
    run(check_norm_linear, n_rows, n_out, n_in)


def check_large_mean(device: torch.device, n_rows: int) -> None:
    """E[x^2] - E[x]^2 would be wrong by a twentieth in float32 here."""
    rng = make_rng(device)
    x = 1000 + randn(rng, n_rows, 768)
    norm, matrix = make_norm(rng, 768), make_matrix(rng, 20, 768)
    normalized = F.layer_norm(
        x.double(), (768,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    expected = F.linear(normalized, matrix.weight.double(), matrix.bias.double()).float()
    torch.testing.assert_close(norm_linear(x, norm, matrix), expected, atol=1e-3, rtol=0)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 3])
def test_norm_linear_of_rows_with_a_large_mean(run, n_rows):
    run(check_large_mean, n_rows)


# ---- norm_qkv


def make_kv(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "(B, H, T, D)"
) -> tuple[Tensor, Tensor]:
    """A cache of NaN, and the memory it is a view of."""
    two, n_batch, n_head, n_positions, head_size = shape
    if layout == "(B, T, H, D)":
        shape = (two, n_batch, n_positions, n_head, head_size)
        memory = torch.full(shape, math.nan, device=device, dtype=dtype)
        return memory.transpose(2, 3), memory
    around = (two, n_batch, n_head, 3 * n_positions, 2 * head_size)
    if layout == "part of more":
        memory = torch.full(around, math.nan, device=device, dtype=dtype)
        return memory[:, :, :, n_positions : 2 * n_positions, :head_size], memory
    memory = torch.full(shape, math.nan, device=device, dtype=dtype)
    return memory, memory


def check_norm_qkv(
    device: torch.device,
    lengths: list[int],
    n_head: int = 4,
    head_size: int = 16,
    dtype: torch.dtype = F32,
    cache_dtype: torch.dtype = F32,
    layout: str = "(B, H, T, D)",
    bias: bool = True,
    t_max: int = T_MAX,
) -> None:
    rng = make_rng(device)
    n_rows, n_embd = len(lengths), n_head * head_size
    x = randn(rng, n_rows, n_embd)
    norm = make_norm(rng, n_embd, F32 if dtype == INT8 else dtype, bias=bias)
    matrix = make_matrix(rng, 3 * n_embd, n_embd, dtype, bias=bias)
    kv, memory = make_kv(device, (2, n_rows, n_head, t_max, head_size), cache_dtype, layout)
    given = torch.tensor(lengths, dtype=torch.int32, device=device)
    with empty_is_nan():
        q = norm_qkv(x, norm, matrix, kv, given)
    assert q.dtype == cache_dtype
    assert q.shape == (n_rows, n_head, 1, head_size)
    assert q.is_contiguous()
    clamped = given.clamp(1, t_max)
    expected_kv = torch.full_like(kv, math.nan)
    expected_q = norm_qkv_ref(x, norm, matrix, expected_kv, clamped)
    tolerance = rounded_to(dtype, x) if cache_dtype == F32 else cache_dtype
    assert_close(q, expected_q, dtype=tolerance)
    for b, length in enumerate(clamped.tolist()):
        new = (slice(None), b, slice(None), length - 1)
        assert_close(kv[new], expected_kv[new], dtype=tolerance)
        kv[new] = math.nan
    assert memory.isnan().all()  # nothing else was written


@pytest.mark.thinned
@pytest.mark.parametrize("length", LENGTHS)
def test_norm_qkv_at_each_length(run, length):
    run(check_norm_qkv, [length])


@pytest.mark.thinned
@pytest.mark.parametrize(("n_head", "head_size"), [(4, 64), (12, 40), (16, 24), (3, 16)])
@pytest.mark.parametrize("lengths", [[887], [257, 1, 1024]])
def test_norm_qkv_heads_and_rows(run, lengths, n_head, head_size):
    run(check_norm_qkv, lengths, n_head, head_size)


def test_norm_qkv_of_more_rows_than_one_tile(run):
    run(check_norm_qkv, list(range(1, 18)))


@pytest.mark.thinned
@pytest.mark.parametrize("lengths", [[63], [64, 1, 100]])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [(F16, F16), (BF16, BF16), (INT8, F32), (INT8, BF16)]
)
def test_norm_qkv_dtypes(run, dtype, cache_dtype, lengths):
    run(check_norm_qkv, lengths, 4, 16, dtype, cache_dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("lengths", [[63], [64, 1, 100]])
@pytest.mark.parametrize("layout", ["(B, T, H, D)", "part of more"])
def test_norm_qkv_into_strided_caches(run, layout, lengths):
    run(check_norm_qkv, lengths, 4, 16, F32, F32, layout, False, 100)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[0], [1000], [-5, 8, 9]])
def test_norm_qkv_clamps_lengths_on_a_gpu(lengths):
    check_norm_qkv(gpu(), lengths, 4, 16, F32, F32, "part of more", True, 8)


# ---- linear_residual and combine_residual


def make_residual(rng: torch.Generator, n_rows: int, n_out: int) -> tuple[Tensor, Tensor]:
    """A residual, and the memory it lies in, between rows of NaN."""
    memory = torch.full((n_rows + 2, n_out), math.nan, device=rng.device)
    memory[1:-1] = randn(rng, n_rows, n_out)
    return memory[1:-1], memory


def check_linear_residual(
    device: torch.device,
    n_rows: int,
    n_out: int,
    n_in: int,
    dtype: torch.dtype = F32,
    x_dtype: torch.dtype = F32,
    bias: bool = True,
) -> None:
    rng = make_rng(device)
    x = randn(rng, n_rows, n_in, dtype=x_dtype)
    matrix = make_matrix(rng, n_out, n_in, dtype, bias=bias)
    residual, memory = make_residual(rng, n_rows, n_out)
    expected = residual.clone()
    linear_residual_ref(x, matrix, expected)
    linear_residual(x, matrix, residual)
    assert_close(residual, expected, dtype=rounded_to(dtype, x))
    assert memory[[0, -1]].isnan().all()


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("n_out", LENGTHS)
def test_linear_residual_at_each_number_of_outputs(run, n_out, n_rows):
    run(check_linear_residual, n_rows, n_out, 64)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 3, 17])
@pytest.mark.parametrize(
    ("dtype", "x_dtype"),
    [(F32, F32), (F16, F16), (BF16, BF16), (INT8, F32), (INT8, BF16), (BF16, F32), (F16, BF16)],
)
def test_linear_residual_dtypes(run, dtype, x_dtype, n_rows):
    run(check_linear_residual, n_rows, 100, 192, dtype, x_dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("n_rows", [1, 17])
@pytest.mark.parametrize(("n_out", "n_in"), [(70, 768), (33, 1024), (5, 3072), (3, 4096)])
def test_linear_residual_sizes(run, n_out, n_in, n_rows):
    run(check_linear_residual, n_rows, n_out, n_in, F32, F32, False)


def check_combine_residual(
    device: torch.device,
    length: int,
    n_head: int,
    head_size: int,
    dtype: torch.dtype = F32,
    bias: bool = True,
    n_out: int = 100,
) -> None:
    """Against the reference, and against attention without splits."""
    rng = make_rng(device)
    q = randn(rng, 1, n_head, 1, head_size)
    k, v = (randn(rng, 1, n_head, T_MAX, head_size) for _ in range(2))
    for buffer in (k, v):
        buffer[:, :, length:] = math.nan
    matrix = make_matrix(rng, n_out, n_head * head_size, dtype, bias=bias)
    residual, memory = make_residual(rng, 1, n_out)
    expected, unsplit = residual.clone(), residual.clone()
    lengths = torch.tensor([length], dtype=torch.int32, device=device)
    with empty_is_nan():
        splits = decode_attention_splits(q, k, v, lengths)
        combine_residual(splits, matrix, residual)
    if length == 5:
        assert splits.max.isneginf().any()  # some are empty
    combine_residual_ref(splits, matrix, expected)
    assert_close(residual, expected)
    linear_residual_ref(decode_attention_ref(q, k, v, lengths).view(1, -1), matrix, unsplit)
    assert_close(residual, unsplit)
    assert memory[[0, -1]].isnan().all()


@pytest.mark.thinned
@pytest.mark.parametrize("length", LENGTHS)
def test_combine_residual_at_each_length(run, length):
    run(check_combine_residual, length, 4, 16)


@pytest.mark.thinned
@pytest.mark.parametrize("n_head", [4, 12, 16])
@pytest.mark.parametrize(("length", "bias"), [(5, True), (887, False)])
def test_combine_residual_heads(run, length, bias, n_head):
    run(check_combine_residual, length, n_head, 64, F32, bias)


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [24, 40])
def test_combine_residual_dtypes(run, head_size, dtype):
    run(check_combine_residual, 257, 4, head_size, dtype)


@pytest.mark.thinned
@pytest.mark.parametrize("n_out", [1, 63, 257])
def test_combine_residual_numbers_of_outputs(run, n_out):
    run(check_combine_residual, 5, 1, 16, F32, True, n_out)


# ---- decode_layer


def make_layer(
    rng: torch.Generator, n_embd: int, dtype: torch.dtype, *, bias: bool = True
) -> Layer:
    norm_dtype = F32 if dtype == INT8 else dtype
    return Layer(
        norm_1=make_norm(rng, n_embd, norm_dtype, bias=bias),
        qkv=make_matrix(rng, 3 * n_embd, n_embd, dtype, bias=bias),
        proj=make_matrix(rng, n_embd, n_embd, dtype, bias=bias),
        norm_2=make_norm(rng, n_embd, norm_dtype, bias=bias),
        fc=make_matrix(rng, 4 * n_embd, n_embd, dtype, bias=bias),
        out=make_matrix(rng, n_embd, 4 * n_embd, dtype, bias=bias),
    )


def filled_kv(
    rng: torch.Generator, lengths: list[int], n_head: int, head_size: int, dtype: torch.dtype
) -> Tensor:
    """A cache with all but the newest of each row's positions; NaN from there on."""
    shape = (2, len(lengths), n_head, T_MAX, head_size)
    kv = randn(rng, *shape, dtype=dtype)
    for b, length in enumerate(lengths):
        kv[:, b, :, length - 1 :] = math.nan
    return kv


def check_decode_layer(
    device: torch.device,
    lengths: list[int],
    n_head: int = 2,
    head_size: int = 64,
    dtype: torch.dtype = F32,
    cache_dtype: torch.dtype = F32,
    bias: bool = True,
) -> None:
    rng = make_rng(device)
    n_embd = n_head * head_size
    layer = make_layer(rng, n_embd, dtype, bias=bias)
    x = randn(rng, len(lengths), n_embd)
    kv = filled_kv(rng, lengths, n_head, head_size, cache_dtype)
    expected, expected_kv, before = x.clone(), kv.clone(), kv.clone()
    given = torch.tensor(lengths, dtype=torch.int32, device=device)
    decode_layer_ref(expected, layer, expected_kv, given)
    with empty_is_nan():
        decode_layer(x, layer, kv, given)
    tolerance = rounded_to(dtype, x) if cache_dtype == F32 else cache_dtype
    assert_close(x, expected, IN_A_ROW, tolerance)
    for b, length in enumerate(lengths):
        new = (slice(None), b, slice(None), length - 1)
        assert_close(kv[new], expected_kv[new], dtype=tolerance)
        kv[new] = math.nan
    torch.testing.assert_close(kv, before, atol=0, rtol=0, equal_nan=True)


@pytest.mark.thinned
@pytest.mark.parametrize("length", LENGTHS)
def test_decode_layer_at_each_length(run, length):
    run(check_decode_layer, [length])


@pytest.mark.thinned
@pytest.mark.parametrize(("n_head", "head_size"), [(4, 64), (12, 40), (16, 24)])
def test_decode_layer_heads(run, n_head, head_size):
    run(check_decode_layer, [887], n_head, head_size)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[1], [887], [1024], [1024, 5, 887]])
@pytest.mark.parametrize("n_head", [12, 16])
def test_decode_layer_of_released_sizes(n_head, lengths, dtype):
    check_decode_layer(gpu(), lengths, n_head, 64, dtype, BF16 if dtype == INT8 else dtype)


@pytest.mark.thinned
@pytest.mark.parametrize(("n_head", "head_size"), [(4, 64), (12, 16), (16, 24)])
def test_decode_layer_over_rows_of_different_lengths(run, n_head, head_size):
    run(check_decode_layer, [257, 1, 1024], n_head, head_size)


@pytest.mark.thinned
@pytest.mark.parametrize("lengths", [[64], [64, 1, 100]])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [(F16, F16), (BF16, BF16), (INT8, F32), (INT8, BF16)]
)
def test_decode_layer_dtypes(run, dtype, cache_dtype, lengths):
    run(check_decode_layer, lengths, 4, 16, dtype, cache_dtype, dtype != F16)


def check_block(device: torch.device, lengths: list[int], n_head: int, bias: bool) -> None:
    """Several steps of the model's own layer, whose code shares nothing with the kernels."""
    rng = make_rng(device)
    config = GPTConfig(block_size=80, n_layer=1, n_head=n_head, n_embd=96, bias=bias)
    model = GPT(config).to(device).requires_grad_(False)
    block = model.transformer.blocks[0]
    for parameter in block.parameters():
        scale = math.sqrt(parameter.shape[-1]) if parameter.dim() == 2 else 4
        parameter.copy_(randn(rng, *parameter.shape) / scale + (parameter.dim() == 1))
    layer = _layer(block)
    cache = KVCache(model, len(lengths))
    cache.lengths = list(lengths)
    kv = cache.kv[0]
    kv.copy_(randn(rng, *kv.shape))
    ours = kv.clone()
    for step in range(1, 6):
        x = randn(rng, len(lengths), config.n_embd)
        cache.begin_step()
        expected = block(x[:, None], partial(cache.attend, 0))[:, 0]
        given = torch.tensor([n + step for n in lengths], dtype=torch.int32, device=device)
        decode_layer(x, layer, ours, given)
        assert_close(x, expected, IN_A_ROW)
    assert_close(ours, kv, IN_A_ROW)


@pytest.mark.thinned
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("lengths", "n_head"), [([0], 6), ([62], 4), ([0, 63, 17], 4)])
def test_decode_layer_is_the_model_s_own(run, lengths, n_head, bias):
    run(check_block, lengths, n_head, bias)


# ---- tiles and compilation


def products(n_embd: int) -> dict[str, tuple[int, int, dict[str, int]]]:
    """N, K and what is fused, of the four products of a layer in a checkpoint as released."""
    n_splits = {768: 11, 1024: 8}[n_embd]
    return {
        "qkv": (3 * n_embd, n_embd, {"NORM": True, "APPEND": True}),
        "proj": (n_embd, n_embd, {"ADD": True, "N_SPLITS": n_splits}),
        "fc": (4 * n_embd, n_embd, {"NORM": True, "GELU": True}),
        "out": (n_embd, 4 * n_embd, {"ADD": True}),
    }


def test_choose_tile():
    sizes = [product[:2] for n_embd in (768, 1024) for product in products(n_embd).values()]
    tiles = [(8, 1024), (4, 1024), (8, 1024), (2, 4096)]
    assert [choose_tile(*size) for size in sizes] == 2 * tiles
    heads = [(n, n_embd) for n in (1024, 10_001) for n_embd in (768, 1024)]
    others = [(n, k) for n in LENGTHS for k in (16, 48, 1040, TILE_SIZE, TILE_SIZE + 16)]
    for n_out, n_in in sizes + heads + others:
        block_n, block_k = choose_tile(n_out, n_in)
        assert block_k >= n_in > block_k // 2
        assert block_n * block_k <= TILE_SIZE or block_n == 1
        assert block_n & (block_n - 1) == block_k & (block_k - 1) == 0
        if block_n > 1:  # not less than there is room for
            assert block_n * block_k >= TILE_SIZE // 2
    # Every output belongs to one program, and each of 132 processors has at least one.
    for n_out, n_in in sizes:
        block_n, _ = choose_tile(n_out, n_in)
        assert n_out % block_n == 0
        assert n_out // block_n >= 132


def compile_linear(
    kernel: triton.JITFunction,
    n_embd: int,
    product: str,
    dtype: torch.dtype,
    capability: int,
    bias: bool,
) -> CompiledKernel:
    n_out, n_in, flags = products(n_embd)[product]
    block_n, block_k = choose_tile(n_out, n_in)
    others = POINTERS[BF16 if dtype == INT8 else dtype]
    kinds = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")} | {"eps": "fp32"}
    kinds |= dict.fromkeys(("norm_weight_ptr", "norm_bias_ptr", "bias_ptr", "kv_ptr"), others)
    kinds |= {"weight_ptr": POINTERS[dtype], "lengths_ptr": "*i32"}
    if product == "qkv":
        kinds["out_ptr"] = others
    constants = dict.fromkeys(("NORM", "APPEND", "ADD", "GELU", "N_SPLITS"), 0) | flags
    constants |= {"K": n_in, "H": n_embd // 64, "T": T_MAX, "D": 64}
    constants |= {"NORM_BIAS": bias, "BIAS": bias, "INT8": dtype == INT8}
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k}
    constants["PDL"] = capability >= 90 and launch.has_dependent_launch()
    if kernel is linear_kernels._batched_linear_kernel:
        constants |= {"BLOCK_N": linear_file.BATCH_BLOCK_N, "BLOCK_K": linear_file.BATCH_BLOCK_K}
        constants["ROWS"] = linear_file.ROWS
        product_type = {F32: tl.float32, F16: tl.float16}.get(dtype, tl.bfloat16)
        constants["PRODUCT_TYPE"] = product_type
    return compile_for_nvidia(kernel, kinds, constants, capability, 4, 3)


def assert_nothing_is_spilled(compiled: CompiledKernel, path: Path) -> None:
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        return
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [cuobjdump, "-res-usage", path], capture_output=True, text=True, check=True
    )
    assert re.search(r"\bSTACK:0\b.*\bLOCAL:0\b", usage.stdout + usage.stderr)


COMPILED = [(90, 768, BF16), (90, 768, F32), (90, 768, INT8), (90, 1024, BF16), (90, 1024, F32)]
COMPILED += [(90, 1024, INT8), (90, 768, F16), (80, 1024, BF16), (80, 768, INT8)]


@pytest.mark.thinned
@pytest.mark.parametrize(("capability", "n_embd", "dtype"), COMPILED)
def test_one_row_kernels_compile(monkeypatch, tmp_path, capability, n_embd, dtype):
    """All of a program's parameters, and nothing else, are asked for before it waits."""
    skip_unless_native()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for product, (n_out, n_in, flags) in products(n_embd).items():
        kernel, bias = linear_kernels._linear_kernel, dtype == F16
        compiled = compile_linear(kernel, n_embd, product, dtype, capability, bias)
        assert_nothing_is_spilled(compiled, tmp_path / "cubin")
        if product == "out":  # x is not moved between threads: only the sum along k is
            assert compiled.asm["ptx"].count("bar.sync") <= 4
        if capability >= 90 and launch.has_dependent_launch():
            loads = Counter(loads_before_the_wait(compiled))
            n_threads, n_bytes = 4 * 32, 16
            block_n, block_k = choose_tile(n_out, n_in)
            others = 2 if dtype == INT8 else dtype.itemsize
            norm = block_k * others * (1 + bias) * flags.get("NORM", False)
            n_wide = loads.pop("ld.global.v4.b32")
            assert n_wide * n_bytes * n_threads == block_n * block_k * dtype.itemsize + norm
            # The rest is a value for each output: int8's scale and the matrix's bias.
            assert bool(loads) == (bias or dtype == INT8)
            assert set(loads) <= {"ld.global.b16", "ld.global.b32"}
            assert sum(loads.values()) <= block_n
        else:
            assert "griddepcontrol" not in compiled.asm["ptx"]


@pytest.mark.thinned
@pytest.mark.parametrize(
    ("capability", "n_embd", "dtype"),
    [(90, 1024, BF16), (90, 768, INT8), (90, 768, F32), (80, 768, BF16)],
)
def test_batched_kernels_compile(monkeypatch, tmp_path, capability, n_embd, dtype):
    skip_unless_native()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for product in ("qkv", "fc", "out"):
        kernel = linear_kernels._batched_linear_kernel
        compiled = compile_linear(kernel, n_embd, product, dtype, capability, False)
        assert_nothing_is_spilled(compiled, tmp_path / "cubin")
        if dtype != F32:
            assert re.search(r"\bw?g?mma\S*sync", compiled.asm["ptx"])  # tensor cores
        if capability >= 90 and launch.has_dependent_launch():
            assert set(loads_before_the_wait(compiled)) <= {"ld.global.b32"}  # int8's scale


# ---- on a GPU


class Recorded:
    """Some layers in a CUDA graph, from `start` to `x`."""

    def __init__(
        self, device: torch.device, n_rows: int, n_head: int, dtype: torch.dtype, n_layer: int
    ) -> None:
        rng = make_rng(device)
        n_embd = n_head * 64
        self.layers = [make_layer(rng, n_embd, dtype) for _ in range(n_layer)]
        shape = (2, n_rows, n_head, T_MAX, 64)
        cache_dtype = BF16 if dtype == INT8 else dtype
        self.kvs = [randn(rng, *shape, dtype=cache_dtype) for _ in range(n_layer)]
        self.start, self.x = randn(rng, n_rows, n_embd), randn(rng, n_rows, n_embd)
        self.lengths = torch.ones(n_rows, dtype=torch.int32, device=device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def step(self) -> None:
        self.x.copy_(self.start)
        for layer, kv in zip(self.layers, self.kvs, strict=True):
            decode_layer(self.x, layer, kv, self.lengths)

    def expected(self) -> Tensor:
        x = self.start.clone()
        for layer, kv in zip(self.layers, self.kvs, strict=True):
            decode_layer_ref(x, layer, kv.clone(), self.lengths)
        return x


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_layers_in_a_cuda_graph_at_growing_lengths(n_rows, dtype):
    recorded = Recorded(gpu(), n_rows, 12, dtype, 2)
    for length in LENGTHS:
        lengths = [length, 1, T_MAX][:n_rows]
        recorded.lengths.copy_(torch.tensor(lengths))
        expected = recorded.expected()
        recorded.graph.replay()
        cache_dtype = recorded.kvs[0].dtype
        assert_close(recorded.x, expected, 2 * IN_A_ROW, cache_dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("n_head", [12, 16])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_two_hundred_replays_give_the_same_bits(n_rows, n_head):
    """Two inputs in turn, so that whoever reads too early reads what is wrong."""
    recorded = Recorded(gpu(), n_rows, n_head, BF16, 12)
    recorded.lengths.fill_(900)
    starts = torch.stack((recorded.start, -2 * recorded.start + 1))
    outs = torch.empty((200, *recorded.x.shape), device=recorded.x.device)
    for i in range(200):
        recorded.start.copy_(starts[i % 2])
        recorded.graph.replay()
        outs[i] = recorded.x
    for first in (0, 1):
        assert (outs[first::2] == outs[first]).all()
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.gpu
@pytest.mark.parametrize("n_rows", [1, 3])
def test_dependent_launch_changes_no_bits(monkeypatch, n_rows):
    device = gpu()
    if not launch.dependent_launch(device)["PDL"]:
        pytest.skip("no dependent launch here")
    ahead = Recorded(device, n_rows, 12, BF16, 12)
    for module in (linear_file, decode_file):
        monkeypatch.setattr(module, "dependent_launch", lambda device: {"PDL": False})
    behind = Recorded(device, n_rows, 12, BF16, 12)
    for _ in range(20):
        for recorded in (ahead, behind):
            recorded.lengths.fill_(900)
            recorded.graph.replay()
        assert torch.equal(ahead.x, behind.x)


def run_all_kernels() -> None:
    """What `compute-sanitizer` watches."""
    device = torch.device("cuda")
    for lengths in ([1], [257], [1000, 1, 64]):
        for dtype in (BF16, INT8):
            check_decode_layer(device, lengths, 4, 40, dtype, BF16)
        check_norm_qkv(device, [*lengths[1:], 2000], 4, 16, F32, F32, "part of more", True, 100)


@pytest.mark.gpu
def test_compute_sanitizer_finds_nothing():
    gpu()
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    code = "import test_linear_kernels; test_linear_kernels.run_all_kernels()"
    # Each tensor gets memory of its own, so that what lies behind it is nobody's.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [sanitizer, "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-c", code]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ---- errors


def raises(error: type[Exception], words: str, call: object, *args: object, **options: object):
    with pytest.raises(error, match=words):
        call(*args, **options)


def check_shared_errors(device: torch.device) -> None:
    """What all four refuse, by the one that takes everything."""
    rng = make_rng(device)
    x, norm, matrix = randn(rng, 2, 32), make_norm(rng, 32), make_matrix(rng, 24, 32)
    int8 = make_matrix(rng, 24, 32, INT8)
    weight, _, bias = matrix
    wide = randn(rng, 24, 64)

    def wrong(error: type[Exception], words: str, **changed: object) -> None:
        given = {"x": x, "norm": norm, "matrix": matrix} | changed
        raises(error, words, norm_linear, given["x"], given["norm"], given["matrix"])

    wrong(TypeError, "x must be float32", x=x.half())
    wrong(TypeError, "x must be float32", x=x.double())
    wrong(TypeError, "int8 with a scale; got torch.int8 without", matrix=Matrix(int8.weight))
    wrong(TypeError, "got torch.float32 with", matrix=Matrix(weight, int8.scale))
    wrong(TypeError, "the weight must be", matrix=Matrix(weight.double()))
    wrong(TypeError, "the weight must be", matrix=Matrix(int8.weight.to(torch.uint8)))
    wrong(ValueError, "\\(N, K\\), contiguous", matrix=Matrix(weight[None]))
    wrong(ValueError, "\\(N, K\\), contiguous", matrix=Matrix(wide[:, :32]))
    wrong(ValueError, "\\(N, K\\), contiguous", matrix=Matrix(wide[:, ::2]))
    wrong(ValueError, "\\(N, K\\), contiguous", matrix=Matrix(randn(rng, 32, 24).T))
    wrong(ValueError, "multiple of 16", x=x[:, :24].contiguous(), matrix=make_matrix(rng, 4, 24))
    wrong(ValueError, "x must be \\(B, 32\\)", x=x[0])
    wrong(ValueError, "x must be \\(B, 32\\)", x=x[None])
    wrong(ValueError, "x must be \\(B, 32\\)", x=randn(rng, 2, 16))
    wrong(ValueError, "x must be \\(B, 32\\)", x=randn(rng, 32, 2).T)
    wrong(ValueError, "not empty", x=x[:0])
    for name in ("weight", "bias"):
        for vector in (wide[0], x[:1], wide[0, ::2], randn(rng, 1)):
            wrong(
                ValueError, f"norm {name} must be \\(32,\\)", norm=norm._replace(**{name: vector})
            )
        double = norm._replace(**{name: randn(rng, 32, dtype=torch.float64)})
        wrong(TypeError, f"norm {name} must be floats", norm=double)
        elsewhere = norm._replace(**{name: randn(rng, 32).to("meta")})
        wrong(ValueError, f"norm {name} must be on", norm=elsewhere)
    for name, good in (("bias", matrix), ("scale", int8)):
        vector = getattr(good, name)
        for bad in (vector[:23], vector[None], torch.cat((vector, vector))[::2]):
            wrong(ValueError, f"{name} must be \\(24,\\)", matrix=good._replace(**{name: bad}))
        for bad in (vector.double(), vector.int()):
            wrong(TypeError, f"{name} must be floats", matrix=good._replace(**{name: bad}))
        elsewhere = good._replace(**{name: vector.to("meta")})
        wrong(ValueError, f"{name} must be on", matrix=elsewhere)
    wrong(TypeError, "scale must be floats", matrix=int8._replace(scale=int8.scale.half()))
    wrong(ValueError, "weight must be on", matrix=Matrix(weight.to("meta"), None, bias))


def test_norm_linear_errors(run):
    run(check_shared_errors)


def check_norm_qkv_errors(device: torch.device) -> None:
    rng = make_rng(device)
    x, norm, matrix = randn(rng, 2, 32), make_norm(rng, 32), make_matrix(rng, 96, 32)
    kv = randn(rng, 2, 2, 2, 8, 16)

    def on_device(*lengths: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(lengths, dtype=dtype, device=device)

    good = {"x": x, "norm": norm, "matrix": matrix, "kv": kv, "lengths": on_device(8, 1)}

    def wrong(error: type[Exception], words: str, **changed: object) -> None:
        raises(error, words, norm_qkv, *(good | changed).values())

    wrong(ValueError, "kv must be \\(2, 2, H, T, D\\)", kv=kv[0])
    wrong(ValueError, "kv must be \\(2, 2, H, T, D\\)", kv=kv[:1])
    wrong(ValueError, "kv must be \\(2, 2, H, T, D\\)", kv=kv[:, :1])
    wrong(ValueError, "contiguous in D", kv=kv.mT.contiguous().mT)
    wrong(TypeError, "kv must be float32", kv=kv.double())
    wrong(TypeError, "kv must be float32", kv=kv.to(INT8))
    wrong(ValueError, "3 \\* 16 rows", kv=kv[:, :, :1])
    wrong(ValueError, "3 \\* 32 rows", matrix=make_matrix(rng, 95, 32))
    wrong(ValueError, "kv be on", kv=kv.to("meta"))
    wrong(ValueError, "x must be", x=randn(rng, 2, 16))
    wrong(TypeError, "x must be", x=x.bfloat16())
    wrong(TypeError, "int32", lengths=on_device(8, 8, dtype=torch.int64))
    wrong(ValueError, "must be \\(2,\\)", lengths=on_device(8, 8, 8))
    wrong(ValueError, "must be \\(2,\\)", lengths=on_device(8))
    wrong(ValueError, "contiguous", lengths=on_device(8, 8, 8, 8)[::2])
    wrong(ValueError, "lengths must be on", lengths=on_device(8, 8).to("meta"))
    if device.type == "cpu":
        for lengths in ((0, 8), (8, 9), (-1, 8)):
            wrong(ValueError, "lengths must be in \\[1, 8\\]", lengths=on_device(*lengths))
    before = kv.clone()
    wrong(ValueError, "norm weight", norm=norm._replace(weight=x[0, :16]))
    assert torch.equal(kv, before)


def test_norm_qkv_errors(run):
    run(check_norm_qkv_errors)


def check_residual_errors(device: torch.device) -> None:
    rng = make_rng(device)
    x, matrix, residual = randn(rng, 2, 32), make_matrix(rng, 24, 32), randn(rng, 2, 24)
    raises(TypeError, "residual must be float32", linear_residual, x, matrix, residual.half())
    for bad in (residual[:1], residual[:, :23], residual[0], randn(rng, 24, 2).T):
        raises(ValueError, "residual must be \\(2, 24\\)", linear_residual, x, matrix, bad)
    raises(ValueError, "residual must be on", linear_residual, x, matrix, residual.to("meta"))
    raises(TypeError, "x must be", linear_residual, x.to(INT8), matrix, residual)
    raises(TypeError, "x must be", linear_residual, x.double(), matrix, residual)
    raises(ValueError, "x must be", linear_residual, randn(rng, 32, 2).T, matrix, residual)
    raises(ValueError, "not empty", linear_residual, x[:0], matrix, residual[:0])
    raises(ValueError, "must be on meta", linear_residual, x.to("meta"), matrix, residual)


def test_linear_residual_errors(run):
    run(check_residual_errors)


def check_combine_errors(device: torch.device) -> None:
    rng = make_rng(device)
    splits = Splits(randn(rng, 2, 3), randn(rng, 2, 3).abs(), randn(rng, 2, 3, 16))
    matrix, residual = make_matrix(rng, 24, 32), randn(rng, 1, 24)

    def wrong(error: type[Exception], words: str, **changed: Tensor) -> None:
        raises(error, words, combine_residual, splits._replace(**changed), matrix, residual)

    rows = randn(rng, 2, 24)
    raises(ValueError, "residual must be \\(1, 24\\)", combine_residual, splits, matrix, rows)
    raises(TypeError, "residual must", combine_residual, splits, matrix, residual.half())
    raises(ValueError, "residual must be on", combine_residual, splits, matrix, residual.to("meta"))
    two_rows = Splits(*(torch.cat((part, part)) for part in splits))
    raises(ValueError, "32 columns, got 4 heads", combine_residual, two_rows, matrix, residual)
    wrong(ValueError, "32 columns, got 2 heads of 8", acc=splits.acc[..., :8].contiguous())
    wrong(ValueError, "must be \\(H, n_splits, D\\)", acc=splits.acc[0])
    wrong(ValueError, "contiguous", acc=splits.acc.mT.contiguous().mT)
    wrong(TypeError, "splits must be float32", acc=splits.acc.half())
    wrong(ValueError, "splits must be on", acc=splits.acc.to("meta"))
    for name in ("max", "sum"):
        good = getattr(splits, name)
        for bad in (good[:, :2], good[:1], good[0], good.T.contiguous().T):
            wrong(ValueError, "must be \\(2, 3\\)", **{name: bad})
        wrong(TypeError, "splits must be float32", **{name: good.bfloat16()})
        wrong(ValueError, "splits must be on", **{name: good.to("meta")})


def test_combine_residual_errors(run):
    run(check_combine_errors)


def check_decode_layer_errors(device: torch.device) -> None:
    rng = make_rng(device)
    x, layer = randn(rng, 1, 24 * 2), make_layer(rng, 48, F32)
    lengths = torch.tensor([3], dtype=torch.int32, device=device)
    kv = randn(rng, 2, 1, 4, 8, 12)
    raises(ValueError, "multiple of 8", decode_layer, x, layer, kv, lengths)
    kv = randn(rng, 2, 1, 3, 8, 16)
    raises(TypeError, "x must be", decode_layer, x.half(), layer, kv, lengths)
    raises(ValueError, "x must be", decode_layer, x[:, :32].contiguous(), layer, kv, lengths)
    raises(ValueError, "kv must be", decode_layer, x, layer, kv[:1], lengths)
    raises(TypeError, "int32", decode_layer, x, layer, kv, lengths.long())
    raises(ValueError, "columns", decode_layer, x, layer._replace(proj=layer.out), kv, lengths)


def test_decode_layer_errors(run):
    run(check_decode_layer_errors)


def test_cpu_tensors_without_the_interpreter_are_an_error():
    skip_unless_native()
    rng = make_rng(torch.device("cpu"))
    x, residual = randn(rng, 1, 32), randn(rng, 1, 32)
    norm, matrix = make_norm(rng, 32), make_matrix(rng, 32, 32)
    splits = Splits(randn(rng, 2, 1), randn(rng, 2, 1), randn(rng, 2, 1, 16))
    raises(ValueError, "TRITON_INTERPRET", norm_linear, x, norm, matrix)
    raises(ValueError, "TRITON_INTERPRET", linear_residual, x, matrix, residual)
    raises(ValueError, "TRITON_INTERPRET", combine_residual, splits, matrix, residual)
    kv, lengths = randn(rng, 2, 1, 2, 4, 16), torch.ones(1, dtype=torch.int32)
    qkv = make_matrix(rng, 96, 32)
    raises(ValueError, "TRITON_INTERPRET", norm_qkv, x, norm, qkv, kv, lengths)
