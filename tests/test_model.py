"""The two transformers against suno's and transformers' modules, with random weights."""

import dataclasses

import numpy as np
import pytest
import random_bark
import torch
from random_bark import random_gpt, suno_twin
from torch import Tensor

from minibark import Bark
from minibark.checkpoint.names import hf_state
from minibark.config import FineGPTConfig, GPTConfig
from minibark.cpu import cache as cpu_cache
from minibark.cpu import row_sums
from minibark.cpu.row_sums import RowSumCache
from minibark.decoding import CachedDecoder, UncachedDecoder
from minibark.model import GPT, FineGPT, KVCache, causal_attention, full_attention

ALL = slice(None)
SHAPE = {"n_layer": 3, "n_head": 2, "n_embd": 32}
TINY = GPTConfig(block_size=48, input_vocab_size=90, output_vocab_size=70, **SHAPE)
WITH_BIAS = dataclasses.replace(TINY, bias=True)
MERGING = dataclasses.replace(TINY, block_size=300)
FINE = FineGPTConfig(block_size=48, input_vocab_size=90, output_vocab_size=90, **SHAPE)
FINE_WITH_BIAS = dataclasses.replace(FINE, bias=True)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def tokens(*shape: int, end: int = 90) -> Tensor:
    return torch.randint(end, shape)


def used_cache(model: GPT, batch_size: int) -> KVCache:
    """As rows that have left leave it behind."""
    cache = KVCache(model, batch_size)
    for buffer in cache.kv:
        buffer.fill_(1e4)
    return cache


@pytest.fixture(params=["plain", "row sums"])
def new_cache(request, monkeypatch):
    """Makes caches of either kind that are not empty; chunks of keys are short, so many are met."""
    if request.param == "plain":
        return used_cache
    monkeypatch.setattr(row_sums, "CHUNK", 8)

    def make(model: GPT, batch_size: int) -> RowSumCache:
        cache = RowSumCache(model, batch_size)
        for table in cache.tables:
            table.fill_(torch.nan)
        return cache

    return make


def assert_close(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=atol)


def hf_twin(model: GPT | FineGPT, name: str) -> torch.nn.Module:
    """transformers' module whose weights `model` takes over, through our own renaming."""
    import transformers

    names = {"n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size"}
    fields = {names.get(key, key): value for key, value in dataclasses.asdict(model.config).items()}
    config = getattr(transformers, f"Bark{name}Config")(**fields)
    twin = getattr(transformers, f"Bark{name}Model")(config)
    random_bark.widen(twin)
    for parameter_name, parameter in twin.named_parameters():
        if "layernorm" in parameter_name and parameter_name.endswith("weight"):
            parameter += 1
    model.load_state_dict(hf_state(name.lower(), twin.state_dict(), name), strict=True)
    return twin


@pytest.mark.parametrize("config", [TINY, WITH_BIAS], ids=["no-bias", "bias"])
@pytest.mark.parametrize("length", [1, 2, 17, 48])
def test_forward_equals_sunos_last_logits(config, length):
    model, x = random_gpt(config), tokens(2, length)
    theirs, _ = suno_twin(model)(x)
    assert_close(model(x)[:, -1], theirs[:, 0])


@pytest.mark.parametrize("length", [513, 514, 556])
def test_merged_blocks_equal_sunos(length):
    model, x = random_gpt(MERGING), tokens(2, length)
    theirs, _ = suno_twin(model)(x, merge_context=True)
    ours = model(x, n_merged=256)
    assert ours.shape == (2, length - 256, 70)
    assert_close(ours[:, -1], theirs[:, 0])


@pytest.mark.parametrize("config", [TINY, WITH_BIAS], ids=["no-bias", "bias"])
@pytest.mark.parametrize("name", ["Semantic", "Coarse"])
def test_forward_equals_transformers_at_every_position(config, name):
    model, x = GPT(config), tokens(2, 48)
    twin = hf_twin(model, name)
    assert_close(model(x), twin(x).logits)


