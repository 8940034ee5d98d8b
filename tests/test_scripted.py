"""Steps as TorchScript: the bits of `GPT.decode_one`, whatever comes, goes or is changed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from minibark.config import GPTConfig
from minibark.cpu import abilities, float32, row_sums, scripted
from minibark.cpu.byte_sums import ByteCache
from minibark.cpu.reduce import reduce
from minibark.cpu.row_sums import RowSumCache
from minibark.decoding import CachedDecoder, RandomStreams
from minibark.model import GPT, KVCache
from minibark.precision import PRECISIONS
from minibark.sampling import Sampling

IDS = slice(3, 90)
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 90}

pytestmark = pytest.mark.skipif(
    not abilities.has_int8_linear() or not abilities.has_byte_sums(),
    reason="this torch has no int8 products, or no sums of rows of bytes",
)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(row_sums, "CHUNK", 8)
    monkeypatch.setattr(scripted, "PAYS_AFTER", {})


def model_in(precision, **changes):
    torch.manual_seed(3)
    config = GPTConfig(input_vocab_size=100, output_vocab_size=96, **(SHAPE | changes))
    model = GPT(config).requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(4)
    if precision == "float32":
        float32.dress(model)
    else:
        twice = precision.endswith("twice")
        reduce(model, model.state_dict(), precision.split()[0], prompts_recur=twice)
    return model.eval()


def both(model, kind):
    """A scripted decoder and the plain one, over caches of a kind."""
    return scripted.ScriptedDecoder(model, 0, kind), CachedDecoder(model, 0, kind)


def is_in_use(decoder):
    script = decoder._script
    return script is not None and script.steps is not None


@torch.inference_mode()
def same_bits(decoders, acts, is_scripted=True):
    """Do the same with both decoders and compare what they give."""
    rows, source = 0, torch.Generator().manual_seed(1)
    for act, numbers in acts:
        if act == "step":
            tokens = torch.randint(100, (numbers, rows), generator=source)
            for step in tokens:
                given = [decoder.decode_one(step, IDS) for decoder in decoders]
                assert torch.equal(*given)
                assert is_in_use(decoders[0]) == is_scripted
            continue
        if act == "keep":
            rows = len(numbers)
            for decoder in decoders:
                decoder.keep(numbers)
            continue
        prompts = [torch.randint(100, (n,), generator=source) for n in numbers]
        rows = len(prompts) + (rows if act == "join" else 0)
        assert torch.equal(*[getattr(decoder, act)(prompts, IDS) for decoder in decoders])


ACTS = [
    *(("prefill", [5]), ("step", 12), ("join", [9, 3]), ("step", 3), ("keep", [2, 0]), ("step", 9)),
    *(
        ("prefill", [16] * 3),
        ("step", 4),
        ("join", [1] * 3),
        ("step", 2),
        ("keep", [5]),
        ("step", 2),
    ),
]


@pytest.mark.parametrize("kind", [KVCache, RowSumCache, ByteCache])
@pytest.mark.parametrize("precision", [*PRECISIONS, "int8 twice", "int4 twice"])
def test_the_bits_are_those_of_the_plain_decoder(precision, kind):
    same_bits(both(model_in(precision), kind), ACTS)


SAMPLINGS = [
    Sampling(0.7),
    Sampling(0),
    Sampling(1, top_k=5, top_p=1),
    Sampling(np.float32(0.9), top_k=np.int64(50), top_p=np.float32(0.6)),
]


@torch.inference_mode()
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", [KVCache, RowSumCache, ByteCache])
@pytest.mark.parametrize("precision", [*PRECISIONS, "int8 twice", "int4 twice"])
def test_steps_at_once_choose_what_the_plain_decoder_does(precision, kind, sampling):
    decoders, rows = both(model_in(precision), kind), [5, 14, 6]
    prompts = [torch.arange(n) for n in rows]
    ids = [slice(3 + 40 * (step % 2), 43 + 40 * (step % 2)) for step in range(21)]
    active = [[step < 15 or row != 1 for row in range(3)] for step in range(21)]
    made, left = [], []
    for decoder in decoders:
        generators = [torch.Generator().manual_seed(row) for row in range(3)]
        streams = RandomStreams(generators, torch.device("cpu"))
        decoder.prefill(prompts, ids[-1])
        tokens, parts = torch.tensor([1, 2, 3]), []
        for first, last in ((0, 8), (8, 9), (9, 21)):
            parts.append(
                decoder.take_steps(tokens, ids[first:last], sampling, streams, active[first:last])
            )
            tokens = parts[-1][0][-1]
        streams.give_back(0, 7)
        made.append([torch.cat(part) for part in zip(*parts, strict=True)])
        left.append([generator.get_state() for generator in generators])
    assert is_in_use(decoders[0])
    (tokens, last_p), (plain_tokens, plain_p) = made
    is_needed = torch.tensor(active)
    assert torch.equal(tokens[is_needed], plain_tokens[is_needed])
    assert torch.equal(last_p[is_needed], plain_p[is_needed])
    assert all(torch.equal(*states) for states in zip(*left, strict=True))


def test_many_rows_too():
    acts = [("prefill", [3] * 40), ("step", 2)]
    same_bits(both(model_in("int4"), ByteCache), acts, is_scripted=False)


def test_what_is_put_into_the_model_afterwards_is_used():
    model = model_in("float32")
    decoders, acts = both(model, KVCache), [("prefill", [5, 2]), ("step", 3)]
    same_bits(decoders, acts)
    model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()}, assign=True)
    same_bits(decoders, acts)
    model.transformer.ln_f.weight.mul_(2)
    model.transformer.blocks[0].mlp.c_proj.weight.mul_(2)
    same_bits(decoders, acts)
    copied = copy.deepcopy(model)
    copied.transformer.blocks[1].attn.c_attn.weight.mul_(2)
    same_bits(both(copied, KVCache), acts)
    same_bits(both(copied, RowSumCache), acts)


def relu(block):
    block.mlp.act = nn.ReLU()


def wrapped_product(block):
    block.mlp.c_fc = nn.Sequential(block.mlp.c_fc)


def own_class_of_product(block):
    own = copy.copy(block.attn.c_proj)
    own.__class__ = type("Own", (type(own),), {"forward": lambda self, x: 2 * x})
    block.attn.c_proj = own


def biased_norm(block):
    block.ln_1 = nn.LayerNorm(64, eps=0.5).requires_grad_(False)
    nn.init.ones_(block.ln_1.bias)


def own_forward(block):
    block.attn.forward = lambda x, attend=None: torch.zeros_like(x)


def no_mlp(block):
    block.mlp = nn.Dropout().eval()


def gradients(block):
    block.ln_2.weight.requires_grad_(True)


PLAIN = [relu, wrapped_product, own_class_of_product, biased_norm, own_forward, no_mlp, gradients]


@pytest.mark.parametrize("change", PLAIN)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_another_model_takes_its_steps_plainly(precision, change):
    model, acts = model_in(precision), [("prefill", [5, 2]), ("step", 3)]
    decoders = both(model, KVCache)
    same_bits(decoders, acts)
    change(model.transformer.blocks[1])
    same_bits(decoders, acts, is_scripted=False)


def test_layers_and_products_may_be_exchanged():
    model, acts = model_in("float32"), [("prefill", [5, 2]), ("step", 3)]
    decoders = both(model, KVCache)
    same_bits(decoders, acts)
    model.transformer.blocks[0].ln_1.eps = 0.5
    model.transformer.blocks[0].attn.c_attn = model_in("int8").transformer.blocks[0].attn.c_attn
    same_bits(decoders, acts)
    del model.transformer.h[1]
    same_bits(both(model, KVCache), acts)


def test_after_a_prompt_that_failed_it_is_as_the_plain_one():
    decoders = both(model_in("int8"), KVCache)
    with torch.inference_mode():
        for decoder in decoders:
            with pytest.raises(ValueError, match="do not fit"):
                decoder.prefill([torch.zeros(95, dtype=torch.int64)], IDS)
        assert torch.equal(*[decoder.decode_one(torch.tensor([1]), IDS) for decoder in decoders])
    same_bits(decoders, ACTS)


def test_scripts_are_made_once_they_pay(monkeypatch):
    monkeypatch.setattr(scripted, "PAYS_AFTER", {ByteCache: 20})
    model = model_in("int8")
    decoders = both(model, ByteCache)
    same_bits(decoders, [("prefill", [5, 9]), ("step", 19)], is_scripted=False)
    assert not is_in_use(decoders[0])
    same_bits(decoders, [("prefill", [5, 9])], is_scripted=False)
    with torch.inference_mode():
        for _ in range(3):  # one more is plain, and scripts go on in the midst of rows
            step = torch.tensor([1, 2])
            assert torch.equal(*[decoder.decode_one(step, IDS) for decoder in decoders])
            assert decoders[0]._parts
    same_bits(both(model, ByteCache), ACTS)


def test_hooks_are_called():
    model, seen = model_in("float32"), []
    acts = [("prefill", [5, 2]), ("step", 3)]
    decoders = both(model, KVCache)
    same_bits(decoders, acts)
    handle = model.transformer.blocks[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    same_bits(decoders, acts, is_scripted=False)
    assert len(seen) == 2 * (2 + 3)  # both decoders': prompts are read one by one
    handle.remove()
    same_bits(decoders, acts)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    same_bits(decoders, acts, is_scripted=False)
    handle.remove()


@pytest.mark.parametrize("why", ["biases", "a torch without it"])
def test_what_cannot_be_scripted_is_done_plainly(why, monkeypatch):
    if why != "biases":
        monkeypatch.delattr(torch.jit, "script")
    model = model_in("int8", bias=why == "biases")
    same_bits(both(model, ByteCache), [("prefill", [5, 2]), ("step", 3)], is_scripted=False)


def test_full_is_told():
    scripts = both(model_in("int8"), ByteCache)[0]
    with torch.inference_mode():
        scripts.prefill([torch.zeros(90, dtype=torch.int64)], IDS)
        with pytest.raises(ValueError, match="full at 90"):
            scripts.decode_one(torch.zeros(1, dtype=torch.int64), IDS)
