"""Reduced precisions on a CPU: what they keep of float32, and that nothing else changes."""

import contextlib
import copy
import dataclasses
import pickle
import platform
import subprocess
import sys
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import minibark
from minibark.checkpoint.presets import preset
from minibark.checkpoint.rows import dequantize_rows, quantize_rows
from minibark.config import FineGPTConfig, GPTConfig
from minibark.cpu import abilities as cpu
from minibark.cpu import float32, int4, tables
from minibark.cpu import reduce as room
from minibark.cpu.attention import causal_by_block, full_by_head
from minibark.cpu.float16 import Linear16
from minibark.cpu.int4 import Int4Linear, Int4Twice, dequantize_groups, quantize_groups
from minibark.cpu.int8 import Int8Linear, Int8ManyRows, Int8Twice, multiply_int8
from minibark.cpu.passes import PART, BlockInParts
from minibark.cpu.reduce import reduce
from minibark.cpu.tables import ReducedTable
from minibark.decoding import CachedDecoder, UncachedDecoder
from minibark.model import GPT, Block, FineGPT, Head, causal_attention, full_attention
from minibark.precision import FLOATS, PRECISIONS

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64}
REDUCED = ("float16", "bfloat16", "int8", "int4")
# Root mean square of the error over that of what is meant, at weights of one size throughout.
ERROR = {"float16": 5e-3, "bfloat16": 5e-3, "int8": 0.02, "int4": 0.12}


def trained_like(model):
    """Weights large enough for attention and heads to have opinions."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["fast", "plain"])
def product(request, monkeypatch):
    """Both ways of multiplying: torch's operators, and plain torch where there are none."""
    names = ("has_int8_linear", "has_int4_linear")
    if request.param == "plain":
        for name in (*names, "has_int8_matmul", "has_fast_bfloat16", "has_vnni"):
            monkeypatch.setattr(cpu, name, lambda: False)
    elif not all(getattr(cpu, name)() for name in names):
        pytest.skip("this torch has no int8 or int4 linear operator")
    return request.param


