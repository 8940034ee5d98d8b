"""int8 weights: what they keep of float32, and that nothing else changes."""

import dataclasses
import warnings

import pytest
import torch

import minibark
from minibark import quantize as room
from minibark.config import FineGPTConfig, GPTConfig, preset
from minibark.model import GPT, CachedDecoder, FineGPT, UncachedDecoder
from minibark.quantize import Int8Embedding, Int8Linear, dequantize_rows, quantize, quantize_rows

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64}


def trained_like(model):
    """Weights large enough for attention and heads to have opinions."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=["fast", "plain"])
def product(request, monkeypatch):
    """Both ways of multiplying: torch's int8 operator, and plain torch where there is none."""
    if request.param == "plain":
        monkeypatch.setattr(room, "has_int8_linear", lambda: False)
    elif not room.has_int8_linear():
        pytest.skip("this torch has no int8 linear operator")
    return request.param


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


@pytest.mark.parametrize("n_rows", [1, 3, 63, 887])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_close_to_float32(product, n_rows, bias):
    torch.manual_seed(1)
    linear = torch.nn.Linear(64, 96, bias=bias)
    x = torch.randn(2, n_rows, 64)
    ours = Int8Linear(*quantize_rows(linear.weight.detach()), linear.bias)
    with torch.inference_mode():
        expected, got = linear(x), ours(x)
    assert got.shape == expected.shape and got.dtype == torch.float32
    error = (got - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    # 8 bits of weights, and in the fast product of activations too
    assert error < (0.01 if product == "plain" else 0.03), float(error)
    assert (got - expected).abs().max() > 0


def test_embedding_is_close_to_float32():
    table = torch.nn.Embedding(50, 64)
    ids = torch.tensor([[0, 49], [7, 7]])
    got, expected = Int8Embedding(table)(ids), table(ids)
    assert got.shape == (2, 2, 64)
    assert (got - expected).abs().max() <= table.weight.abs().max() / 127


@pytest.mark.parametrize("bias", [False, True])
def test_models_keep_their_opinion(product, bias):
    gpt = trained_like(
        GPT(GPTConfig(input_vocab_size=300, output_vocab_size=200, bias=bias, **SHAPE))
    )
    fine = trained_like(FineGPT(FineGPTConfig(bias=bias, **SHAPE)))
    tokens, codes = torch.randint(0, 300, (1, 257)), torch.randint(0, 1024, (1, 257, 8))
    with torch.inference_mode():
        before = gpt(tokens), fine(codes, 4)
        quantize(gpt)
        quantize(fine)
        after = gpt(tokens), fine(codes, 4)
    for old, new in zip(before, after, strict=True):
        assert new.dtype == torch.float32
        kl = (old.softmax(-1) * (old.log_softmax(-1) - new.log_softmax(-1))).sum(-1).mean()
        assert 0 < kl < 0.02
        assert (old.argmax(-1) == new.argmax(-1)).float().mean() > 0.9


def test_cached_steps_are_the_whole_sequence_and_heads_are_slices(product):
    gpt = trained_like(GPT(GPTConfig(input_vocab_size=300, output_vocab_size=200, **SHAPE)))
    quantize(gpt)
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
        # The fast product quantizes activations over the rows of a call, which differ here.
        assert (got - expected).pow(2).mean().sqrt() < 0.1 * expected.std()
    assert torch.allclose(pairs[-1][1][0], everything, atol=0.1 * float(everything.std()))


def test_a_bark_in_int8_speaks_and_repeats_itself():
    config = preset("random")
    short = dataclasses.replace(config.generation, max_new_tokens=30)
    config = dataclasses.replace(config, generation=short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bark = minibark.Bark(config, device="cpu", precision="int8")
        audio = bark.generate("Hello there", seed=1)
    assert len(audio) > 0
    assert (audio == bark.generate("Hello there", seed=1)).all()
    linears = [m for stage in bark._modules.values() for m in stage.modules()]
    assert sum(isinstance(m, Int8Linear) for m in linears) >= 3 * 2 * 4
    assert not any(type(m) is torch.nn.Linear for m in linears)


def test_int8_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"int8.*runs on a CPU"):
        minibark.Bark(preset("random"), device="meta", precision="int8")
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        minibark.Bark(preset("random"), device="cpu", precision="int3")
