"""What the README and docs say is so: snippets run, numbers hold, links lead somewhere."""

import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import minibark
from minibark.checkpoint.layouts import open_checkpoint
from minibark.checkpoint.opened import Checkpoint
from minibark.checkpoint.presets import preset
from minibark.checkpoint.saving import save_checkpoint
from minibark.checkpoint.shapes import empty_module, new_module
from minibark.checkpoint.voices import Voices
from minibark.config import STAGES, BarkConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_READING_ORDER = [
    *("config", "tokenizer", "model", "sampling", "decoding"),
    *("semantic", "coarse", "fine", "codec", "voice"),
]


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


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


def test_the_lines_of_the_study_page_run(tmp_path):
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    (code,) = blocks("python", page)
    code = code.replace("seed=0)", "seed=0, max_duration_s=0.3)")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello ")
    assert (tmp_path / "hello.html").exists() and (tmp_path / "hello.json").exists()


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


def n_lines(path):
    """Of a file, or of all modules of a folder."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def rows_of_the_map():
    """Names and lines of each row: of one file, of several, or of a folder."""
    rows = re.findall(r"^\| ((?:`\w+(?:\.py|/)` )+)\| (\d+) \|", README, re.MULTILINE)
    return [(re.findall(r"`(.+?)`", names), int(count)) for names, count in rows]


def test_the_map_names_every_file_and_wing_once():
    package = ROOT / "minibark"
    files = [path.name for path in package.glob("*.py") if not path.name.startswith("_")]
    wings = [f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()]
    named = [name for names, _ in rows_of_the_map() for name in names]
    assert sorted(named) == sorted(files + wings)


def test_the_map_counts_lines():
    for names, count in rows_of_the_map():
        lines = sum(n_lines(ROOT / "minibark" / name) for name in names)
        assert abs(count - lines) <= 0.1 * lines + 2, f"{names} has {lines} lines"


def test_the_model_comes_first_in_reading_order_and_has_the_claimed_size():
    rows = rows_of_the_map()[: len(IN_READING_ORDER)]
    assert [names for names, _ in rows] == [[f"{name}.py"] for name in IN_READING_ORDER]
    words, claimed = re.search(r"model is (\w+) files and ([\d,]+) lines", README).groups()
    assert words == "ten"
    lines = sum(n_lines(ROOT / "minibark" / f"{name}.py") for name in IN_READING_ORDER)
    assert abs(int(claimed.replace(",", "")) - lines) <= 20
    assert lines <= 1850


def test_no_file_of_the_package_is_longer_than_the_design_page_says():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    most = int(re.search(r"^- No Python file above (\d+) lines", page, re.MULTILINE)[1])
    kernels = ROOT / "minibark" / "kernels"
    for path in (ROOT / "minibark").rglob("*.py"):
        assert kernels in path.parents or n_lines(path) <= most, path


def test_pages_are_short_and_so_are_their_lines():
    assert len(README.splitlines()) <= 130
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{page.name}:{number} has {len(line)} characters"


def links(text):
    """Where links and pictures of a page lead, code left out."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    here = [link for link in links(page.read_text(encoding="utf-8")) if "://" not in link]
    assert here
    for link in here:
        path, _, _ = link.partition("#")
        assert (page.parent / path).exists(), f"{page.name} links to {link}"


def test_modules_that_the_docs_name_exist():
    folders = ("", "minibark", "tests")
    for page in PAGES:
        for name in re.findall(r"(?<![\w./])[\w/]+\.py\b", page.read_text(encoding="utf-8")):
            assert any((ROOT / folder / name).exists() for folder in folders), (page.name, name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder into which the script has made the picture and the clip anew."""
    folder = tmp_path_factory.mktemp("pictures")
    script = [sys.executable, ROOT / "docs" / "make_pictures.py", "--out", folder]
    subprocess.run(script, check=True, capture_output=True)
    return folder


def test_the_picture_is_what_the_script_makes(pictures):
    assert "docs/flow.svg" in links(README)
    assert (pictures / "flow.svg").read_bytes() == (ROOT / "docs" / "flow.svg").read_bytes()
    xml.etree.ElementTree.parse(pictures / "flow.svg")


def test_the_clip_is_what_the_script_makes_and_can_be_played(pictures):
    clip = ROOT / "docs" / "tiny.mp3"
    assert "docs/tiny.mp3" in links(README)
    assert clip.stat().st_size < 60_000
    audio, rate = soundfile.read(clip)
    again, _ = soundfile.read(pictures / "tiny.mp3")
    assert rate == minibark.SAMPLE_RATE
    assert audio.shape == again.shape and 1 < len(audio) / rate < 15
    np.testing.assert_allclose(audio, again, atol=0.01)
    assert abs(audio).max() > 0.1


def test_the_command_of_the_readme_says_what_the_clip_says():
    from_script = (ROOT / "docs" / "make_pictures.py").read_text(encoding="utf-8")
    text = re.search(r'^TEXT = "(.+)"$', from_script, re.MULTILINE)[1]
    voice, seed = re.search(r'^VOICE, SEED = "(\w+)", (\d+)$', from_script, re.MULTILINE).groups()
    assert f'minibark say "{text}" --model tiny --voice {voice} --seed {seed}\n' in README


def test_the_table_of_speed_agrees_with_itself_and_with_the_first_lines():
    audio_s = int(re.search(r"small model, (\d+) s of audio", README)[1])
    rows = re.findall(r"^\| (\w+).*, (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", README, re.M)
    assert len(rows) == 4
    first_s = float(rows[0][2])
    times = {}
    for side, precision, seconds, rtf, faster in rows:
        assert abs(float(rtf) - float(seconds) / audio_s) <= 0.051
        # Seconds are rounded, so a quotient of them is known to within a few hundredths.
        assert abs(float(faster) / (first_s / float(seconds)) - 1) < 0.03
        times[side, precision] = faster
    said = re.search(r"([\d.]+) times transformers' Bark at equal tokens, ([\d.]+) times", README)
    assert said.groups() == (times["minibark", "float32"], times["minibark", "int8"])


def test_versions_and_packages_are_those_of_the_build():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python, torch_version = re.search(r"Python ([\d.]+) and torch ([\d.]+), or", README).groups()
    assert project["requires-python"] == f">={python}"
    assert f"torch>={torch_version}" in project["dependencies"]
    assert len(project["dependencies"]) == 5 and "Five packages to run" in README


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
        modules = [empty_module(stage, getattr(config, stage)) for stage in STAGES]
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
