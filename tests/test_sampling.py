"""The choice of a token against suno's own loop, and the properties that its filters promise."""

import copy
import math

import pytest
import random_bark
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_bark import GENERATION, streams
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibark.model import GPT
from minibark.sampling import Sampling, check_finite, choose, probabilities
from minibark.semantic import semantic_prompt

FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_k": 10_001},
    {"top_k": 99_999},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 3000, "top_p": 0.1},
]
LOGITS = st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=60)


class Draws(TorchFunctionMode):
    """Notes every distribution that torch.multinomial draws from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.multinomial:
            self.seen.append(args[0].clone())
        return func(*args, **(kwargs or {}))


class Ids:
    """A tokenizer for suno that reads numbers."""

    @staticmethod
    def encode(text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(word) for word in text.split()]


def suno_distribution(model: GPT, **options: object) -> tuple[Tensor, int]:
    """What suno draws the first semantic token from, and the draw with seed 5."""
    text = {"model": random_bark.suno_twin(model), "tokenizer": Ids}
    suno = random_bark.suno_with(text=text)
    torch.manual_seed(5)
    with Draws() as draws:
        options |= {"silent": True, "min_eos_p": None, "max_gen_duration_s": 1e-9}
        out = suno.generate_text_semantic("7 8 9", **options)
    (probs,) = draws.seen
    return probs, int(out[0])


def first_logits(model: GPT) -> Tensor:
    prompt = semantic_prompt(torch.tensor([7, 8, 9]), None, GENERATION)
    with torch.inference_mode():
        return model(prompt[None], 256)[0, -1, :10_001]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_distribution_is_that_of_sunos_loop(temperature, filters):
    model = random_bark.random_stage("semantic")
    theirs, token = suno_distribution(model, temp=temperature, **filters)
    sampling = Sampling(temperature, **filters)
    ours = probabilities(first_logits(model), sampling)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-9)
    assert int(choose(ours, sampling, streams(5)[0])) == token


def test_ties_at_the_kth_value_are_kept_as_in_suno():
    model = copy.deepcopy(random_bark.random_stage("semantic"))
    best = first_logits(model).topk(3).indices
    model.lm_head.weight[[70, 700, 7000]] = model.lm_head.weight[best[2]].clone()
    theirs, _ = suno_distribution(model, temp=0.7, top_k=3)
    ours = probabilities(first_logits(model), Sampling(0.7, top_k=3))
    assert ours.nonzero()[:, 0].tolist() == sorted([*best.tolist(), 70, 700, 7000])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_a_mass_of_just_p_is_not_enough_as_in_suno():
    model = copy.deepcopy(random_bark.random_stage("semantic"))
    logit, best = first_logits(model).max(0)
    row = model.lm_head.weight[best] * (200 / logit)
    model.lm_head.weight.zero_()[[70, 700]] = row
    for top_p in (0.49, 0.5, 0.51):
        theirs, _ = suno_distribution(model, temp=0.7, top_p=top_p)
        ours = probabilities(first_logits(model), Sampling(0.7, top_p=top_p))
        n_kept = 1 if top_p < 0.5 else 2  # which of two equals goes is open
        assert (ours > 0).sum() == (theirs > 0).sum() == n_kept


def test_filters_come_before_temperature():
    logits = torch.tensor([[0.0, math.log(0.5), math.log(0.25), math.log(0.25)]])
    hot = probabilities(logits, Sampling(100.0, top_p=0.6))
    assert hot[0].tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=0.01)
    cold = probabilities(logits, Sampling(0.01, top_p=0.6))
    assert cold[0].tolist() == pytest.approx([1, 0, 0, 0])
    # after top_k the likeliest alone would be above p
    both = probabilities(logits, Sampling(1.0, top_k=2, top_p=0.6))
    assert both[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_zero_and_none_switch_top_k_off():
    logits = torch.randn(3, 50)
    everything = probabilities(logits, Sampling(0.7))
    assert (everything > 0).all()
    assert torch.equal(probabilities(logits, Sampling(0.7, top_k=0)), everything)
    assert torch.equal(probabilities(logits, Sampling(0.7, top_k=None, top_p=None)), everything)


@pytest.mark.parametrize("temperature", [0, 0.0, None])
def test_greedy_takes_the_likeliest_and_draws_nothing(temperature):
    sampling = Sampling(temperature, top_k=7, top_p=0.5)
    logits, (generator,) = torch.randn(4, 50), streams(1)
    before = generator.get_state()
    probs = probabilities(logits, sampling)
    assert sampling.greedy
    assert probs.sum(-1).tolist() == [1] * 4
    assert torch.equal(choose(probs, sampling, generator), logits.argmax(-1))
    assert torch.equal(generator.get_state(), before)
    assert not Sampling(1e-3).greedy


@pytest.mark.parametrize("shape", [(10_001,), (1024,), (700, 1024)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_draw_is_multinomial_with_the_same_seed(shape, seed):
    probs = torch.randn(shape).softmax(-1)
    probs[..., ::3] = 0
    torch.manual_seed(seed)
    expected = [torch.multinomial(probs, 1).squeeze(-1) for _ in range(3)]
    assert len(torch.stack(expected).unique(dim=0)) == 3
    (generator,) = streams(seed)
    for tokens in expected:
        assert torch.equal(choose(probs, Sampling(), generator), tokens)
    torch.manual_seed(seed)
    assert torch.equal(choose(probs, Sampling(), None), expected[0])


def test_draw_follows_the_distribution():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(20_000, 4)
    shares = choose(probs, Sampling(), streams(3)[0]).bincount(minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0, 0.3, 0.2], abs=0.015)
    assert shares[1] == 0


def test_logits_that_are_not_finite_are_refused():
    check_finite(torch.zeros(2, 3), "coarse")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match="coarse model"):
            check_finite(torch.tensor([[0.0, 1.0], [value, 0.0]]), "coarse")


@given(
    LOGITS,
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.none() | st.integers(0, 70),
    st.none() | st.floats(0.01, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_probabilities_are_a_softmax_over_what_is_kept(logits, temperature, top_k, top_p):
    row = torch.tensor(logits)
    probs = probabilities(row, Sampling(temperature, top_k, top_p))
    kept = probs > 0
    assert row[kept].max() == row.max()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(probs[kept], (row[kept] / temperature).softmax(-1))


@given(LOGITS, st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_top_k_keeps_k_and_what_ties_with_the_kth(logits, top_k):
    row = torch.tensor(logits)
    kept = probabilities(row, Sampling(1.0, top_k=top_k)) > 0
    kth = row.sort(descending=True).values[min(top_k, len(row)) - 1]
    assert torch.equal(kept, row >= kth)


@given(LOGITS, st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_top_p_keeps_the_fewest_likeliest_tokens_above_p(logits, top_p):
    row = torch.tensor(logits)
    kept = probabilities(row, Sampling(1.0, top_p=top_p)) > 0
    mass = row.double().softmax(-1)[kept]
    assert mass.sum() >= top_p - 1e-5
    assert mass.sum() - mass.min() <= top_p + 1e-5
    assert kept.all() or row[kept].min() >= row[~kept].max()
