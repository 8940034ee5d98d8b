"""Rough ends: kills, signals, closed streams, full disks, rights, too little memory."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkpoints as made
import pytest
import torch
from huggingface_hub import constants

import minibark
from minibark import Bark, CheckpointError, convert
from minibark.checkpoint.kept import CHANGED, GONE, HERE, UNKNOWN, clear_copies, copies
from minibark.checkpoint.kept import cache_folder as kept_folder
from minibark.checkpoint.reading import read_any
from minibark.checkpoint.tensors import read_safetensors, save_safetensors
from minibark.commands import ends
from minibark.commands.main import main
from minibark.files import naming, replacing
from minibark.leftovers import sweep, temporary_name

ROOT = Path(__file__).parents[1]
TORTURE = ROOT / "tests" / "torture"
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
COMMAND = [sys.executable, "-P", "-m", "minibark"]
SHORT = ["--model", "tiny", "--max-duration", "0.1", "--seed", "0"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what a kill leaves ----

WRITER = """
import sys, time
from minibark.files import replacing
with replacing(sys.argv[1]) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path: Path) -> subprocess.Popen:
    """A process in the midst of writing."""
    command = [sys.executable, "-P", "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    return process


@linux
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path):
    path = tmp_path / "a.txt"
    with writer(path) as dead, writer(path) as alive, writer(tmp_path / "b.txt") as other:
        try:
            assert len(names(tmp_path)) == 3
            dead.kill()
            other.kill()
            time.sleep(0.1)  # not waited for: a zombie is dead, too
            with replacing(path) as part:
                part.write_text("whole")
            assert path.read_text() == "whole"
            left = [name for name in names(tmp_path) if name != "a.txt"]
            assert len(left) == 2 and len([n for n in left if n.startswith(".b.txt.")]) == 1
            assert any(f"-{alive.pid:x}-" in name for name in left)
            sweep(tmp_path)
            assert len(names(tmp_path)) == 2
        finally:
            alive.kill()
    sweep(tmp_path, "b.txt")
    assert len(names(tmp_path)) == 2
    sweep(tmp_path, "a.txt")
    assert names(tmp_path) == ["a.txt"]


@linux
def test_a_number_of_a_process_that_is_used_again_keeps_nothing(tmp_path):
    name = temporary_name("a.txt")
    machine, pid, start, rest = name.removeprefix(".a.txt.").split("-")
    earlier = f".a.txt.{machine}-{pid}-{int(start, 16) - 1:x}-{rest}"
    for each in (name, earlier):
        (tmp_path / each).mkdir()
        (tmp_path / each / "a.txt").touch()
    sweep(tmp_path, "a.txt")
    assert names(tmp_path) == [name]


