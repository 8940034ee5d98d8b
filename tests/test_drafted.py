"""Drafted steps: float32's tokens, whatever the draft is like."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import minibark
from minibark import fast
from minibark.config import GPTConfig
from minibark.cpu import abilities, cache, drafted, float32, row_sums, scripted
from minibark.cpu.drafted import DRAFTED, DraftedDecoder
from minibark.cpu.row_sums import RowSumCache
from minibark.decoding import CachedDecoder, RandomStreams, UncachedDecoder
from minibark.model import GPT, KVCache
from minibark.sampling import Sampling

CPU = torch.device("cpu")
SAMPLINGS = [
    Sampling(0.7),
    Sampling(0),
    Sampling(1.2, top_k=5),
    Sampling(np.float32(0.9), top_k=np.int64(50), top_p=np.float32(0.6)),
]
BOTH_HEADS = [slice(3, 43), slice(43, 83)]

pytestmark = pytest.mark.skipif(
    not abilities.has_int8_linear(),
    reason="this torch has no int8 products, by which steps are drafted",
)


@pytest.fixture(autouse=True)
def short_chunks_and_drafts_always(monkeypatch):
    monkeypatch.setattr(row_sums, "CHUNK", 8)
    monkeypatch.setattr(scripted, "PAYS_AFTER", {})
    monkeypatch.setattr(drafted, "LEAST_GAIN", 0)
    monkeypatch.setattr(drafted, "LEAST_MADE", 0)


def random_model(seed=3, **changes):
    torch.manual_seed(seed)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 90}
    model = GPT(GPTConfig(input_vocab_size=100, output_vocab_size=96, **(shape | changes)))
    for weight in model.requires_grad_(False).parameters():
        weight.mul_(4)
    return model.eval()


def dressed(small=True, **changes):
    """A model with the products of small matrices, or with those of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float32, "SMALL", float32.SMALL if small else 0)
        model = random_model(**changes)
        float32.dress(model)
    return model


def set_draft(monkeypatch, model, draft):
    monkeypatch.setitem(drafted._DRAFTS, model, (drafted._state_of(model), draft))


def drafting(model):
    return DraftedDecoder(model, 0, RowSumCache)


def ids_of(n, first=0):
    return [BOTH_HEADS[step % 2] for step in range(first, first + n)]


@torch.inference_mode()
def take(decoder, sampling, parts=(16, 1, 5, 30), prompts=(11,), seed=0, idle=None):
    """Tokens and the last ids' probabilities where needed, and where the streams then are.

    Some draws are given back; row `idle` needs no tokens after twenty steps.
    """
    n_rows = len(prompts)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(n_rows)]
    streams = RandomStreams(generators, CPU)
    decoder.prefill([torch.arange(n) + row for row, n in enumerate(prompts)], BOTH_HEADS[1])
    tokens, made, done = torch.arange(1, n_rows + 1), [], 0
    active = [[step < 20 or row != idle for row in range(n_rows)] for step in range(sum(parts))]
    for n in parts:
        steps = slice(done, done + n)
        made.append(decoder.take_steps(tokens, ids_of(n, done), sampling, streams, active[steps]))
        tokens, done = made[-1][0][-1], done + n
    if parts[-1] > 3:
        streams.give_back(0, 3)
    needed = torch.tensor(active)
    chosen, last_p = (torch.cat(part)[needed] for part in zip(*made, strict=True))
    return chosen, last_p, torch.stack([generator.get_state() for generator in generators])


def is_drafting(decoder):
    """Whether its next steps will be drafted."""
    if not isinstance(decoder, DraftedDecoder):
        return False
    if decoder._find is not None:
        decoder._look_for_draft(decoder._find)
    return decoder._drafter is not None


def same(ours, plain):
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-3, atol=1e-5)
    assert torch.equal(ours[2], plain[2])


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_are_those_of_the_specification(sampling, small):
    model = dressed(small)
    for seed in range(5):
        decoder = drafting(model)
        ours = take(decoder, sampling, seed=seed)
        assert is_drafting(decoder) and decoder._n_asked >= 16 + 5 + 16
        same(ours, take(UncachedDecoder(model), sampling, seed=seed))