def relative_error(got, expected):
    return float((got - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


# ---- numbers


def test_rows_are_within_half_a_step_of_float32():
    torch.manual_seed(0)
    weight = torch.randn(33, 65) * torch.logspace(-6, 3, 33)[:, None]
    weight[7] = 0
    q, scale = quantize_rows(weight)
    assert q.dtype == torch.int8 and scale.shape == (33,)
    assert int(q.abs().max()) == 127
    assert ((q * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert (q[7] == 0).all()


def test_what_int8_rows_stand_for_is_quantized_to_the_same_rows():
    """Exactly, whatever the magnitude: so a stored int8 checkpoint runs in int8 as it is."""
    torch.manual_seed(0)
    weight = torch.randn(20_000, 16) * torch.logspace(-30, 30, 20_000)[:, None]
    weight[7] = 0
    q, scale = quantize_rows(weight)
    floats = dequantize_rows(q, scale)
    assert floats.dtype == torch.float32 and floats.isfinite().all()
    assert torch.equal(floats, q * scale[:, None])
    again, same_scale = quantize_rows(floats)
    assert torch.equal(q, again) and torch.equal(scale, same_scale)
    assert (floats[7] == 0).all()


def test_groups_are_near_float32_and_use_all_sixteen_numbers():
    torch.manual_seed(0)
    weight = torch.randn(48, 96) * torch.logspace(-6, 3, 48)[:, None] + 0.01
    weight[7] = 0
    q, scale_and_zero = quantize_groups(weight)
    assert q.shape == (48, 96) and scale_and_zero.shape == (48, 3, 2)
    assert int(q.min()) == 0 and int(q.max()) == 15
    floats = dequantize_groups(q, scale_and_zero)
    assert (floats[7].abs() < 1e-8).all()
    error = (floats - weight).pow(2).mean(1).sqrt() / weight.pow(2).mean(1).sqrt()
    assert error[torch.arange(48) != 7].max() < 0.12
    # An outlier costs its own group and no other.
    weight[0, 40] = 1000 * weight[0].abs().max()
    floats = dequantize_groups(*quantize_groups(weight))
    assert relative_error(floats[0, :32], weight[0, :32]) < 0.12


def test_groups_of_a_few_values_are_exact():
    weight = torch.arange(16.0).repeat(16, 4) - 4
    floats = dequantize_groups(*quantize_groups(weight))
    assert torch.allclose(floats, weight, atol=0.05)


def test_columns_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match="multiple of 32 columns, got 33"):
        quantize_groups(torch.zeros(4, 33))


# ---- products


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("n_rows", [1, 3, 63, 887])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_close_to_float32(product, precision, n_rows, bias):
    torch.manual_seed(1)
    linear = torch.nn.Linear(64, 96, bias=bias)
    x = torch.randn(2, n_rows, 64)
    ours = room._linear(linear.weight.detach(), None, linear.bias, precision)
    with torch.inference_mode():
        expected, got, single = linear(x), ours(x), ours(x[0, 0][None])
    assert got.shape == expected.shape and got.dtype == torch.float32
    # int8's plain product does not quantize activations.
    bound = 0.01 if (precision, product) == ("int8", "plain") else ERROR[precision]
    assert 0 < relative_error(got, expected) < bound
    assert relative_error(single, expected[0, :1]) < 2 * bound


needs_many_rows = pytest.mark.skipif(
    not cpu.has_int8_many_rows(), reason="no oneDNN product of int8 matrices, or no VNNI"
)


@needs_many_rows
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_s_product_of_many_rows_is_int8_s_product(bias, gelu):
    torch.manual_seed(4)
    q, scale = quantize_rows(torch.randn(96, 64))
    offset = torch.randn(96) if bias else None
    few, many = Int8Linear(q, scale, offset), Int8ManyRows(q, scale, offset, gelu=gelu)
    for x in (torch.randn(2, 70, 64), torch.rand(1, 3, 64) + 2, torch.zeros(5, 64)):
        expected = F.gelu(few(x)) if gelu else few(x)
        torch.testing.assert_close(many(x), expected, atol=1e-4, rtol=1e-4)


@needs_many_rows
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_int8_s_product_of_many_rows_tells_of_nan(value):
    q, scale = quantize_rows(torch.randn(16, 32))
    x = torch.zeros(2, 3, 32)
    x[1, 2, 3] = value
    out = Int8ManyRows(q, scale)(x)
    assert out.shape == (2, 3, 16) and out.isnan().all()


@pytest.mark.parametrize("shape", [(96, 64), (48, 32), (40, 64)])
def test_the_int4_operator_multiplies_by_what_the_numbers_stand_for(shape):
    """40 rows do not fit the operator: the same numbers, expanded."""
    torch.manual_seed(2)
    weight, x = torch.randn(shape), torch.randn(3, shape[1]).bfloat16().float()
    expected = F.linear(x, dequantize_groups(*quantize_groups(weight)))
    got = Int4Linear(weight)(x)
    assert relative_error(got, expected) < 5e-3
    if shape[0] == 40:
        torch.testing.assert_close(got, expected)


needs_int8_matmul = pytest.mark.skipif(
    not cpu.has_int8_matmul(), reason="torch multiplies no plain int8 matrices, or no VNNI"
)


@needs_int8_matmul
def test_rows_are_multiplied_in_int8_each_over_its_own_range():
    torch.manual_seed(5)
    q, scale = quantize_rows(torch.randn(48, 64) * torch.logspace(-2, 2, 48)[:, None])
    x = torch.randn(40, 64) * torch.logspace(-8, 8, 40)[:, None]
    x[7] = 0
    got, expected = multiply_int8(x, q.T, scale), x @ dequantize_rows(q, scale).T
    assert (got[7] == 0).all()
    others = torch.arange(40) != 7
    error = (got - expected)[others].norm(dim=1) / expected[others].norm(dim=1)
    assert 0 < error.max() < 0.02
    for value in (torch.nan, torch.inf, -torch.inf):
        x[3, 5] = value
        told = multiply_int8(x, q.T, scale)
        assert not told[3].isfinite().any()
        assert torch.equal(told[:3], got[:3]) and torch.equal(told[4:], got[4:])


def expanded(linear):
    """What an Int4Linear multiplies many rows by, (N, K), in steps of each row's scale."""
    return linear._to_int8(linear.row_scale).T


needs_expanding = pytest.mark.skipif(
    not int4.is_expanded(), reason="no int8 product, or int4 has another layout on this processor"
)


@needs_expanding
@pytest.mark.parametrize("shape", [(64, 32), (192, 96)])
def test_int4_expands_to_the_nearest_int8(shape):
    torch.manual_seed(6)
    weight = torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]
    weight[7] = 0
    weight[8, 3] = 50 * weight[8].abs().max()
    linear = Int4Linear(weight)
    meant = dequantize_groups(*quantize_groups(weight)) / linear.row_scale[:, None]
    got = expanded(linear)
    assert got.shape == shape and got.dtype == torch.int8 and 120 < int(got.abs().max()) <= 127
    assert (got - meant).abs().max() < 0.54  # half a step, and what 256ths of it leave


@needs_expanding
@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_of_int4_are_its_few(monkeypatch, bias, widen):
    torch.manual_seed(7)
    weight, x = torch.randn(128, 64), torch.randn(2, int4.MANY_ROWS, 64)
    offset = torch.randn(128) if bias else None
    linear = Int4Linear(weight, offset, widen=widen)
    few = torch.stack([torch.stack([linear(row[None])[0] for row in part]) for part in x])
    many = linear(x)
    assert many.dtype == torch.float32 and many.shape == few.shape
    assert 0 < relative_error(many, few.float()) < 0.02
    monkeypatch.setattr(int4, "has_blocks", lambda: False)
    elsewhere = Int4Linear(weight, offset, widen=widen)
    assert elsewhere.row_scale is None
    assert relative_error(elsewhere(x).float(), few.float()) < 5e-3


@pytest.mark.parametrize("change", [None, lambda p: p.flip(0), lambda p: (p >> 4) | (p << 4)])
def test_another_layout_of_int4_is_seen(monkeypatch, change):
    """The operator's own is read right or not at all; another, as of another processor, is not."""
    q = torch.randint(16, (128, 64), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 2)
    right = torch.equal(int4._unpack_blocks(packed).T.int(), q)
    if change is not None:
        convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        other = types.SimpleNamespace(
            _convert_weight_to_int4pack_for_cpu=lambda q, k: change(convert(q, k))
        )
        monkeypatch.setattr(torch.ops, "aten", other)
    assert int4.has_blocks.__wrapped__() == (right and change is None)


def test_int8_is_used_where_columns_make_no_groups():
    assert isinstance(room._linear(torch.zeros(16, 40), None, None, "int4"), Int8Linear)
    assert isinstance(room._linear(torch.zeros(16, 64), None, None, "int4"), Int4Linear)


def test_embeddings_are_close_to_float32():
    table = torch.nn.Embedding(50, 64)
    ids = torch.tensor([[0, 49], [7, 7]])
    expected = table(ids)
    for got in (
        ReducedTable(*quantize_rows(table.weight), None)(ids),
        ReducedTable(table.weight.detach(), None, None)(ids),
        ReducedTable(table.weight.detach(), None, torch.float16)(ids),
    ):
        assert got.shape == (2, 2, 64) and got.dtype == torch.float32
        assert (got - expected).abs().max() <= table.weight.abs().max() / 127


@pytest.mark.parametrize("n_queries", [600, 513])
def test_attention_by_head_is_attention(n_queries):
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, 3, 600, 16)
    q = q[:, :, -n_queries:]
    expected = full_attention(q, k, v)
    torch.testing.assert_close(full_by_head(q, k, v, torch.float32), expected)
    got = full_by_head(q, k, v)
    assert got.dtype == torch.float32 and 0 < relative_error(got, expected) < 0.01


@pytest.mark.parametrize("shape", [(1, 7), (1, PART), (1, PART + 1), (3, 400)])
@torch.no_grad()
def test_a_block_in_parts_is_a_block(shape):
    torch.manual_seed(sum(shape))
    block = Block(GPTConfig(n_head=2, n_embd=16), causal=False, norm_bias=True)
    x, sizes = torch.randn(*shape, 16), []
    before, expected = x.clone(), block(x)
    parts = BlockInParts(block)
    parts.mlp.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    torch.testing.assert_close(parts(x), expected)
    assert sum(sizes) == shape[0] * shape[1] and max(sizes) <= PART
    assert torch.equal(x, before)
    last = parts(x, lambda q, k, v: full_attention(q[:, :, -2:], k, v))
    torch.testing.assert_close(last, expected[:, -2:])
    assert parts.state_dict().keys() == block.state_dict().keys()


@pytest.mark.parametrize("n_positions", [161, 320, 401])
def test_causal_attention_by_block_is_attention(n_positions):
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, 3, n_positions, 16)
    expected = causal_attention(q, k, v)
    torch.testing.assert_close(causal_by_block(q, k, v, torch.float32), expected)
    got = causal_by_block(q, k, v)
    assert got.dtype == torch.float32 and 0 < relative_error(got, expected) < 0.01
    last = causal_by_block(q[:, :, -1:], k, v)
    torch.testing.assert_close(last, expected[:, :, -1:])


