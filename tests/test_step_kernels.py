"""The kernels that begin and end a decode step, against their plain-torch references."""

import importlib.util

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install triton (Linux)", allow_module_level=True)

from kernel_runs import (
    BF16,
    F16,
    F32,
    POINTERS,
    compile_for_nvidia,
    empty_is_nan,
    loads_before_the_wait,
    skip_unless_native,
)

from minibark.kernels import launch
from minibark.kernels import step as step_file
from minibark.kernels.step import choose_tokens, choose_tokens_ref, embed_tokens, embed_tokens_ref

N_IDS, N_POSITIONS, N_STEPS = 50, 20, 7


def embed_inputs(device: torch.device, n_rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    table, positions = (
        torch.randn(n, width, generator=generator, device=device).to(dtype)
        for n in (N_IDS, N_POSITIONS)
    )
    tokens = torch.tensor([0, 49, 17, 3][:n_rows], device=device)
    lengths = torch.tensor([19, 0, 7, 1][:n_rows], dtype=torch.int32, device=device)
    return [tokens, table, positions, lengths, torch.tensor([4], device=device)]


def check_embed(device: torch.device, n_rows: int, width: int, dtype: torch.dtype) -> None:
    ours, theirs = (embed_inputs(device, n_rows, width, dtype) for _ in range(2))
    with empty_is_nan():
        out = embed_tokens(*ours)
    assert torch.equal(out, embed_tokens_ref(*theirs))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)  # lengths and index have grown, nothing else has changed


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("n_rows", "width"), [(1, 768), (1, 1024), (3, 224), (4, 64)])
def test_embed_tokens(run, n_rows, width, dtype):
    run(check_embed, n_rows, width, dtype)


def choose_inputs(
    device: torch.device, n_rows: int, width: int, greedy: bool, step: int
) -> tuple[object, ...]:
    generator = torch.Generator(device).manual_seed(width)
    logits = 3 * torch.randn(n_rows, width, generator=generator, device=device)
    noise = torch.empty(N_STEPS, n_rows, width, device=device).exponential_(generator=generator)
    zeros = torch.zeros(N_STEPS, n_rows, device=device)
    return (
        logits,
        None if greedy else noise,
        0.7,
        100,
        torch.tensor([step], device=device),
        torch.zeros(n_rows, dtype=torch.int64, device=device),
        zeros.long(),
        zeros.clone(),
    )


def check_choose(
    device: torch.device, n_rows: int, width: int, greedy: bool, step: int, end_is_best: bool
) -> None:
    ours, theirs = (choose_inputs(device, n_rows, width, greedy, step) for _ in range(2))
    if end_is_best:
        for args in (ours, theirs):
            args[0][0, -1] = 30.0
    choose_tokens(*ours)
    choose_tokens_ref(*theirs)
    for mine, other in zip(ours[4:7], theirs[4:7], strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(ours[7], theirs[7], atol=1e-7, rtol=1e-5)
    if end_is_best:
        assert int(ours[5][0]) == 100 + width - 1 and float(ours[7][step - 1, 0]) > 0.9


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("n_rows", "width", "step"), [(1, 10_001, 1), (1, 1024, N_STEPS), (3, 50, 4), (16, 33, 2)]
)
def test_choose_tokens(run, n_rows, width, step, greedy):
    run(check_choose, n_rows, width, greedy, step, False)


@pytest.mark.parametrize("greedy", [True, False])
def test_choose_tokens_tells_how_likely_the_end_is(run, greedy):
    run(check_choose, 2, 75, greedy, 3, True)


def check_the_first_of_equals_is_chosen(device: torch.device) -> None:
    args = choose_inputs(device, 1, 300, True, 1)
    args[0].zero_()
    args[0][0, [41, 42, 299]] = 1.0
    choose_tokens(*args)
    assert int(args[5]) == 141


def test_the_first_of_equal_logits_is_chosen(run):
    run(check_the_first_of_equals_is_chosen)


