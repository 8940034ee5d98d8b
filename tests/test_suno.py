"""suno/bark's functions: same names, same signatures, same tokens."""

import dataclasses
import inspect

import numpy as np
import oracles
import pytest
import torch

import minibark
import minibark.suno as ours
from minibark.checkpoint.presets import preset


@pytest.fixture
def bark(monkeypatch):
    config = preset("random")
    short = dataclasses.replace(config.generation, max_new_tokens=40)
    bark = minibark.Bark(dataclasses.replace(config, generation=short), device="cpu")
    monkeypatch.setattr(ours, "_bark", bark)
    return bark


def test_names_and_signatures_are_sunos():
    oracles.import_suno()
    import bark as theirs

    for name in (
        "preload_models",
        "generate_audio",
        "text_to_semantic",
        "semantic_to_waveform",
        "save_as_prompt",
    ):
        expected = [
            (p.name, p.default, p.kind)
            for p in inspect.signature(getattr(theirs, name)).parameters.values()
        ]
        got = [
            (p.name, p.default, p.kind)
            for p in inspect.signature(getattr(ours, name)).parameters.values()
        ]
        assert got == expected, name
    assert ours.SAMPLE_RATE == theirs.SAMPLE_RATE


def test_a_suno_script_runs(bark, tmp_path, capsys):
    torch.manual_seed(3)
    full, audio = ours.generate_audio("Hello there", output_full=True, silent=True)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert sorted(full) == ["coarse_prompt", "fine_prompt", "semantic_prompt"]
    assert len(audio) == 320 * full["fine_prompt"].shape[1]
    ours.save_as_prompt(tmp_path / "me.npz", full)
    again = ours.generate_audio("More", history_prompt=str(tmp_path / "me.npz"), silent=True)
    from_dict = ours.generate_audio("More", history_prompt=full, silent=True)
    assert again.ndim == from_dict.ndim == 1
    assert capsys.readouterr().err == ""


def test_the_two_steps_give_what_the_whole_gives(bark):
    torch.manual_seed(5)
    whole = ours.generate_audio("Hello there", silent=True)
    torch.manual_seed(5)
    semantic = ours.text_to_semantic("Hello there", silent=True)
    parts = ours.semantic_to_waveform(semantic, silent=True)
    np.testing.assert_array_equal(parts, whole)
    torch.manual_seed(5)
    voice = bark.generate_voice("Hello there")
    np.testing.assert_array_equal(bark.decode(voice.fine), whole)


def test_bars_are_drawn_unless_silent(bark, capsys):
    ours.text_to_semantic("Hello", silent=False)
    assert "semantic" in capsys.readouterr().err


def test_save_as_prompt_refuses_what_is_no_voice(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz"):
        ours.save_as_prompt(
            tmp_path / "v.txt",
            {f"{k}_prompt": np.zeros(3, int) for k in ("semantic", "coarse", "fine")},
        )
    with pytest.raises(minibark.VoiceError, match="coarse_prompt is missing"):
        ours.save_as_prompt(tmp_path / "v.npz", {"semantic_prompt": np.zeros(3, int)})
    assert not list(tmp_path.iterdir())
