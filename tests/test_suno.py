"""suno/bark's functions: same names, same signatures, same tokens."""

import dataclasses
import inspect
import os
import subprocess
import sys

import checkpoints as made
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
    from bark import generation

    for name in (
        *("preload_models", "generate_audio", "text_to_semantic", "semantic_to_waveform"),
        *("save_as_prompt", "load_model", "load_codec_model", "clean_models", "codec_decode"),
        *("generate_text_semantic", "generate_coarse", "generate_fine"),
    ):
        function = getattr(theirs if hasattr(theirs, name) else generation, name)
        expected = [
            (p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()
        ]
        got = [
            (p.name, p.default, p.kind)
            for p in inspect.signature(getattr(ours, name)).parameters.values()
        ]
        assert got == expected, name
    for name in (
        *("SAMPLE_RATE", "SUPPORTED_LANGS", "ALLOWED_PROMPTS", "CONTEXT_WINDOW_SIZE"),
        *("SEMANTIC_RATE_HZ", "SEMANTIC_VOCAB_SIZE", "CODEBOOK_SIZE", "N_COARSE_CODEBOOKS"),
        *("N_FINE_CODEBOOKS", "COARSE_RATE_HZ"),
    ):
        assert getattr(ours, name) == getattr(generation, name), name


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


# ---- scripts of bark.generation, and what they set


LONG_FORM = """
import numpy as np
import torch
from minibark.suno import (
    SAMPLE_RATE, codec_decode, generate_audio, generate_coarse, generate_fine,
    generate_text_semantic, preload_models, save_as_prompt, semantic_to_waveform,
)

torch.manual_seed(1)
preload_models()
sentences = ["Hello there.", "The weather was cold."]
pause = np.zeros(int(0.25 * SAMPLE_RATE))
pieces = []
for sentence in sentences:
    semantic = generate_text_semantic(
        sentence, history_prompt="male", temp=0.6, min_eos_p=0.05, silent=True, use_kv_caching=True
    )
    pieces += [semantic_to_waveform(semantic, history_prompt="male", silent=True), pause.copy()]
whole = np.concatenate(pieces)
assert whole.ndim == 1 and len(whole) > SAMPLE_RATE

semantic = generate_text_semantic("Go on.", max_gen_duration_s=2, silent=True)
coarse = generate_coarse(semantic, max_coarse_history=60, silent=True, use_kv_caching=True)
fine = generate_fine(coarse, temp=0.5)
audio = codec_decode(fine)
full, spoken = generate_audio("Hello.", "male", output_full=True, silent=True)
save_as_prompt("me.npz", full)
again = generate_audio("More.", history_prompt="me.npz", silent=True)
assert all(a.dtype == np.float32 for a in (audio, spoken, again))
print(len(whole), len(audio))
"""


def run_script(code, folder, **env):
    """A real process in which the released checkpoints are `tiny`."""
    first = "import minibark, minibark.suno as suno\nsuno._places = lambda small: ('tiny', {})\n"
    return subprocess.run(
        [sys.executable, "-c", first + code],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | env,
        capture_output=True,
        text=True,
    )


def test_a_long_form_script_runs_with_its_import_line_changed(tmp_path):
    first, second = (run_script(LONG_FORM, tmp_path) for _ in "ab")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Suno's own folder of downloads, with small and large models that differ in width."""
    root = tmp_path / "suno" / "bark_v0"
    root.parent.mkdir()
    made.save_suno(root, "small")
    for stage in made.SUNO_FILES:
        made.save_suno_stage(stage, root, "large")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ours, "_bark", None)
    monkeypatch.setattr(ours, "_small", {})
    return root


def widths():
    stages = ("semantic", "coarse", "fine")
    return [getattr(ours._bark.config, stage).n_embd for stage in stages]


@pytest.mark.filterwarnings("ignore:.*not the file that Suno published")
def test_switches_are_read_when_models_load(folder, monkeypatch):
    ours.preload_models()
    assert widths() == [48, 48, 48] and not ours._bark.pipeline.offload
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "True")
    monkeypatch.setenv("SUNO_OFFLOAD_CPU", "1")
    ours.preload_models()  # loaded already
    assert widths() == [48, 48, 48]
    ours.preload_models(force_reload=True)
    assert widths() == [32, 32, 32] and ours._bark.pipeline.offload
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "False")
    ours.preload_models(coarse_use_small=True, force_reload=True)
    assert widths() == [48, 32, 48]


@pytest.mark.filterwarnings("ignore:.*not the file that Suno published")
def test_models_load_and_go_one_by_one(folder):
    text = ours.load_model(model_type="text", use_small=True)
    assert sorted(text) == ["model", "tokenizer"]
    assert text["model"].config.n_embd == 32
    assert ours.load_model(model_type="coarse").config.n_embd == 48
    assert ours.load_model(model_type="coarse", use_small=True).config.n_embd == 32
    codec = ours.load_codec_model()
    assert codec is ours._bark.model("codec")
    ours.clean_models("codec")
    assert "codec" not in ours._bark.pipeline.built
    audio = ours.codec_decode(np.zeros((8, 20), int))
    assert audio.shape == (6400,)
    ours.clean_models()
    assert ours._bark.pipeline.built == []
    np.testing.assert_array_equal(ours.codec_decode(np.zeros((8, 20), int)), audio)
    with pytest.raises(ValueError, match="text, coarse or fine, got 'codec'"):
        ours.load_model(model_type="codec")


@pytest.mark.filterwarnings("ignore:.*not the file that Suno published")
def test_generation_gives_suno_s_tokens_for_the_same_seed(folder, monkeypatch):
    theirs = oracles.import_suno()
    tokenizer = ours.load_model(model_type="text", use_small=True)["tokenizer"]

    class Same:
        @staticmethod
        def encode(text, add_special_tokens):
            return tokenizer.encode(text)

    twins = {stage: made.suno_stage(stage) for stage in ("semantic", "coarse", "fine")}
    models = {"text": {"model": twins["semantic"], "tokenizer": Same}} | {
        stage: twins[stage] for stage in ("coarse", "fine")
    }
    monkeypatch.setattr(theirs, "models", models)
    monkeypatch.setenv("SUNO_USE_SMALL_MODELS", "1")
    ours.preload_models(force_reload=True)
    got, expected = [], []
    for module, found in ((ours, got), (theirs, expected)):
        torch.manual_seed(3)
        options = {"silent": True, "use_kv_caching": True}
        semantic = module.generate_text_semantic(
            "Hello there", temp=0.8, top_k=50, max_gen_duration_s=0.5, min_eos_p=0.9, **options
        )
        coarse = module.generate_coarse(semantic, temp=0.6, max_coarse_history=120, **options)
        found += [semantic, coarse, module.generate_fine(coarse, temp=0.4)]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