def check_errors(device: torch.device) -> None:
    good = embed_inputs(device, 2, 64, F32)

    def embed_raises(error: type[Exception], words: str, **changes: Tensor) -> None:
        names = ("tokens", "table", "positions", "lengths", "index")
        with pytest.raises(error, match=words):
            embed_tokens(**(dict(zip(names, good, strict=True)) | changes))

    tokens, table, positions, lengths, index = good
    embed_raises(TypeError, "share one dtype", table=table.half())
    embed_raises(TypeError, "share one dtype", table=table.int(), positions=positions.int())
    embed_raises(ValueError, "same columns", positions=positions[:, :32])
    embed_raises(ValueError, "contiguous", table=table.T.contiguous().T)
    embed_raises(TypeError, "tokens must be int64", tokens=tokens.int())
    embed_raises(TypeError, "index must be int64", index=index.int())
    embed_raises(ValueError, "tokens must be \\(B,\\)", tokens=tokens[None])
    embed_raises(ValueError, "index must be \\(1,\\)", index=index[0])
    embed_raises(TypeError, "int32", lengths=lengths.long())
    embed_raises(ValueError, "must be \\(2,\\)", lengths=lengths[:1])
    embed_raises(ValueError, "the tables must be on", table=table.to("meta"))
    if device.type == "cpu":
        embed_raises(ValueError, "lengths must be in", lengths=lengths + 1)
        embed_raises(ValueError, r"tokens must be in \[0, 50\)", tokens=tokens + 1)
    args = choose_inputs(device, 2, 30, False, 1)
    names = ("logits", "noise", "temperature", "first", "index", "token", "tokens", "last_p")

    def choose_raises(error: type[Exception], words: str, **changes: object) -> None:
        with pytest.raises(error, match=words):
            choose_tokens(**(dict(zip(names, args, strict=True)) | changes))

    logits, noise = args[:2]
    choose_raises(TypeError, "logits must be torch.float32", logits=logits.half())
    choose_raises(ValueError, "logits must be", logits=logits.T.contiguous().T)
    choose_raises(ValueError, "noise must be", noise=noise[:, :1])
    choose_raises(ValueError, "tokens must be", tokens=args[6][:, :1])
    choose_raises(ValueError, "last_p must be on", last_p=args[7].to("meta"))
    choose_raises(ValueError, "temperature must be positive", temperature=0.0)
    if device.type == "cpu":
        choose_raises(ValueError, "index must be in", index=args[4] - 1)
        choose_raises(ValueError, "index must be in", index=args[4] + N_STEPS)


def test_errors(run):
    run(check_errors)


@pytest.mark.parametrize(("dtype", "capability"), [(F32, 80), (BF16, 90), (F16, 90)])
@pytest.mark.parametrize("width", [768, 1024])
def test_embed_compiles(monkeypatch, tmp_path, width, dtype, capability):
    skip_unless_native()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = {"token_ptr": "*i64", "lengths_ptr": "*i32", "index_ptr": "*i64", "out_ptr": "*fp32"}
    kinds |= dict.fromkeys(("table_ptr", "position_ptr"), POINTERS[dtype])
    compile_for_nvidia(step_file._embed_kernel, kinds, {"BLOCK_C": 1024}, capability, 4, 3)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("block_v", "num_warps"), [(1024, 4), (16_384, 16)])
@pytest.mark.parametrize("noise", [True, False])
def test_choose_compiles(monkeypatch, tmp_path, noise, block_v, num_warps, capability):
    skip_unless_native()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = dict.fromkeys(("logits_ptr", "noise_ptr", "last_p_ptr"), "*fp32")
    kinds |= dict.fromkeys(("index_ptr", "token_ptr", "tokens_ptr"), "*i64")
    kinds |= {"temperature": "fp32"}
    pdl = capability >= 90 and launch.has_dependent_launch()
    constants = {"NOISE": noise, "BLOCK_V": block_v, "PDL": pdl}
    compiled = compile_for_nvidia(
        step_file._choose_kernel, kinds, constants, capability, num_warps, 3
    )
    if pdl:
        assert not loads_before_the_wait(compiled)