def test_merged_blocks_equal_transformers_at_every_position():
    model, x = GPT(TINY), tokens(2, 25)
    twin = hf_twin(model, "Semantic")
    embedded = twin.input_embeds_layer(x)
    merged = torch.cat((embedded[:, :10] + embedded[:, 10:20], embedded[:, 20:]), dim=1)
    assert_close(model(x, n_merged=10), twin(inputs_embeds=merged).logits)


@pytest.mark.parametrize("config", [FINE, FINE_WITH_BIAS], ids=["no-bias", "bias"])
@pytest.mark.parametrize("codebook", range(1, 8))
def test_fine_equals_suno_and_transformers(config, codebook):
    x = tokens(2, 48, 8)
    model = random_gpt(config)
    assert_close(model(x, codebook), suno_twin(model)(codebook, x))
    twin = hf_twin(model, "Fine")
    assert_close(model(x, codebook), twin(codebook, x).logits)


@pytest.mark.parametrize("codebook", [2, 3, 7])
def test_fine_with_two_given_codebooks_equals_suno(codebook):
    model, x = random_gpt(dataclasses.replace(FINE, n_codes_given=2)), tokens(1, 9, 8)
    assert_close(model(x, codebook), suno_twin(model)(codebook, x))


def test_fine_sees_its_own_codebook_and_those_below_but_none_above():
    model, x = random_gpt(FINE), tokens(1, 9, 8)
    logits = model(x, 4)
    for k in range(8):
        changed = x.clone()
        changed[0, 0, k] = (changed[0, 0, k] + 1) % 90
        assert torch.equal(model(changed, 4), logits) == (k > 4)
        assert torch.equal(model(changed, 4)[0, -1], logits[0, -1]) == (k > 4)


def test_fine_start_skips_frames_of_the_answer_only():
    model, x = random_gpt(FINE), tokens(2, 48, 8)
    assert_close(model(x, 3, start=31), model(x, 3)[:, 31:], atol=1e-5)


def test_fine_refuses_a_codebook_without_a_head():
    model, x = random_gpt(FINE), tokens(1, 9, 8)
    for codebook in (-1, 0, 8):
        with pytest.raises(ValueError, match="codebook must be in"):
            model(x, codebook)


