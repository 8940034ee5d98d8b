"""Writing whole or not at all: after errors, Ctrl-C and on a full disk; and reading JSON safely."""

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import checkpoints as made
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibark import CheckpointError, Tokenizer, Voice, VoiceError, convert, save_audio
from minibark.checkpoint.tensors import read_safetensors
from minibark.checkpoint.voices import Voices
from minibark.commands.main import main
from minibark.files import MAX_TEXT_BYTES, inside, read_json, read_npz, replacing, shown

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
AUDIO = np.zeros(24_000, np.float32)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A checkpoint that tests must not change."""
    return made.save_hf(made.tiny_bark(), tmp_path_factory.mktemp("hf") / "bark")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# ---- replacing ----


def test_a_new_file_and_a_new_directory(tmp_path):
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert part.parent.parent == tmp_path
        assert not (tmp_path / "a.txt").exists()
    with replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "b.txt").write_text("new")
    assert names(tmp_path) == ["a.txt", "b.txt", "folder"]


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_an_error_leaves_the_old_file_and_nothing_else(error, kind, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as part:
        if kind == "file":
            part.write_text("half")
        elif kind == "directory":
            part.mkdir()
            (part / "b.txt").write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_directory_replaces_nothing_but_an_empty_one(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with replacing(path) as part:
        part.mkdir()
        (part / "new").touch()
    assert names(path) == ["new"]
    with pytest.raises(OSError, match="not empty"), replacing(path) as part:
        part.mkdir()
        (part / "newer").touch()
    expected = rf"^{path} is a folder; name a file in it$"  # and not its temporary place
    with pytest.raises(IsADirectoryError, match=expected), replacing(path) as part:
        part.write_text("a file")
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="file"), replacing(tmp_path / "file") as part:
        part.mkdir()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "folder", "new"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").write_text("old")
    (tmp_path / "link.wav").symlink_to(tmp_path / "real" / "a.wav")
    (tmp_path / "new.wav").symlink_to(tmp_path / "real" / "b.wav")
    (tmp_path / "folder").symlink_to(tmp_path / "real", target_is_directory=True)
    save_audio(tmp_path / "link.wav", AUDIO)
    save_audio(tmp_path / "new.wav", AUDIO)
    save_audio(tmp_path / "folder" / "c.wav", AUDIO)
    assert (tmp_path / "link.wav").is_symlink()
    assert names(tmp_path / "real") == ["a.wav", "b.wav", "c.wav"]
    assert all(path.stat().st_size > 48_000 for path in (tmp_path / "real").iterdir())


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "b.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "a.wav")
    with contextlib.suppress(OSError):
        save_audio(tmp_path / "a.wav", AUDIO)
    assert names(tmp_path) == ["a.wav", "b.wav"]


def test_names_as_long_as_the_disk_takes(tmp_path):
    for name in ("x" * 251 + ".wav", "ü" * 125 + ".wav", "\U0001f600" * 62 + ".wav"):
        save_audio(tmp_path / name, AUDIO)
        assert (tmp_path / name).stat().st_size > 48_000


@posix
def test_the_new_file_has_the_usual_rights(tmp_path):
    (tmp_path / "plain").touch()
    save_audio(tmp_path / "a.wav", AUDIO)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


# ---- places that cannot be written ----

SUFFIXES = {"audio": ".wav", "voice": ".npz", "vocabulary": ".txt"}
WRITERS = {
    "audio": lambda path: save_audio(path, AUDIO),
    "voice": lambda path: made.random_voice(made.TINY.generation).save(path),
    "vocabulary": lambda path: Tokenizer.characters().save(path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_folder_that_is_none(writer, place, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError, match=rf"folder .*{place} does not exist"):
        WRITERS[writer](tmp_path / place / f"out{SUFFIXES[writer]}")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_cannot_be_written(writer):
    with pytest.raises(OSError, match="/proc/"):
        WRITERS[writer](Path(f"/proc/out{SUFFIXES[writer]}"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write")
def test_convert_to_a_folder_that_cannot_be_written(hf):
    with pytest.raises(OSError, match="/proc/"):
        convert(hf, "/proc/out")


def test_a_directory_in_the_way(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(OSError, match=r"a\.wav"):
        save_audio(tmp_path / "a.wav", AUDIO)
    assert names(tmp_path) == ["a.wav"]


# ---- a full disk ----

# A limit on a file's size stands in for a full disk: the write that crosses it fails.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from minibark import Tokenizer, Voice, convert, save_audio
folder, source = map(Path, sys.argv[1:])
voice = Voice.load(folder / "old.npz")
actions = {
    "old.wav": lambda path: save_audio(path, np.zeros(99_999, np.float32)),
    "old.flac": lambda path: save_audio(path, np.random.default_rng(0).random(99_999) - 0.5),
    "old.ogg": lambda path: save_audio(path, np.random.default_rng(0).random(99_999) - 0.5),
    "old.npz": voice.save,
    "old.txt": Tokenizer([f"{i:0999}" for i in range(99)] + ["[UNK]"]).save,
    "new": lambda path: convert(source, path, offline=True),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for name, action in actions.items():
    try:
        action(folder / name)
        print(name, "no error")
    except OSError as error:
        print(name, "OSError", str(error).replace(chr(10), " "))
"""


