"""Thousands of damaged files: each is refused by an error with a name, or read as a valid object.

The damage is drawn from a fixed seed, so a failure comes again; its file is kept under tmp_path.
"""

import copy
import io
import json
import pickle
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import checkpoints as made
import numpy as np
import pytest
import torch
from safetensors.torch import save

from minibark import CheckpointError, Voice, VoiceError, convert
from minibark.checkpoint.layouts import open_checkpoint
from minibark.checkpoint.schema import config_from_dict, config_from_hf
from minibark.checkpoint.tensors import read_pickle, read_safetensors
from minibark.checkpoint.voices import Voices
from minibark.config import STAGES, GenerationConfig

NAMED = (VoiceError, CheckpointError, FileNotFoundError, ValueError)
CONFIG = GenerationConfig()
JUNK = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**63, 10**12, 10**30, -(10**12)),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", "x", "F32", "I64", "\0", "é" * 99),
    *("../x", "/etc/passwd", "a\\b", "C:x", "x" * 5000, [], {}, [[[]]], {"a": {"b": None}}),
    *([0] * 1000, [1, -1], [10**12] * 3, [2**62, 4], ["a"]),
]
JUNK_JSON = [*map(json.dumps, JUNK), "[" * 500 + "]" * 500]


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


# ---- damage ----


def damage(content: bytes, random: Random) -> bytes:
    """Content with a few bytes changed, cut out, put in, doubled or moved."""
    result = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        if not result:
            break
        start = random.randrange(len(result))
        size = random.choice([1, 1, 2, 4, 8, 40])
        kind = random.randrange(8)
        if kind <= 2:
            result[start] ^= 1 << random.randrange(8)
        elif kind == 3:
            result[start] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 4:
            del result[start : start + size]
        elif kind == 5:
            result[start:start] = random.randbytes(size)
        elif kind == 6:
            result[start:start] = result[start : start + size]
        else:
            del result[start:]
    return bytes(result)


def damage_json(document: object, random: Random) -> object:
    """A document in which something is replaced, left out, renamed or put in."""
    document = copy.deepcopy(document)
    for _ in range(random.choice([1, 1, 2, 4])):
        places = list(containers(document))
        if not places:
            return junk(random)
        place = random.choice(places)
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = random.randrange(10)
        if kind <= 5:
            place[key] = junk(random)
        elif kind == 6:
            del place[key]
        elif kind == 7 and isinstance(place, dict):
            place[random.choice(["x", "a.b", "../y", "", *place])] = place.pop(key)
        elif kind == 8 and isinstance(place[key], (int, float)):
            place[key] = random.choice([place[key] + 1, -place[key], place[key] * 2, 0])
        else:
            place[key] = {"x": place[key]}
    return junk(random) if random.random() < 0.02 else document


def junk(random: Random) -> object:
    return json.loads(random.choice(JUNK_JSON))


def containers(document: object, depth: int = 0) -> Iterator[dict | list]:
    """The filled dictionaries and lists in a document."""
    if isinstance(document, (dict, list)) and document and depth < 9:
        yield document
        for inner in document.values() if isinstance(document, dict) else document[:20]:
            yield from containers(inner, depth + 1)


def as_json(document: object, random: Random) -> bytes:
    text = json.dumps(document).encode()
    return damage(text, random) if random.random() < 0.2 else text


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


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


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


def torch_file(content: object, is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


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