@pytest.mark.skipif(not cpu.has_onednn_linear(), reason="this torch has no oneDNN linear")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 257])
def test_onednns_linear_is_torchs(n_rows, bias):
    torch.manual_seed(4)
    plain = torch.nn.Linear(768, 1024, bias=bias).requires_grad_(False)
    x = torch.randn(n_rows, 768)
    dressed = float32.OneDNNLinear(plain)
    torch.testing.assert_close(dressed(x), plain(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(dressed(x[None])[0], dressed(x))
    head = Head(GPTConfig(n_embd=768)).requires_grad_(False)
    part = float32.OneDNNHead(head)(x, slice(100, 9000))
    torch.testing.assert_close(part, head(x, slice(100, 9000)), rtol=0, atol=1e-4)
    for kind in (float32.OneDNNLinear, float32.SmallLinear):
        with_gelu = kind(plain)
        with_gelu.gelu = True
        expected = torch.nn.functional.gelu(plain(x))
        torch.testing.assert_close(with_gelu(x), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not cpu.has_onednn_order(), reason="this torch has no order of oneDNN's")
def test_few_rows_are_multiplied_by_the_weights_that_there_are():
    torch.manual_seed(4)
    plain, x = torch.nn.Linear(96, 80).requires_grad_(False), torch.randn(8, 1, 96)
    head = Head(GPTConfig(n_embd=96, output_vocab_size=300)).requires_grad_(False)
    dressed, dressed_head = float32.OneDNNLinear(plain), float32.OneDNNHead(head)
    part = slice(40, None)

    def same(n_rows):
        copied = copy.deepcopy(dressed)
        for linear in (dressed, copied, pickle.loads(pickle.dumps(copied))):
            expected = torch.nn.functional.linear(x, dressed.weight, dressed.bias)
            torch.testing.assert_close(linear(x[:n_rows]), expected[:n_rows], rtol=1e-4, atol=1e-4)
        expected = torch.nn.functional.linear(x[:n_rows], dressed_head.weight[part])
        torch.testing.assert_close(dressed_head(x[:n_rows], part), expected, rtol=1e-4, atol=1e-4)

    with torch.inference_mode():
        same(8)
    for n_rows in (1, 8, 2):
        same(n_rows)
        for one in (dressed, dressed_head):
            one.weight.mul_(2)
        same(n_rows)
        for one in (dressed, dressed_head):
            one.load_state_dict({k: v + 1 for k, v in one.state_dict().items()}, assign=True)
        same(n_rows)
        for one in (dressed, dressed_head):
            one.weight.data = one.weight.data / 2
        same(n_rows)
    assert set(dressed.state_dict()) == {"weight", "bias"}


@pytest.mark.skipif(not cpu.has_onednn_order(), reason="this torch has no order of oneDNN's")
def test_one_row_is_multiplied_alike_before_and_after_a_few():
    torch.manual_seed(4)
    plain = torch.nn.Linear(3072, 1024, bias=False).requires_grad_(False)
    dressed, x = float32.OneDNNLinear(plain), torch.randn(3, 1, 3072)
    before = dressed(x[:1])
    dressed(x)
    assert torch.equal(dressed(x[:1]), before)
    with torch.inference_mode():
        other = torch.nn.Linear(3072, 1024, bias=False).requires_grad_(False)
        dressed = float32.OneDNNLinear(other)
        dressed(x)
        other.weight.mul_(2)
        torch.testing.assert_close(dressed(x), other(x), rtol=1e-4, atol=1e-4)


# ---- models


def models(bias=False):
    config = GPTConfig(input_vocab_size=300, output_vocab_size=200, bias=bias, **SHAPE)
    return trained_like(GPT(config)), trained_like(FineGPT(FineGPTConfig(bias=bias, **SHAPE)))


def reduced(model, precision):
    reduce(model, model.state_dict(), precision)
    return model


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("bias", [False, True])
def test_models_keep_their_opinion(product, precision, bias):
    gpt, fine = models(bias)
    tokens, codes = torch.randint(0, 300, (1, 257)), torch.randint(0, 1024, (1, 257, 8))
    with torch.inference_mode():
        before = gpt(tokens), fine(codes, 4)
        after = reduced(gpt, precision)(tokens), reduced(fine, precision)(codes, 4)
    for old, new in zip(before, after, strict=True):
        assert new.dtype == torch.float32
        kl = (old.softmax(-1) * (old.log_softmax(-1) - new.log_softmax(-1))).sum(-1).mean()
        assert 0 < kl < (0.3 if precision == "int4" else 0.02)
        least = 0.7 if precision == "int4" else 0.9
        assert (old.argmax(-1) == new.argmax(-1)).float().mean() > least


@pytest.mark.parametrize("precision", REDUCED)
def test_cached_steps_are_the_whole_sequence_and_heads_are_slices(product, precision):
    gpt = reduced(models()[0], precision)
    prompt, head = torch.randint(0, 300, (40,)), slice(50, 150)
    cached, whole = CachedDecoder(gpt), UncachedDecoder(gpt)
    with torch.inference_mode():
        pairs = [(cached.prefill([prompt], head), whole.prefill([prompt], head))]
        for token in (5, 250, 17):
            step = torch.tensor([token])
            pairs.append((cached.decode_one(step, head), whole.decode_one(step, head)))
        everything = gpt(whole.sequences[0][None])[0, -1, head]
    for got, expected in pairs:
        assert got.shape == (1, 100)
        # int8's fast product quantizes activations over the rows of a call, which differ here.
        assert (got - expected).pow(2).mean().sqrt() < 0.1 * expected.std()
    assert torch.allclose(pairs[-1][1][0], everything, atol=0.1 * float(everything.std()))


def test_a_float32_model_is_dressed_and_means_the_same():
    torch.manual_seed(5)
    config = GPTConfig(input_vocab_size=300, output_vocab_size=700, n_layer=1, n_head=8, n_embd=512)
    model = trained_like(GPT(config))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(0, 300, (2, 30))
    expected = model(tokens)
    place = model.transformer.h[0].mlp.c_fc.weight.data_ptr()
    float32.dress(model)
    attn, mlp = model.transformer.h[0].attn, model.transformer.h[0].mlp
    if cpu.has_onednn_linear():
        kinds = [type(module) for module in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)]
        linear = float32.OneDNNLinear
        assert kinds == [linear, float32.SmallLinear, linear, linear]
        assert type(model.lm_head) is float32.OneDNNHead
        assert mlp.c_fc.gelu and not mlp.c_proj.gelu and type(mlp.act) is torch.nn.Identity
    assert attn.c_proj.weight.stride() == (1, 512) and mlp.c_fc.weight.data_ptr() == place
    assert not attn.c_proj.weight.requires_grad
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-3)
    one = torch.randn(1, 1, 512)  # a single row, by which small matrices are multiplied otherwise
    several = attn.c_proj(one.expand(2, 3, -1))
    torch.testing.assert_close(several, attn.c_proj(one).expand(2, 3, -1), rtol=0, atol=1e-4)