@posix
def test_a_full_disk_leaves_the_old_file_and_nothing_else(hf, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    for name in ("old.wav", "old.flac", "old.ogg", "old.txt"):
        (folder / name).write_text("precious")
    made.random_voice(made.GenerationConfig(), 200).save(folder / "old.npz")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = made.run_python(FULL_DISK, folder, hf)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout
    for line in lines:
        assert " OSError " in line, line
        assert "File too large" in line or os.strerror(errno.EFBIG) in line, line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def device(folder: Path, name: str) -> Path:
    """A device of one's own for root, who could lose the real one to a mistake."""
    real = Path("/dev") / name
    if not real.is_char_device():
        pytest.skip(f"needs {real}")
    if os.geteuid() != 0:
        return real
    try:
        os.mknod(folder / name, stat.S_IFCHR | 0o666, os.stat(real).st_rdev)
        (folder / name).open("wb").close()
    except OSError as error:
        pytest.skip(f"needs a device that may be lost: {error}")
    return folder / name


@posix
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".npz"])
def test_a_full_device(suffix, tmp_path, capfd):
    full = device(tmp_path, "full")
    path = tmp_path / f"a{suffix}"
    path.symlink_to(full)
    with pytest.raises(OSError, match="No space left"):
        WRITERS["voice" if suffix == ".npz" else "audio"](path)
    assert capfd.readouterr().err == ""
    assert full.is_char_device()


# ---- devices and pipes ----


@posix
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".npz"])
def test_dev_null_takes_everything_and_stays(suffix, tmp_path):
    null = device(tmp_path, "null")
    before = null.stat()
    path = tmp_path / f"a{suffix}"
    path.symlink_to(null)
    WRITERS["voice" if suffix == ".npz" else "audio"](path)
    assert null.is_char_device()
    assert (null.stat().st_ino, null.stat().st_rdev) == (before.st_ino, before.st_rdev)
    assert path.is_symlink()
    assert set(names(tmp_path)) <= {"null", path.name}


@posix
def test_a_pipe_gets_the_file(tmp_path):
    path = tmp_path / "a.wav"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    save_audio(path, AUDIO)
    reader.join(10)
    save_audio(tmp_path / "b.wav", AUDIO)
    assert received == [(tmp_path / "b.wav").read_bytes()]
    assert stat.S_ISFIFO(path.stat().st_mode)


# ---- Ctrl-C ----

SLOW_CONVERT = """
import sys, time
from minibark import convert
def step(stage, *_):
    if stage == "writing":
        print("writing", flush=True)
        time.sleep(30)
convert(*sys.argv[1:], offline=True, on_step=step)
"""


@posix
def test_ctrl_c_during_convert_leaves_nothing_behind(hf, tmp_path):
    source = shutil.copytree(hf, tmp_path / "source")
    made.save_hf_voices(source, {"a": made.random_voice(made.TINY.generation)})
    arguments = [sys.executable, "-P", "-c", SLOW_CONVERT, source, tmp_path / "out"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"writing\n"
        (part,) = tmp_path.glob(".out.*.part/out")
        assert (part / "model.safetensors").stat().st_size > 100_000
        child.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in child.communicate()[1]
    assert child.returncode != 0
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


# ---- names and JSON ----


def test_names_that_stay_inside():
    for name in ("a", "a/b.npy", "v2/en_speaker_6.npz", "./a", "a..b/..c", "ü/日本.npy", "-"):
        assert inside(name, "here") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "../a", "a/..", "a/../b", "/a", "//a", "\\a", "a\\b", "c:a", None, 3),
        *("a\0", "a\n", "a\x1b[2J", "a\ud800", "a\u202e", "a" * 201),
    ],
)
def test_names_that_do_not(name):
    with pytest.raises(CheckpointError, match="the index names a file outside its folder") as error:
        inside(name, "the index")
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@given(st.text(st.characters(), max_size=300), st.integers(10, 250))
def test_what_a_message_shows(name, length):
    result = shown(name, length)
    assert result.isprintable() and len(result) <= length
    result.encode()
    if name.isprintable():
        assert result == name or (len(name) > length and result == name[: length - 3] + "...")
    else:
        assert "\\" in result or result.endswith("...")