def test_no_position_sees_a_later_one():
    model, x = random_gpt(TINY), tokens(1, 20)
    changed = x.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 90
    before, after = model(x)[0], model(changed)[0]
    torch.testing.assert_close(before[:10], after[:10], rtol=0, atol=1e-6)
    assert ((before[10:] - after[10:]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize(("n_merged", "n_prompt"), [(0, 1), (0, 30), (10, 21), (10, 40)])
def test_prefill_and_decode_equal_forward_at_every_step(n_merged, n_prompt, new_cache):
    model = random_gpt(TINY)
    x = tokens(48 + n_merged)
    full = model(x[None], n_merged)[0]
    cache = new_cache(model, 1)
    logits = [model.prefill(x[None, :n_prompt], cache, 0, n_merged=n_merged, ids=ALL)[0]]
    for token in x[n_prompt:]:
        logits.append(model.decode_one(token[None], cache, ids=ALL)[0])
    assert_close(torch.stack(logits), full[n_prompt - n_merged - 1 :], atol=1e-5)
    assert cache.lengths == [48]


def test_a_used_cache_starts_over(new_cache):
    model, cache = random_gpt(TINY), new_cache(random_gpt(TINY), 1)
    model.prefill(tokens(40)[None], cache, 0, ids=ALL)
    x = tokens(12)
    model.prefill(x[None, :10], cache, 0, ids=ALL)
    model.decode_one(x[10:11], cache, ids=ALL)
    assert_close(model.decode_one(x[11:], cache, ids=ALL)[0], model(x[None])[0, -1], atol=1e-5)


@pytest.mark.parametrize("end", [1, 2, 27, 47])
def test_several_prompts_can_be_filled_at_once(end, new_cache):
    model, x = random_gpt(TINY), tokens(3, 48)
    full = model(x)
    cache = new_cache(model, 4)
    model.prefill(x[:1, :5], cache, 0, ids=ALL)
    assert_close(model.prefill(x[:, :end], cache, 1, ids=ALL), full[:, end - 1], atol=1e-5)
    assert cache.lengths == [5, end, end, end]
    logits = model.decode_one(torch.cat((x[:1, 5], x[:, end])), cache, ids=ALL)
    assert_close(logits, torch.cat((full[:1, 5], full[:, end])), atol=1e-5)


def test_attention_of_the_last_position_is_the_end_of_that_of_all():
    q, k, v = torch.randn(3, 2, 3, 400, 16)
    for attention in (causal_attention, full_attention):
        last = attention(q[:, :, -1:], k, v)
        assert_close(last, attention(q, k, v)[:, :, -1:], atol=1e-5)


@pytest.mark.parametrize("start", [0, 1, 16, 19])
def test_a_layer_may_answer_for_its_last_positions_alone(start):
    block = random_gpt(TINY).transformer.blocks[0]
    x = torch.randn(2, 20, 32)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v)[:, :, start:]

    assert_close(block(x, attend), block(x)[:, start:], atol=1e-5)


def test_the_seam_takes_the_place_of_attention():
    """Plain products in it give the same logits, in every way that the model is called."""
    model, x = random_gpt(TINY), tokens(2, 20)
    expected = model(x)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_queries, n_keys = q.shape[2], k.shape[2]
        seen = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
        scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(~seen, -torch.inf)
        calls.append(n_queries)
        return scores.softmax(-1) @ v

    calls: list[int] = []
    for block in model.transformer.blocks:
        block.attn.attend = plain
    assert_close(model(x), expected, atol=1e-4)
    assert calls == [20, 20, 20]
    calls.clear()
    assert_close(model.prefill(x, used_cache(model, 2), 0), expected[:, -1], atol=1e-4)
    assert calls == [20, 20, 1]


def test_rows_of_other_lengths_do_not_touch_each_other(new_cache):
    model, lengths = random_gpt(TINY), [3, 30, 1, 12]
    sequences = [tokens(length + 10) for length in lengths]
    cache = new_cache(model, 4)
    for row, (x, n) in enumerate(zip(sequences, lengths, strict=True)):
        model.prefill(x[None, :n], cache, row, ids=ALL)
    for step in range(10):
        newest = torch.stack([x[n + step] for x, n in zip(sequences, lengths, strict=True)])
        logits = model.decode_one(newest, cache, ids=ALL)
    for row, x in enumerate(sequences):
        assert_close(logits[row], model(x[None])[0, -1], atol=1e-5)


def test_head_slices_are_slices_of_all_logits():
    model, x, head = random_gpt(TINY), tokens(11), slice(13, 37)
    cache = used_cache(model, 1)
    expected = model(x[None])[0]
    assert_close(model.prefill(x[None, :10], cache, 0, ids=head)[0], expected[-2, 13:37], atol=1e-5)
    assert_close(model.decode_one(x[10:], cache, ids=head)[0], expected[-1, 13:37], atol=1e-5)


@pytest.mark.parametrize("decoder", [CachedDecoder, UncachedDecoder])
def test_decoders_follow_the_loop_contract(decoder):
    model, head = random_gpt(TINY), slice(5, 60)
    decode = decoder(model, 4)
    for lengths in ([9, 20], [15, 10], [11]):  # a decoder starts over, with other rows too
        sequences = [tokens(length + 3) for length in lengths]
        logits = decode.prefill([x[:-3] for x in sequences], head)
        assert logits.shape == (len(lengths), 55)
        for step in (-3, -2, -1):
            for row, x in enumerate(sequences):
                seen = x[: len(x) + step]
                assert_close(logits[row], model(seen[None], 4)[0, -1, head], atol=1e-5)
            logits = decode.decode_one(torch.stack([x[step] for x in sequences]), head)


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no FBGEMM"
)
def test_wide_models_have_the_cache_that_is_summed_by_rows(monkeypatch):
    model, x = random_gpt(TINY), tokens(30)
    narrow, wide = (CachedDecoder(model, new_cache=cpu_cache.new_cache) for _ in "ab")
    narrow.prefill([x[:20]], ALL)
    monkeypatch.setattr(cpu_cache, "LEAST_EMBD", 32)
    wide.prefill([x[:20]], ALL)
    assert type(narrow.cache) is KVCache and type(wide.cache) is RowSumCache
    for token in x[20:]:
        logits = [decoder.decode_one(token[None], ALL) for decoder in (narrow, wide)]
    assert_close(*logits, atol=1e-5)
    assert not cpu_cache.pays(random_gpt(TINY).bfloat16())