def test_another_machine_s_and_unknown_ones_stay_for_a_day(tmp_path):
    own = re.sub(r"\.[0-9a-f]{8}-", ".12345678-", temporary_name("a.txt"))
    foreign = [own, own.replace(".a.", ".b."), ".a.txt.0a1b2c3d.part"]
    others = [".a.txt.part", ".a.txt.mine.part", "a.txt.0a1b2c3d.part", ".a.txt.0a1b2c3d.part.x"]
    for name in foreign + others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").touch()
    sweep(tmp_path)
    assert len(names(tmp_path)) == 7
    old = time.time() - 90_000
    for folder in tmp_path.iterdir():
        os.utime(folder, (old, old))
    sweep(tmp_path)  # the files inside are new
    assert len(names(tmp_path)) == 7
    for folder in tmp_path.iterdir():
        os.utime(folder / "a.txt", (old, old))
    sweep(tmp_path, "a.txt")
    assert names(tmp_path) == sorted([foreign[1], *others])
    sweep(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    calls = "trace=openat,fsync,rename,renameat,renameat2,close"
    code = (
        "from minibark.files import replacing\n"
        "with replacing('a.txt') as part:\n    part.write_text('x')\n"
        "with replacing('folder') as part:\n    part.mkdir()\n    (part / 'b.txt').write_text('x')"
    )
    command = ["strace", "-y", "-o", str(trace), "-e", calls, sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    synced = re.findall(r"^(fsync|rename).*?([^/<>\"]+)(?:>\)|\"\)) += 0", trace.read_text(), re.M)
    here = tmp_path.name
    assert synced == [
        *[("fsync", "a.txt"), ("rename", "a.txt"), ("fsync", here)],
        *[("fsync", "b.txt"), ("fsync", "folder"), ("rename", "folder"), ("fsync", here)],
    ]


# ---- signals ----


def wait_for(found: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_torch_is_imported_is_one_line(name, tmp_path):
    command = [*COMMAND, "say", "Well.", *SHORT]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        wait_for(lambda: b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes())
        process.send_signal(getattr(signal, name))
        said = process.communicate()[1]
    assert (process.returncode, said) == (1, b"minibark: interrupted; nothing was written\n")
    assert not names(tmp_path)


@linux
def test_a_terminal_that_closes_leaves_nothing(tmp_path):
    command = [*COMMAND, "say", "Well, well, well, and so on.", "--model", "tiny"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        seen = b""
        while b"coarse" not in seen and (more := process.stderr.read1(4096)):
            seen += more
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # as a terminal's shell does: the same thing again
        said = process.communicate()[1].decode()
    assert process.returncode == 1
    assert said.splitlines()[-1] == "minibark: interrupted; nothing was written"
    assert "Traceback" not in said
    assert not names(tmp_path)


@linux
def test_nohup_is_heeded_and_handlers_are_given_back(capsys):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = {}

    def handler(number, frame):
        seen["ran"] = number

    try:
        mine = [signal.getsignal(number) for number in numbers]
        assert main(["cache", "-q"]) == 0
        assert [signal.getsignal(number) for number in numbers] == mine
        with ends.ended_by(handler):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: seen, 5)
        assert seen == {"ran": signal.SIGTERM}
        assert [signal.getsignal(number) for number in numbers] == mine
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_slow_is_imported_before_signals_are_caught():
    code = (
        "import sys, minibark.__main__\n"
        "print({'torch', 'numpy', 'minibark.config', 'minibark.commands.main'} & set(sys.modules))"
    )
    done = made.run_python(code)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_names_that_are_fetched_are_the_public_ones():
    tree = ast.parse(Path(minibark.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == minibark._HOMES
    assert set(typed) | {"SAMPLE_RATE", "__version__"} == set(minibark.__all__)
    for name in minibark.__all__:
        assert name in dir(minibark) and getattr(minibark, name) is not None
    with pytest.raises(AttributeError, match="'minibark' has no attribute 'Barque'"):
        _ = minibark.Barque


# ---- streams ----


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A line of sh in which MINIBARK is the command."""
    line = line.replace("MINIBARK", " ".join(COMMAND))
    return subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True)


@linux
def test_audio_is_written_whatever_is_closed(tmp_path):
    words = " ".join(["MINIBARK say Well.", *SHORT])
    done = shell(f"{words} -o a.wav >&- 2>&- <&-; echo $?; {words} -o b.wav 2>/dev/full", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert (tmp_path / "a.wav").stat().st_size > 44


@pytest.mark.thinned
@linux
@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("say Well. -o - -q MODEL >/dev/full", 1, "standard output: No space left on device"),
        ("info tiny >/dev/full", 1, "standard output: No space left on device"),
        ("say Well. -o - MODEL >&-", 2, "standard output, which is closed; give -o FILE"),
        ("say - MODEL <&-", 2, "standard input, which is closed; give TEXT or -i FILE"),
    ],
)
def test_a_stream_that_is_needed_is_named(line, status, words, tmp_path):
    done = shell("MINIBARK " + line.replace("MODEL", " ".join(SHORT)), tmp_path)
    assert done.returncode == status
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert status == 2 or len(done.stderr.splitlines()) == 1
    assert not names(tmp_path)


# ---- rights ----

AS_NOBODY = """
import json, os, sys
from minibark.commands.main import main
commands = json.loads(sys.argv[1])
if os.geteuid() == 0:  # what Python imports late may be out of the other user's reach
    assert main([*commands[-1], "-o", os.devnull]) == 0
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for command in commands:
    print(main(command), flush=True)
    print("--", file=sys.stderr, flush=True)
"""


@pytest.fixture
def open_folder():
    """A folder that other users get to, as pytest's they do not."""
    with tempfile.TemporaryDirectory(prefix="minibark-rights-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX rights")
def test_what_may_not_be_read_or_written_is_called_that(open_folder):
    voice = made.random_voice(made.GenerationConfig(), 50)
    for name in ("text.txt", "open.txt"):
        (open_folder / name).write_text("Well.")
    for name in ("voice.npz", "closed/voice.npz"):
        (open_folder / name).parent.mkdir(exist_ok=True)
        voice.save(open_folder / name)
    convert("tiny", open_folder / "model", precision="int8")
    for name in ("weights", "config", "shut"):
        convert("random", open_folder / name)
    shut = ("text.txt", "voice.npz", "weights/model.safetensors", "config/config.json")
    for name in (*shut, "closed", "shut"):
        os.chmod(open_folder / name, 0)
    (open_folder / "open.wav").touch()
    os.chmod(open_folder / "open.wav", 0o666)
    os.chmod(open_folder, 0o555)
    say = ["say", *SHORT, "-q", "--model", open_folder / "model", "-o", open_folder / "open.wav"]
    commands = [
        [*say, "-i", open_folder / "text.txt"],
        [*say, "Well.", "--voice", open_folder / "voice.npz"],
        ["info", open_folder / "weights"],
        ["info", open_folder / "config"],
        [*say, "Well.", "--voice", open_folder / "closed" / "voice.npz"],
        ["info", open_folder / "shut"],
        [*say[:-1], open_folder / "new.wav", "Well."],
        [*say, "-i", open_folder / "open.txt"],
    ]
    words = json.dumps([list(map(str, command)) for command in commands])
    done = made.run_python(AS_NOBODY, words, HOME="/nonexistent")
    assert done.stdout.split() == ["1"] * 7 + ["0"], done.stderr
    told = [part.strip() for part in done.stderr.split("--\n")]
    denied = (*shut, "closed/voice.npz", "shut/config.json")
    for name, line in zip(denied, told, strict=False):
        assert line.startswith(f"minibark: {open_folder / name}: permission denied"), line
    assert told[6].endswith("new.wav cannot be written; choose another place")
    assert told[7].startswith("minibark: warning: ") and "is written in place" in told[7]
    assert (open_folder / "open.wav").stat().st_size > 44
    assert not [name for name in names(open_folder) if name.startswith(".")]


# ---- too little memory ----

LITTLE = """
import json, resource, sys
from pathlib import Path
from minibark.commands.main import main
held = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) << 10
for share in (0.5, 1.5):  # too little for the header's mapping, then for torch's, which is another
    resource.setrlimit(resource.RLIMIT_AS, (held + int(share * float(sys.argv[2])), -1))
    print(main(["info", sys.argv[1]]))
"""


@linux
def test_too_little_memory_is_no_damaged_file(tmp_path):
    convert("random", tmp_path / "model")
    n_bytes = 1 << 32  # of zeros that take no room on the disk
    state = {"semantic.x": {"dtype": "F32", "shape": [n_bytes // 4], "data_offsets": [0, n_bytes]}}
    header = json.dumps(state).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n_bytes)
    done = made.run_python(LITTLE, tmp_path / "model", n_bytes)
    assert done.stdout.split() == ["1", "1"], done.stderr
    assert len(done.stderr.splitlines()) == 2
    for line in done.stderr.splitlines():
        assert line.startswith("minibark: out of memory while reading") and "fetch" not in line


def test_only_what_is_the_machine_s_fault_keeps_its_type():
    denied = PermissionError(13, "Permission denied", "x")
    for error, kind in (
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), MemoryError),
        (OSError(12, "Cannot allocate memory"), MemoryError),
        (denied, PermissionError),
        (OSError(22, "Invalid argument"), CheckpointError),
        (RuntimeError("shapes differ"), CheckpointError),
        (KeyError("memory"), CheckpointError),
    ):
        with pytest.raises(kind) as caught, naming("here"):
            raise error
        assert type(caught.value) is kind


def test_an_error_of_torch_is_one_line_and_with_debug_a_traceback(tmp_path, capsys):
    words = ["say", "Well.", *SHORT, "-q", "-o", str(tmp_path / "a.wav"), "--device", "meta"]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minibark: ") and "Error: " in line and "--debug shows" in line
    assert main([*words, "--debug"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("minibark: ")
    assert len(lines) > 5


# ---- kept copies ----


@pytest.fixture
def pickle(tmp_path):
    path = tmp_path / "pickles" / "model.bin"
    path.parent.mkdir()
    torch.save({"a": torch.arange(6.0)}, path)
    return path


def test_copies_of_what_has_gone_or_changed_are_dropped(pickle, tmp_path, capsys):
    cache = tmp_path / "cache"
    for _ in range(2):
        state, metadata = read_any(pickle, cache)
        assert state["a"].tolist() == [0, 1, 2, 3, 4, 5] and metadata == {}
    (kept,) = copies(cache)
    assert (kept.source, kept.state, kept.n_bytes) == (
        str(pickle.resolve()),
        HERE,
        kept.path.stat().st_size,
    )
    older = kept.path.with_name("older-0123456789abcdef.safetensors")  # says nothing of a source
    save_safetensors({"a": torch.zeros(1)}, older, {})
    (cache / "minibark" / "mine.safetensors").write_text("not ours")
    other = pickle.with_name("other.bin")
    shutil.copy(pickle, other)
    read_any(other, cache)
    torch.save({"a": torch.zeros(2)}, pickle)
    other.unlink()
    states = {copy.path.name.partition("-")[0]: copy.state for copy in copies(cache)}
    assert states == {"model": CHANGED, "older": UNKNOWN, "other": GONE}
    assert main(["cache", "--cache-dir", str(cache)]) == 0
    shown = capsys.readouterr()
    assert [line.split()[-1] for line in shown.out.splitlines()] == [CHANGED, UNKNOWN, GONE]
    assert f"of {pickle.resolve()}" in shown.out and "3 copies kept" in shown.err
    read_any(pickle, cache)
    assert [copy.state for copy in copies(cache)] == [HERE, UNKNOWN]
    assert main(["cache", "--clear", "--cache-dir", str(cache), "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert names(cache / "minibark") == ["mine.safetensors"] and pickle.exists()
    assert clear_copies(cache) == copies(cache) == []


@linux
def test_a_name_that_is_not_utf8_is_kept_and_shown(pickle, tmp_path, capsys):
    odd = pickle.rename(pickle.with_name(os.fsdecode(b"w\xff.bin")))
    cache = tmp_path / "cache"
    read_any(odd, cache)
    (kept,) = copies(cache)
    assert (kept.source, kept.state) == (str(odd.resolve()), HERE)
    assert main(["cache", "--cache-dir", str(cache)]) == 0
    assert r"w\udcff.bin" in capsys.readouterr().out


def test_a_copy_may_go_while_it_is_used(pickle, tmp_path):
    state, _ = read_any(pickle, tmp_path)
    (kept,) = clear_copies(tmp_path)
    assert not kept.path.exists()
    assert state["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert read_any(pickle, tmp_path)[0]["a"].equal(state["a"])


# ---- state dicts ----


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "int4"])
def test_a_state_dict_is_whole_or_refused(precision, tmp_path):
    plain = Bark.from_pretrained("tiny", device="cpu")
    bark = Bark.from_pretrained("tiny", device="cpu", precision=precision)
    for stage in ("semantic", "coarse", "fine", "codec"):
        expected = plain.model(stage).state_dict()
        if stage == "codec":
            assert bark.model(stage).state_dict().keys() == expected.keys()
            continue
        with pytest.raises(RuntimeError, match=r"lack transformer.* 'float32' .* Bark\.save"):
            bark.model(stage).state_dict()
        assert len(expected) > 20
    bark.save(tmp_path / "copy")
    saved, _ = read_safetensors(tmp_path / "copy" / "model.safetensors")
    opened, _ = read_safetensors(ROOT / "weights" / "tiny" / "model.safetensors")
    assert saved.keys() == opened.keys()
    assert all(tensor.equal(opened[name]) for name, tensor in saved.items())


# ---- the tests' own manners, and samples of `make torture`; of threads, see test_threads.py ----


def test_nothing_is_kept_in_the_real_home():
    folder = os.environ["MINIBARK_TESTS_CACHE"]
    places = [constants.HF_HUB_CACHE, constants.HF_HOME, torch.hub.get_dir(), kept_folder(None)]
    for place in places:
        assert os.path.commonpath([place, folder]) == folder, place
    code = (
        "import os, torch\nfrom huggingface_hub import constants\n"
        "from minibark.checkpoint.kept import cache_folder\n"
        "print(constants.HF_HUB_CACHE, constants.HF_HOME, torch.hub.get_dir(), cache_folder(None))"
    )
    assert made.run_python(code).stdout.split() == list(map(str, places))


@pytest.mark.torture
@linux
@pytest.mark.parametrize(
    "words",
    [
        ["kill.py", "--n", "4"],
        ["memory.py", "--loads", "10", "--clips", "0"],
    ],
    ids=lambda words: words[0],
)
def test_a_sample_of_torture(words):
    command = [sys.executable, str(TORTURE / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
