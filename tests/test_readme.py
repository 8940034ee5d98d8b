"""What the README says is so: its snippets run, its numbers hold."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import minibark
from minibark.checkpoint.layouts import Checkpoint, open_checkpoint
from minibark.checkpoint.presets import preset
from minibark.checkpoint.saving import save_checkpoint
from minibark.checkpoint.shapes import new_module
from minibark.checkpoint.voices import Voices
from minibark.config import STAGES, BarkConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which `suno/bark-small` is a tiny random checkpoint of at most 60 tokens."""
    root = tmp_path_factory.mktemp("readme")
    config = preset("random")
    short = dataclasses.replace(config.generation, max_new_tokens=60)
    config = BarkConfig(**{stage: getattr(config, stage) for stage in STAGES}, generation=short)
    torch.manual_seed(0)
    voice = minibark.Bark(config, device="cpu").generate_voice("A voice.", seed=1)
    (root / "voices" / "v2").mkdir(parents=True)
    voice.save(root / "voices" / "v2" / "en_speaker_6.npz")
    voices = Voices.from_directory(root / "voices")
    states = {stage: new_module(stage, config).state_dict() for stage in STAGES}
    (root / "suno").mkdir()
    tokenizer = minibark.Tokenizer.characters()
    save_checkpoint(
        Checkpoint("", config, states, tokenizer, voices), root / "suno/bark-small", list(voices)
    )
    return root


def test_python_snippets_run_in_order(place):
    code = "\n".join(blocks("python"))
    assert code.count("import minibark") == 1
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(place / "hello.wav").samplerate == 24_000
    assert minibark.Voice.load(place / "narrator.npz")


def test_minibark_commands_run(place):
    commands = [
        line for block in blocks("") for line in block.splitlines() if line.startswith("minibark ")
    ]
    assert commands
    for command in commands:
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_two_make_commands_exist():
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands == ["hello", "test"]
    for target in commands:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_map_of_files_is_current():
    rows = re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", README, re.MULTILINE)
    files = {path.name: path for path in (ROOT / "minibark").glob("*.py")}
    files = {name: path for name, path in files.items() if not name.startswith("_")}
    assert sorted(name for name, _ in rows) == sorted(files)
    for name, count in rows:
        lines = len(files[name].read_text(encoding="utf-8").splitlines())
        assert abs(int(count) - lines) <= 0.1 * lines + 2, f"{name} has {lines} lines"


def test_the_table_of_models_is_true():
    rows = re.findall(
        r"^\| `([\w/-]+)` \| (\d+) layers, (\d+) heads, ([\d,]+) wide \| "
        r"([\d.,]+) M",
        README,
        re.MULTILINE,
    )
    presets = {"suno/bark-small": "small", "suno/bark": "large", "random": "random"}
    assert [row[0] for row in rows] == list(presets)
    for name, layers, heads, width, millions in rows:
        config = preset(presets[name])
        with torch.device("meta"):
            modules = [new_module(stage, config) for stage in STAGES]
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        gpt = config.semantic
        shape = (gpt.n_layer, gpt.n_head, gpt.n_embd)
        assert shape == (int(layers), int(heads), int(width.replace(",", "")))
        assert abs(float(millions.replace(",", "")) - parameters / 1e6) < 0.6


def test_the_row_of_tiny_is_true():
    row = re.search(
        r"^\| `tiny` \| (\d), (\d) and (\d) layers, (\d+), (\d+) and (\d+) wide \| "
        r"([\d.]+) M \| ([\d.]+) MB",
        README,
        re.MULTILINE,
    )
    checkpoint = open_checkpoint("tiny")
    gpts = [getattr(checkpoint.config, stage) for stage in ("semantic", "coarse", "fine")]
    shape = [gpt.n_layer for gpt in gpts] + [gpt.n_embd for gpt in gpts]
    assert [int(value) for value in row.groups()[:6]] == shape
    parameters = sum(checkpoint.n_parameters(stage) for stage in STAGES)
    assert abs(float(row[7]) - parameters / 1e6) < 0.06
    files = [path for path in (ROOT / "weights" / "tiny").rglob("*") if path.suffix != ".md"]
    size = sum(path.stat().st_size for path in files if path.suffix != ".png" and path.is_file())
    assert abs(float(row[8]) - size / 1e6) < 0.06
