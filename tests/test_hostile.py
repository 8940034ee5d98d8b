"""Thousands of damaged files: each is refused by an error with a name, or read as a valid object.

The damage is drawn from a fixed seed, so a failure comes again; its file is kept under tmp_path.
"""

import io
import json
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import checkpoints as made
import numpy as np
import pytest
import torch
from hostile_files import (
    CHECKPOINTS,
    OTHERS,
    archive,
    as_json,
    damage,
    damage_json,
    entries,
    floats,
    random_pickle,
    torch_file,
    zipped,
)
from safetensors.torch import save

from minibark import CheckpointError, Voice, VoiceError, convert
from minibark.checkpoint.layouts import open_checkpoint
from minibark.checkpoint.reading import read_any
from minibark.checkpoint.schema import config_from_dict, config_from_hf
from minibark.checkpoint.tensors import read_pickle, read_safetensors
from minibark.checkpoint.voices import Voices
from minibark.config import STAGES, GenerationConfig

NAMED = (VoiceError, CheckpointError, FileNotFoundError, ValueError)
CONFIG = GenerationConfig()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A checkpoint that tests must not change."""
    return made.save_hf(made.tiny_bark(), tmp_path_factory.mktemp("hf") / "bark")


@pytest.fixture(scope="module")
def ours(hf, tmp_path_factory):
    """The same in our layout."""
    convert(hf, tmp_path_factory.mktemp("ours") / "bark")
    return next(tmp_path_factory.getbasetemp().glob("ours*/bark"))


def throw(
    n_cases: int, make: Callable[[Random], bytes], read: Callable[[Path], object], path: Path
):
    """Write one damaged file after the other and read it; returns how it ended how often."""
    ends: Counter[str] = Counter()
    for case in range(n_cases):
        path.write_bytes(make(Random(case)))
        try:
            read(path)
        except NAMED as error:
            assert str(error), f"case {case}: {error!r} says nothing"
            assert len(str(error)) < 8000, f"case {case}: {str(error)[:500]}"
            ends[type(error).__name__] += 1
        except BaseException as error:
            raise AssertionError(f"case {case} of {path}: {error!r}") from error
        else:
            ends["valid"] += 1
    assert ends.total() - ends["valid"] > n_cases / 10, f"too little damage: {ends}"
    return ends


# ---- voices ----


def members() -> dict[str, bytes]:
    result = {}
    for part, array in made.random_voice(CONFIG, 30).to_arrays().items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        result[f"{part}.npy"] = buffer.getvalue()
    return result


def use_voice(path: Path) -> None:
    voice = Voice.load(path).check(CONFIG)
    assert voice.coarse.shape == (2, voice.fine.shape[1])


def test_voices(tmp_path):
    whole = {
        method: zipped(members(), method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    }

    def make(random):
        return damage(random.choice(list(whole.values())), random)

    ends = throw(700, make, use_voice, tmp_path / "voice.npz")
    assert ends["VoiceError"] > 300


def test_voices_with_damaged_arrays(tmp_path):
    """The archive is sound, so that the damage gets past its checksums."""

    def make(random):
        content = members()
        name = random.choice(list(content))
        whole, start = content[name], random.choice([0, 0, 10])
        # mostly the header: 128 bytes
        content[name] = whole[:start] + damage(whole[start:128], random) + whole[128:]
        return zipped(content)

    ends = throw(700, make, use_voice, tmp_path / "voice.npz")
    assert ends["VoiceError"] > 300


def test_voice_indexes(tmp_path):
    voices = {name: made.random_voice(CONFIG, 20) for name in ("a", "v2/b")}
    made.save_hf_voices(tmp_path, voices)
    index = tmp_path / "speaker_embeddings_path.json"
    document = json.loads(index.read_text())

    def fetch(name):
        path = (tmp_path / name).resolve()
        assert path.is_relative_to(tmp_path.resolve()), f"left its folder: {name}"
        return path

    def read(path):
        found = Voices.from_index(path, fetch)
        for name in found:
            found.load(name).check(CONFIG)

    ends = throw(500, lambda random: as_json(damage_json(document, random), random), read, index)
    assert ends["CheckpointError"] > 50
    assert ends["VoiceError"] > 50


# ---- configurations ----


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "ours"])
def test_configurations(file, hf, ours, tmp_path):
    config = json.loads((hf / "config.json").read_text())
    generation = json.loads((hf / "generation_config.json").read_text())
    for section in generation.values():  # transformers' own fields, which nothing reads
        if isinstance(section, dict):
            for name in [name for name, value in section.items() if value is None]:
                del section[name]
    if file == "ours":
        document = json.loads((ours / "config.json").read_text())["config"]
        reader = config_from_dict
    elif file == "config.json":
        document, reader = config, lambda damaged: config_from_hf(damaged, generation)
    else:
        document, reader = generation, lambda damaged: config_from_hf(config, damaged)
    assert reader(document) == made.TINY
    ends: Counter[str] = Counter()
    for case in range(1500):
        damaged = damage_json(document, Random(case))
        try:
            reader(damaged)
        except CheckpointError as error:
            assert 0 < len(str(error)) < 1000, f"case {case}"
            ends["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"case {case}: {error!r}") from error
    assert ends["refused"] > 300


@pytest.mark.parametrize("layout", ["hf", "ours"])
def test_configuration_files(layout, request, tmp_path):
    """Whatever passes as a configuration then meets tensors that it does not fit."""
    folder = Path(shutil.copytree(request.getfixturevalue(layout), tmp_path / "bark"))
    document = json.loads((folder / "config.json").read_text())
    throw(
        150,
        lambda random: as_json(damage_json(document, random), random),
        lambda path: open_checkpoint(path.parent, offline=True, cache_dir=tmp_path),
        folder / "config.json",
    )


# ---- weights ----


def with_header(document: object, data: bytes, random: Random) -> bytes:
    header = as_json(document, random)
    return len(header).to_bytes(8, "little") + header + data


def test_safetensors(tmp_path):
    state = {"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.float16), "c": torch.arange(6)}
    whole = save(state, {"format": "pt", "model_args": '{"n_layer": 2}'})
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def make(random):
        if random.random() < 0.4:
            return damage(whole, random)
        return with_header(damage_json(header, random), data, random)

    def read(path):
        tensors, metadata = read_safetensors(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data) + 100
        assert all(isinstance(value, str) for value in metadata.values())

    ends = throw(1000, make, read, tmp_path / "model.safetensors")
    assert ends["CheckpointError"] > 500


@pytest.mark.parametrize("precision", [None, "int8"])
def test_safetensors_of_a_checkpoint(precision, ours, tmp_path):
    folder = tmp_path / "bark"
    convert(ours, folder, precision=precision)
    whole = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def read(path):
        checkpoint = open_checkpoint(path.parent, offline=True)
        for stage in STAGES:
            checkpoint.build(stage, torch.float32)

    throw(
        100,
        lambda random: with_header(damage_json(header, random), data, random),
        read,
        folder / "model.safetensors",
    )


def test_indexes_of_parts(tmp_path):
    folder = made.save_hf(made.tiny_bark(), tmp_path / "bark", max_shard_size="200KB")
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] = dict(sorted(document["weight_map"].items())[::9])
    (tmp_path / "x").write_text("outside")

    def read(path):
        open_checkpoint(path.parent, offline=True, cache_dir=tmp_path / "cache")

    throw(250, lambda random: as_json(damage_json(document, random), random), read, index)
    assert not (tmp_path / "cache").exists()


def test_pickles(tmp_path):
    content = {
        "model": {"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.float16)},
        "model_args": {"n_layer": 2, "bias": False, "vocab_size": 96},
        "best_val_loss": np.float32(2.5),
    }
    old, new = torch_file(content, False), torch_file(content, True)
    with zipfile.ZipFile(io.BytesIO(new)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (script,) = (name for name in parts if name.endswith("data.pkl"))
    bare = pickle.dumps({"a": [1, 2.5, "x", {"b": None}]}, protocol=2)

    def make(random):
        kind = random.randrange(4)
        if kind == 0:
            return damage(new, random)
        if kind == 1:
            return damage(old, random)
        if kind == 2:
            return damage(bare, random)
        return zipped(parts | {script: damage(parts[script], random)})

    def read(path):
        state, _ = read_pickle(path)
        assert sum(tensor.nbytes for tensor in state.values()) < 10_000

    ends = throw(1200, make, read, tmp_path / "text.pth")
    assert ends["CheckpointError"] > 600


def test_pickle_programs(tmp_path):
    def read(path):
        state, _ = read_pickle(path)
        assert sum(tensor.nbytes for tensor in state.values()) <= 2 * path.stat().st_size

    ends = throw(1500, random_pickle, read, tmp_path / "text.pth")
    assert ends["valid"] > 10


# ---- bombs ----

RUN = """
import json, resource, sys, time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from minibark.commands.main import main
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for line in sys.stdin:
    start, told = time.monotonic(), StringIO()
    with redirect_stderr(told):
        status = main(json.loads(line))
    seconds = time.monotonic() - start
    kb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(json.dumps([status, told.getvalue(), seconds, kb]), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_bombs(ours, tmp_path):
    """Small files that took gigabytes, hung or crashed: each is one line and status 1."""
    commands, texts = [], []
    for i, (make, text) in enumerate(CHECKPOINTS.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "text.pt").write_bytes(make())
        commands.append(["info", str(folder), "--offline", "--cache-dir", str(folder / "cache")])
        texts.append(text)
    for i, (filename, make, text) in enumerate(OTHERS.values()):
        folder = Path(shutil.copytree(ours, tmp_path / f"other{i}"))
        (folder / filename).write_bytes(make())
        is_voice = filename == "v.npz"
        commands.append(["voices", str(folder / filename)] if is_voice else ["info", str(folder)])
        texts.append(text)
    result = subprocess.run(
        [sys.executable, "-P", "-c", RUN],
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    ends = list(map(json.loads, result.stdout.splitlines()))
    for text, command, (status, told, seconds, kilobytes) in zip(
        texts, commands, ends, strict=True
    ):
        assert status == 1, command
        assert told.count("\n") == 1 and len(told) < 800 and told[:-1].isprintable(), told
        assert text in told and command[1] in told, told
        assert seconds < 5
        assert kilobytes < 1e6
    assert not list(tmp_path.rglob("cache"))


def test_one_tensor_of_many_names_is_kept_once(tmp_path):
    """It was 3 GB in memory and in the cache, of a file of 4 MB."""
    tensors = {f"t{i}": floats(10**6) for i in range(800)}
    path = tmp_path / "a.bin"
    path.write_bytes(archive(entries(**tensors), {"0": np.arange(10**6, dtype="f4").tobytes()}))
    for _ in range(2):  # read, and read from the copy
        state, _ = read_any(path, tmp_path / "cache")
        assert set(state) == set(tensors)
        assert {tensor.data_ptr() for tensor in state.values()} == {state["t0"].data_ptr()}
        assert torch.equal(state["t799"], torch.arange(10.0**6))
    (copy,) = (tmp_path / "cache").rglob("*.safetensors")
    assert copy.stat().st_size <= path.stat().st_size