def test_what_is_reduced_where():
    kinds = {"float16": Linear16, "bfloat16": Linear16, "int8": Int8Linear, "int4": Int4Linear}
    for precision, kind in kinds.items():
        gpt, fine = (reduced(model, precision) for model in models())
        for name, module in gpt.named_modules():
            assert type(module) not in (torch.nn.Linear, torch.nn.Embedding) or name.endswith("wpe")
            if name.startswith("transformer.h.") and ".c_" in name:
                in_int8 = precision == "int4" and ".h.0." in name
                assert type(module) is (Int8Linear if in_int8 else kind), name
        assert type(gpt.transformer.wte) is ReducedTable
        assert gpt.transformer.wte.weight.dtype == FLOATS.get(precision, torch.int8)
        in_fine = {type(m) for name, m in fine.named_modules() if ".c_" in name}
        many = Int8ManyRows if cpu.has_int8_many_rows() else Int8Linear
        assert in_fine == {many if precision.startswith("int") else kind}
        if kind is Linear16:  # a GEMM's type where the processor has one
            many = torch.bfloat16 if cpu.has_fast_bfloat16() else getattr(torch, precision)
            assert fine.transformer.h[0].mlp.c_fc.weight.dtype == many
            assert gpt.transformer.h[0].mlp.c_fc.weight.dtype == getattr(torch, precision)
        assert all(type(table) is torch.nn.Embedding for table in fine.transformer.wtes)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8])