def test_what_a_message_shows_of_some_names():
    assert shown("v2/日本 é") == "v2/日本 é"
    assert shown("\x1b[2J\n\ud800\u202e") == r"\x1b[2J\n\ud800\u202e"
    assert shown("x" * 201) == "x" * 197 + "..."
    assert shown((1, 2)) == "(1, 2)"


def test_json_is_of_bounded_size(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b" " * (MAX_TEXT_BYTES - 2) + b"]")
    assert read_json(path) == []
    path.write_bytes(b"[" + b" " * (MAX_TEXT_BYTES - 1) + b"]")
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        read_json(path)


def test_headers_of_safetensors_are_of_bounded_size(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    for size, is_right in ((1 << 22, True), ((1 << 22) + 1, False)):
        path = tmp_path / "model.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + header.ljust(size))
        if is_right:
            assert read_safetensors(path)[0].keys() == {"a"}
        else:
            with pytest.raises(CheckpointError, match=r"its header is larger than 4 MiB"):
                read_safetensors(path)


def test_vocabularies_are_of_bounded_size(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[UNK]\n" + b"x" * (MAX_TEXT_BYTES - 6))
    assert len(Tokenizer.from_file(path)) == 2
    path.write_bytes(b"[UNK]\n" + b"x" * (MAX_TEXT_BYTES - 5))
    with pytest.raises(ValueError, match=r"vocab\.txt is not .* larger than 16 MiB"):
        Tokenizer.from_file(path)
    path.write_bytes(b"\x1b[2J" * 100_000 + b"\n\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is not") as error:
        Tokenizer.from_file(path)
    assert len(str(error.value)) < 1500 and str(error.value).isprintable()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_stored_or_deflated(method, tmp_path):
    (np.savez if method == zipfile.ZIP_STORED else np.savez_compressed)(tmp_path / "a", a=[1, 2])
    with (tmp_path / "a.npz").open("rb") as file:
        assert read_npz(file, ["a"])["a"].tolist() == [1, 2]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_packed_otherwise(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", b"")
    with (tmp_path / "a.npz").open("rb") as file, pytest.raises(ValueError, match="compressed"):
        read_npz(file, ["a"])


@pytest.mark.parametrize("is_early", [True, False])
def test_near_names_are_looked_for_among_2000(is_early):
    near, others = {"near": {}}, {f"{i:04}": {} for i in range(2000)}
    voices = Voices(near | others if is_early else others | near, Path)
    with pytest.raises(VoiceError, match="has 2001 voices") as error:
        voices.load("neat")
    assert ("near names: near" in str(error.value)) == is_early


def test_voice_names_do_not_reach_the_terminal_raw(tmp_path, capsys):
    voice = made.random_voice(made.TINY.generation)
    made.save_hf(made.tiny_bark(), tmp_path / "bark")
    made.save_hf_voices(tmp_path / "bark", {"good": voice})
    index = tmp_path / "bark" / "speaker_embeddings_path.json"
    document = json.loads(index.read_text())
    document["\x1b[2J\ud800\n" + "x" * 300] = document["good"]
    index.write_text(json.dumps(document))
    assert main(["voices", "--model", str(tmp_path / "bark"), "--offline"]) == 0
    lines = [line[:200].strip() for line in capsys.readouterr().out.splitlines()]
    lines[1] = lines[1].split()[0]
    assert lines == [r"\x1b[2J\ud800\n" + "x" * 182 + "...", "good"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 10**6, b"1" * 10**5, b"nul"])
def test_what_is_not_json_is_named(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json is not readable JSON"):
        read_json(path)


def test_a_json_file_of_any_size_costs_nothing(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=r"a\.json is larger than 16 MiB"):
        read_json(tmp_path / "a.json")


def test_a_saved_voice_is_never_half_there(tmp_path):
    """Readers that come while a voice is written see the old one or the new one."""
    voices = [made.random_voice(made.GenerationConfig(), 400, seed) for seed in (0, 1)]
    path = tmp_path / "a.npz"
    voices[0].save(path)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for voice in voices:
                voice.save(path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {tuple(Voice.load(path).semantic.tolist()) for _ in range(50)}
    finally:
        stop.set()
        writer.join()
    assert seen <= {tuple(voice.semantic.tolist()) for voice in voices}