@pytest.mark.parametrize("prompts", [(5, 14), (20, 2, 7), (8, 8, 9, 31), (4, 6, 6, 3, 9)])
@pytest.mark.parametrize("small", [True, False])
def test_so_are_those_of_a_few_rows_whatever_their_lengths(small, prompts, monkeypatch):
    monkeypatch.setattr(drafted, "DRAFTED", {2: 12, 3: 7, 4: 5})
    model = dressed(small)
    for seed, idle in ((0, None), (1, 1)):
        decoder = drafting(model)
        ours = take(decoder, Sampling(), prompts=prompts, seed=seed, idle=idle)
        assert is_drafting(decoder) == (len(prompts) <= 4)
        same(ours, take(UncachedDecoder(model), Sampling(), prompts=prompts, seed=seed, idle=idle))


@pytest.mark.parametrize("prompts", [(11,), (4, 17)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_that_is_always_wrong_changes_nothing_but_the_time(sampling, prompts, monkeypatch):
    model, other = dressed(), drafted.draft_of(dressed(seed=8))
    set_draft(monkeypatch, model, other)
    decoder = drafting(model)
    same(
        take(decoder, sampling, prompts=prompts),
        take(CachedDecoder(model), sampling, prompts=prompts),
    )
    assert decoder._n_made < 0.4 * decoder._n_asked
    with torch.inference_mode():  # the cache holds what it would, and not what was drafted
        plain = CachedDecoder(model)
        take(plain, sampling, prompts=prompts)
        new = torch.arange(5, 5 + len(prompts))
        logits = [one.decode_one(new, BOTH_HEADS[0]) for one in (decoder, plain)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_a_draft_that_is_mostly_wrong_is_given_up(monkeypatch):
    monkeypatch.setattr(drafted, "LEAST_MADE", 0.5)
    model = dressed()
    set_draft(monkeypatch, model, drafted.draft_of(dressed(seed=8)))
    decoder = drafting(model)
    same(take(decoder, Sampling()), take(CachedDecoder(model), Sampling()))
    assert not is_drafting(decoder) and decoder.steps_at_once == scripted.AT_ONCE
    with torch.inference_mode():
        decoder.prefill([torch.arange(4)], BOTH_HEADS[0])
    assert is_drafting(decoder) and decoder.steps_at_once == DRAFTED[1]


def test_a_draft_that_is_always_right_needs_one_pass_a_piece(monkeypatch):
    model = dressed()
    set_draft(monkeypatch, model, model)
    decoder, lengths = drafting(model), []
    whole = decoder._pass
    monkeypatch.setattr(
        decoder, "_pass", lambda tokens, ids: lengths.append(len(ids)) or whole(tokens, ids)
    )
    same(take(decoder, Sampling()), take(CachedDecoder(model), Sampling()))
    assert lengths == [16, 5, 16, 14]


def test_a_wrong_draft_costs_what_is_behind_it(monkeypatch):
    """The first draft that differs is replaced by what float32 chose there, and is not lost."""
    model = dressed()
    set_draft(monkeypatch, model, model)
    decoder, asked = drafting(model), []
    begin = decoder._look_for_draft

    def spoil(find):
        begin(find)
        drafter = decoder._drafter
        right = drafter.choose

        def choose(tokens, ids, sampling, noise):
            chosen, p = right(tokens, ids, sampling, noise)
            asked.append(len(ids))
            if len(asked) == 1:
                chosen[6] = (chosen[6] + 1) % 40
            return chosen, p

        drafter.choose = choose

    decoder._look_for_draft = spoil
    same(
        take(decoder, Sampling(), parts=(16,)),
        take(CachedDecoder(model), Sampling(), parts=(16,)),
    )
    assert asked == [15, 8]  # seven steps are right, the seventh by float32's own choice
    assert decoder._n_made == 7 + 9 and decoder._n_asked == 16 + 9


def test_up_to_the_last_position_of_the_model():
    model = dressed()
    decoder = drafting(model)
    same(
        take(decoder, Sampling(), parts=(40, 39), prompts=(11,)),
        take(UncachedDecoder(model), Sampling(), parts=(40, 39), prompts=(11,)),
    )
    assert decoder.cache.lengths == [90]
    with pytest.raises(ValueError, match="90 positions"):
        take(drafting(model), Sampling(), parts=(80,), prompts=(11,))
    with pytest.raises(ValueError, match="90 positions, 1 more"):
        decoder.cache.begin_many(1)


@torch.inference_mode()
def test_rows_of_a_batch_take_their_steps_without_and_a_row_that_is_left_with_drafts():
    model = dressed()
    made = []
    for decoder in (drafting(model), CachedDecoder(model, 0, RowSumCache)):
        generators = [torch.Generator().manual_seed(row) for row in range(5)]
        decoder.prefill([torch.arange(9)], BOTH_HEADS[0])
        was = [is_drafting(decoder)]
        decoder.join([torch.arange(n) for n in (5, 14, 3, 20)], BOTH_HEADS[0])
        tokens, kept = torch.arange(5), list(range(5))
        for leaving in ([], [0, 3, 4], [1]):
            decoder.keep([place for place, row in enumerate(kept) if row not in leaving])
            tokens = tokens[[row not in leaving for row in kept]]
            kept = [row for row in kept if row not in leaving]
            was.append(is_drafting(decoder))
            streams = RandomStreams([generators[row] for row in kept], CPU)
            active = [[True] * len(kept)] * 18
            chosen, _ = decoder.take_steps(tokens, ids_of(18), Sampling(), streams, active)
            made.append(chosen)
            tokens = chosen[-1]
        if isinstance(decoder, DraftedDecoder):
            assert was == [True, False, True, True]
    assert all(torch.equal(*pair) for pair in zip(made[:3], made[3:], strict=True))


@torch.inference_mode()
def test_who_takes_steps_one_by_one_needs_no_draft():
    """As `minibark inspect`, which looks at each."""
    model = dressed()
    decoder = drafting(model)
    decoder.prefill([torch.arange(9)], BOTH_HEADS[0])
    for token in range(3):
        decoder.decode_one(torch.tensor([token]), BOTH_HEADS[0])
    assert drafted.made_draft(model) is None
    assert is_drafting(decoder) and drafted.made_draft(model) is not None


@torch.inference_mode()
def test_for_what_is_left_of_a_batch_no_draft_is_made_and_for_a_prompt_there_is():
    model = dressed()
    decoder = drafting(model)
    decoder.prefill([torch.arange(n) for n in (5, 14, 3)], BOTH_HEADS[0])
    decoder.keep([1])
    assert not is_drafting(decoder) and model not in drafted._DRAFTS
    decoder.prefill([torch.arange(5)], BOTH_HEADS[0])
    assert is_drafting(decoder) and model in drafted._DRAFTS


def test_a_new_prompt_begins_anew():
    model = dressed()
    decoder = drafting(model)
    take(decoder, Sampling(), seed=4)
    same(take(decoder, Sampling(), seed=5), take(CachedDecoder(model), Sampling(), seed=5))


@pytest.mark.parametrize("small", [True, False])
def test_weights_that_change_are_seen_and_drafted_with(small):
    model = dressed(small)
    take(drafting(model), Sampling())
    before = drafted.draft_of(model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(-1)
    same(take(drafting(model), Sampling()), take(CachedDecoder(model), Sampling()))
    assert drafted.draft_of(model) is not before
    # Where torch does not see it, the draft has the old ones.
    model.transformer.h[0].mlp.c_fc.weight.data.mul_(-1)
    same(take(drafting(model), Sampling()), take(CachedDecoder(model), Sampling()))


class Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, *args):
        return self.base(*args)


@pytest.mark.parametrize("place", ["attn.c_attn", "mlp.c_proj", "wte", "lm_head"])
def test_a_model_with_a_part_of_somebody_s_own_takes_its_steps_plainly(place):
    model = dressed()
    holder = {"wte": model.transformer, "lm_head": model}.get(place, model.transformer.h[0])
    holder.set_submodule(place, Wrapped(holder.get_submodule(place)))
    decoder = drafting(model)
    same(take(decoder, Sampling()), take(CachedDecoder(model), Sampling()))
    assert not is_drafting(decoder)


@torch.inference_mode()
def test_damaged_weights_are_no_error_of_the_draft_s():
    model = dressed()
    with torch.inference_mode(False):
        model.transformer.h[0].mlp.c_fc.weight.data.fill_(torch.nan)
    logits = drafting(model).prefill([torch.arange(5)], BOTH_HEADS[0])
    assert logits.isnan().all()


@torch.inference_mode()
def test_a_draft_that_fails_is_gone_on_without(monkeypatch):
    model = dressed()
    decoder = drafting(model)
    decoder.prefill([torch.arange(11)], BOTH_HEADS[1])
    assert is_drafting(decoder)
    drafter = decoder._drafter
    right = drafter.choose

    def fail(*args):
        right(*args)
        raise RuntimeError("no")

    drafter.choose = fail
    plain, made = CachedDecoder(model), []
    plain.prefill([torch.arange(11)], BOTH_HEADS[1])
    for one in (decoder, plain):
        streams = RandomStreams([torch.Generator().manual_seed(0)], CPU)
        made.append(
            one.take_steps(torch.tensor([1]), ids_of(25), Sampling(), streams, [[1]] * 25)[0]
        )
        assert one.cache.lengths == [36]
    assert torch.equal(*made) and not is_drafting(decoder)


def test_hooks_see_step_after_step():
    model = dressed()
    shapes = []
    model.transformer.h[0].register_forward_hook(lambda _, __, out: shapes.append(out.shape[1]))
    decoder = drafting(model)
    take(decoder, Sampling(), parts=(9,))
    assert not is_drafting(decoder) and shapes == [11] + [1] * 9


@torch.inference_mode()
def test_many_positions_at_once_are_those_one_by_one():
    model = dressed()
    torch.manual_seed(0)
    caches = [RowSumCache(model, 0) for _ in range(2)]
    prompt = torch.randn(2, 1, 2, 13, 32)
    q, k, v = torch.randn(3, 1, 2, 20, 32)
    for one in caches:
        one.keep([], 1)
        one.write_prompt(0, 1, *prompt)
    singly = []
    for t in range(20):
        assert caches[0].begin_step().tolist() == [13 + t]
        singly.append(caches[0].attend(1, *(x[:, :, t : t + 1].contiguous() for x in (q, k, v))))
    assert caches[1].begin_many(20).tolist() == [list(range(13, 33))]
    together = caches[1].attend_many(1, q, k, v)
    torch.testing.assert_close(together, torch.cat(singly, 2))
    # What is taken back is as if it had never been.
    caches[1].take_back(15)
    assert caches[1].begin_many(15).tolist() == [list(range(18, 33))]
    again = caches[1].attend_many(1, *(x[:, :, 5:] for x in (q, k, v)))
    torch.testing.assert_close(again, together[:, :, 5:])
    assert all(torch.equal(*step) for step in [[one.begin_step() for one in caches]])


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_passage_is_multiplied_as_rows_are_and_without_a_copy(gelu, bias):
    plain = nn.Linear(48, 80, bias=bias).requires_grad_(False)
    ours = float32.OneDNNLinear(plain)
    ours.gelu = gelu
    for n_rows, n in ((1, 1), (1, 2), (1, 17), (3, 9), (4, 16), (1, 64), (1, 65), (4, 17)):
        x = torch.randn(n_rows, n, 48)
        expected = nn.functional.gelu(plain(x)) if gelu else plain(x)
        given = ours(x)
        assert given.is_contiguous() and given.shape == expected.shape
        torch.testing.assert_close(given, expected)
    assert not ours._ordered.made
    ours(torch.randn(2, 1, 48))  # a batch has one, as ever
    assert ours._ordered.made


def test_an_utterance_leaves_no_second_float32_copy():
    model = dressed(small=False)
    take(drafting(model), Sampling())
    products = [one for one in model.modules() if isinstance(one, float32.OneDNNLinear)]
    assert len(products) == 9 and not any(one._ordered.made for one in products)


def test_a_draft_is_made_once_and_goes_with_its_model():
    model, found = dressed(), []
    with ThreadPoolExecutor(4) as pool:
        found += pool.map(drafted.draft_of, [model] * 4)
    assert len(found) == 4 and len({id(draft) for draft in found}) == 1
    seen = weakref.ref(found[0])
    found.clear()
    del model
    gc.collect()
    assert seen() is None


def test_making_one_changes_nothing_in_the_model():
    model = dressed().train()
    model.transformer.wte.weight.requires_grad_(True)
    assert drafted.draft_of(model) is not None
    assert model.transformer.wte.training and model.transformer.wte.weight.requires_grad


def test_no_draft_where_int8_is_not_faster_or_not_there(monkeypatch):
    monkeypatch.setattr(drafted, "LEAST_GAIN", 1e9)
    assert drafted.draft_of(dressed()) is None
    monkeypatch.setattr(drafted, "LEAST_GAIN", 0)
    monkeypatch.setattr(abilities, "has_int8_linear", lambda: False)
    model = dressed()
    assert drafted.draft_of(model) is None
    decoder = drafting(model)
    same(take(decoder, Sampling()), take(CachedDecoder(model), Sampling()))
    assert not is_drafting(decoder)


def test_a_cache_by_positions_is_not_drafted_over():
    decoder = DraftedDecoder(dressed(), 0, KVCache)
    take(decoder, Sampling(), parts=(9,))
    assert not is_drafting(decoder)


def test_float32_on_a_cpu_is_drafted_and_nothing_else(monkeypatch):
    monkeypatch.setattr(cache, "LEAST_EMBD", 1)
    for precision in ("float32", "bfloat16", "int8"):
        choice = fast.choose("cpu", precision)
        with torch.inference_mode():
            decoder = fast.decoder(dressed(), 0, choice)
            decoder.prefill([torch.arange(5)], BOTH_HEADS[0])
        assert isinstance(decoder, DraftedDecoder) == (precision == "float32")
        if precision == "float32":
            assert is_drafting(decoder)


def test_clips_are_the_same_with_and_without(monkeypatch):
    """Of the voice in the box: its loops, ends and windows, drawn and greedy, and three at once."""
    bark = minibark.Bark.from_pretrained("tiny", device="cpu")
    options = [{"seed": 3}, {"seed": 4, "voice": "female"}, {"seed": 5, "temperature": 0.0}]
    texts = ["The clocks were striking thirteen.", "Yes.", "It was a bright cold day."]

    def clips():
        alone = [bark.generate(texts[0], **one, max_duration_s=3) for one in options]
        return [*alone, *bark.generate_batch(texts, seeds=[6, 7, 8])]

    plain, rounds, check = clips(), [], DraftedDecoder._draft_and_check

    def counted(self, tokens, ids, *rest):
        made = check(self, tokens, ids, *rest)
        rounds.append((len(tokens), len(ids), len(made[0])))
        return made

    monkeypatch.setattr(cache, "LEAST_EMBD", 1)
    monkeypatch.setattr(DraftedDecoder, "_draft_and_check", counted)
    for made, expected in zip(clips(), plain, strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-5)
    n_rows, n_asked, n_made = zip(*rounds, strict=True)
    assert {1, 2} <= set(n_rows) and sum(n_made) > 0.8 * sum(n_asked)