def test_decoding_needs_a_prefill():
    with pytest.raises(ValueError, match="prefill"):
        CachedDecoder(random_gpt(TINY)).decode_one(tokens(1), ALL)


def test_what_does_not_fit_is_refused():
    model = random_gpt(TINY)
    cache = used_cache(model, 2)
    with pytest.raises(ValueError, match=r"49 positions .* block_size 48"):
        model(tokens(1, 49))
    with pytest.raises(ValueError, match="49 positions"):
        model(tokens(1, 59), n_merged=10)
    assert model(tokens(1, 58), n_merged=10).shape == (1, 48, 70)
    with pytest.raises(ValueError, match="49 positions"):
        model.prefill(tokens(49)[None], cache, 0, ids=ALL)
    with pytest.raises(ValueError, match="49 positions"):
        random_gpt(FINE)(tokens(1, 49, 8), 2)
    model.prefill(tokens(5)[None], cache, 0, ids=ALL)
    model.prefill(tokens(47)[None], cache, 1, ids=ALL)
    model.decode_one(tokens(2), cache, ids=ALL)
    with pytest.raises(ValueError, match="full at 48"):
        model.decode_one(tokens(2), cache, ids=ALL)
    assert cache.lengths == [6, 48]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)], ids=str
)
def test_half_precision_gives_float32_logits_near_the_exact_ones(dtype, tolerance):
    """The tolerance is the error's root mean square over that of the logits."""
    model, x = random_gpt(WITH_BIAS), tokens(1, 40)
    half = random_gpt(WITH_BIAS).to(dtype)
    cache = used_cache(half, 1)
    stepwise = [half.prefill(x[:, :20], cache, 0, ids=ALL)[0]]
    stepwise += [half.decode_one(x[:, t], cache, ids=ALL)[0] for t in range(20, 40)]
    expected = model(x)[0]
    for logits, exact in ((half(x)[0], expected), (torch.stack(stepwise), expected[19:])):
        assert logits.dtype == torch.float32
        error = (logits - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 0 < error < tolerance
    fine, codes = random_gpt(FINE), tokens(1, 40, 8)
    logits, exact = random_gpt(FINE).to(dtype)(codes, 5), fine(codes, 5)
    assert logits.dtype == torch.float32
    assert (logits - exact).square().mean().sqrt() < tolerance * exact.square().mean().sqrt()


@pytest.mark.weights
def test_released_large_text_model_gives_the_published_logits():
    path = random_bark.shared("reference/bark_large_text_logits.npz")
    model = Bark.from_pretrained(random_bark.released_large(), device="cpu").model("semantic")
    with np.load(path) as file:
        reference = {name: torch.from_numpy(file[name]) for name in file.files}
    prompts = [name for name in reference if name.endswith("_prompt")]
    assert len(prompts) == 6
    for name in prompts:
        n_merged = 0 if "no_merge" in name else 256
        logits = model(reference[name][None], n_merged)[0, -1]
        assert_close(logits, reference[name.replace("_prompt", "_logits")], atol=1e-3)