def test_a_big_table_stays_in_its_file_and_gives_the_same(tmp_path, monkeypatch, stored, dtype):
    table, scale = torch.randn(1000, 64), None
    table, scale = quantize_rows(table) if stored == torch.int8 else (table.to(stored), None)
    others = torch.zeros(3, dtype=torch.uint8)  # so that what follows lies at an odd address
    folder = tmp_path / " a\rb é"
    folder.mkdir()
    save_file({"a": others, "table": table}, folder / "file.safetensors")
    (mapped,) = [load_file(folder / "file.safetensors")["table"]]
    held = ReducedTable(mapped, scale, dtype)
    monkeypatch.setattr(tables, "BIG", table.numel() - 1)
    stays = ReducedTable(mapped, scale, dtype)
    assert not held.is_mapped and stays.is_mapped == sys.platform.startswith("linux")
    assert mapped.data_ptr() not in (held.weight.data_ptr(), stays.weight.data_ptr())
    del mapped
    (folder / "file.safetensors").unlink()
    ids = torch.randint(len(table), (2, 7))
    assert stays(ids).shape == (2, 7, 64) and torch.equal(stays(ids), held(ids))
    assert stays(ids[:, :0]).shape == (2, 0, 64)
    assert not ReducedTable(table, scale, dtype).is_mapped  # it lies in memory


