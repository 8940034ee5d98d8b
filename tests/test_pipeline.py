"""Rows through the stages: each gets what it gets alone, whoever stands beside it."""

import dataclasses

import pytest
import random_bark
import torch
from random_bark import assert_same_tokens, random_voice

from minibark import Bark, Options
from minibark.pipeline import Row

TEXTS = ("Hello, my name is Suno. [laughs]", "A.", "One, two, three, four, five.", "Yes?", "No!")
VOICES = (None, random_voice(300, 5), random_voice(11), random_voice(160), random_voice(400, 2))
OPTIONS = (
    Options(max_duration_s=1.2, min_eos_p=0.05),
    Options(max_duration_s=1.2, min_eos_p=0.05, top_k=50, top_p=0.9, fine_temperature=None),
    Options(
        temperature=0, waveform_temperature=0, fine_temperature=0, max_duration_s=1.0, min_eos_p=0.1
    ),
    Options(max_duration_s=0.8, max_coarse_history=60, sliding_window_len=20),
)


@pytest.fixture(scope="module")
def bark(tmp_path_factory) -> Bark:
    return random_bark.ending_bark(tmp_path_factory.mktemp("pipeline") / "bark")


def rows(bark: Bark) -> list[Row]:
    return [
        Row(torch.tensor(bark.tokenizer.encode(text)), voice, torch.Generator().manual_seed(seed))
        for seed, (text, voice) in enumerate(zip(TEXTS, VOICES, strict=True))
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=["drawn", "filtered", "greedy", "windows"])
def test_each_row_gets_what_it_gets_alone(bark, options):
    together = bark.pipeline.speak(rows(bark), options)
    alone = [bark.pipeline.speak([row], options)[0] for row in rows(bark)]
    doors = [
        bark.generate_voice(text, voice, **(vars(options) | {"seed": seed}))
        for seed, (text, voice) in enumerate(zip(TEXTS, VOICES, strict=True))
    ]
    for one, two, three in zip(together, alone, doors, strict=True):
        for part in ("semantic", "coarse", "fine"):
            assert_same_tokens(getattr(one, part), getattr(two, part))
            assert_same_tokens(getattr(two, part), getattr(three, part))
    if options is OPTIONS[0]:
        assert len({len(voice.semantic) for voice in together}) > 2


def test_a_row_that_ends_at_once_stands_in_nobody_s_way(bark):
    options = Options(max_duration_s=1, min_eos_p=2.0**-20, seed=None)
    voices = bark.pipeline.speak(rows(bark), options)
    lengths = [len(voice.semantic) for voice in voices]
    assert 0 in lengths
    for voice in voices:
        n_frames = int(len(voice.semantic) * 75 / 49.9)
        assert voice.fine.shape == (8, n_frames) and voice.coarse.shape == (2, n_frames)
        assert len(bark.pipeline.decode(voice.fine)) == 320 * n_frames


def test_windows_that_do_not_fit_are_refused_before_the_first_step(bark):
    steps: list[object] = []
    with pytest.raises(ValueError, match="max_coarse_history must be"):
        bark.generate("a", max_coarse_history=5000, on_step=lambda *step: steps.append(step))
    assert not steps


def test_a_stage_that_could_not_be_built_can_be_tried_again(bark, monkeypatch):
    again = Bark(random_bark.CONFIG, device="cpu")
    from minibark import fast

    def fails(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(fast, "build", fails)
        with pytest.raises(MemoryError):
            again.model("semantic")
    assert again.model("semantic").config == random_bark.CONFIG.semantic
    assert again.pipeline.built == ["semantic"]


def test_rows_are_frozen():
    row = Row(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.voice = None