@needs_many_rows
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_coarse_model_has_int8_matrices_for_many_rows_beside_those_for_few(precision):
    exact, _ = models()
    gpt, other = copy.deepcopy(exact), copy.deepcopy(exact)
    reduce(gpt, gpt.state_dict(), precision, prompts_recur=True)
    reduce(other, other.state_dict(), precision)
    products = [
        module for name, module in gpt.named_modules() if name.endswith((".c_fc", ".c_proj"))
    ]
    assert type(products[-1]) is {"int8": Int8Twice, "int4": Int4Twice}[precision]
    assert {type(one) for one in products} == {Int8Twice, type(products[-1])}
    with torch.inference_mode():
        for n in (1, 31):
            tokens = torch.randint(300, (1, n))
            torch.testing.assert_close(gpt(tokens), other(tokens), atol=1e-3, rtol=1e-3)
        for n in (32, 60, 200):  # queries, keys and values in bfloat16 lose nothing beside int8
            tokens = torch.randint(300, (1, n))
            expected = exact(tokens)
            errors = [(model(tokens) - expected).norm() for model in (gpt, other)]
            assert errors[0] < 1.1 * errors[1] and errors[0] < 0.05 * expected.norm()


@pytest.mark.parametrize("precision", REDUCED)
def test_a_bark_speaks_and_repeats_itself(product, precision):
    config = preset("random")
    short = dataclasses.replace(config.generation, max_new_tokens=30)
    config = dataclasses.replace(config, generation=short)
    slow = precision.startswith("int") and product == "plain"
    with contextlib.ExitStack() as told:
        if slow:
            told.enter_context(pytest.warns(UserWarning, match="has no quantized::linear_dynamic"))
        else:
            told.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error")
        bark = minibark.Bark(config, device="cpu", precision=precision)
        audio = bark.generate("Hello there", seed=1, max_duration_s=0.6)
    assert len(audio) > 0
    assert (audio == bark.generate("Hello there", seed=1, max_duration_s=0.6)).all()


def test_int8_and_int4_elsewhere_are_refused():
    for precision in ("int8", "int4"):
        with pytest.raises(ValueError, match=rf"{precision}.*runs on cpu.*, not on 'meta'"):
            minibark.Bark(preset("random"), device="meta", precision=precision)
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        minibark.Bark(preset("random"), device="cpu", precision="int3")


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc is known to give memory back"
)
def test_memory_that_is_free_goes_back_to_the_system():
    """Many small pieces below one that stays: freed, they are the process's until given back."""
    script = """
import resource
import torch
from minibark.cpu.abilities import give_memory_back
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
pieces, last = [torch.ones(2048) for _ in range(8192)], torch.ones(2048)
del pieces
before = held()
give_memory_back()
print((before - held()) * resource.getpagesize())
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) > 2**25


def test_paths_are_told_in_words(product):
    told = {precision: room.describe(precision) for precision in PRECISIONS}
    assert len(set(told.values())) == len(told)
    assert ("expanded" in told["int4"]) == (product == "plain")
    assert ("expanded" in told["int8"]) == (product == "plain")


def test_the_fine_stage_alone_announces_nothing_of_torchs():
    # In a process of its own: torch says it once, and which stage is built first must not matter.
    code = (
        "import torch, minibark\n"
        "bark = minibark.Bark.from_pretrained('tiny', precision='int8')\n"
        "bark.coarse_to_fine(torch.zeros(2, 4, dtype=torch.int64), seed=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
