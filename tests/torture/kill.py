"""Kills what writes, at random moments, with a signal that nothing can handle; `make torture`.

    python tests/torture/kill.py --n 300

Commands run in forks of this process, so that they begin at once. Half of them are killed at any
moment of their time, half soon after their first temporary file is there. Right is: what is at the
place is whole, new or as before; the next run succeeds; after it nothing temporary is left.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import checkpoints as made  # noqa: E402

from minibark import Voice  # noqa: E402
from minibark.checkpoint.layouts import open_checkpoint  # noqa: E402
from minibark.checkpoint.tensors import read_safetensors  # noqa: E402
from minibark.commands.main import main as run  # noqa: E402

Job = tuple[list[str], Callable[[Path], object]]
"""The words of a command, and what reads its result and returns something to compare."""


def digest(folder: Path) -> dict[str, int]:
    """Hashes of the bytes of all files, temporary ones left out; what is damaged raises."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and ".part" not in str(p))
    return {str(path.relative_to(folder)): hash(path.read_bytes()) for path in names}


def whole_checkpoint(place: Path) -> object:
    open_checkpoint(place / "out", offline=True)
    return digest(place / "out")


def whole_copies(place: Path) -> dict[str, object]:
    """Of each copy what it holds: the order of metadata in a file is random."""
    found = {}
    for path in (place / "minibark").glob("*.safetensors"):
        tensors, metadata = read_safetensors(path)
        parts = [(name, hash(tensors[name].numpy().tobytes())) for name in sorted(tensors)]
        found[path.name] = (parts, metadata)
    return found


def whole_voice(place: Path) -> object:
    audio = place / "o.wav"
    return Voice.load(place / "v.npz").semantic.tolist(), audio.exists() and audio.read_bytes()


def jobs(suno: Path, place: Path) -> dict[str, Job]:
    say = ["say", "Well.", "--model", "tiny", "--seed", "1", "--max-duration", "0.2"]
    return {
        "convert": (["convert", "tiny", str(place / "out")], whole_checkpoint),
        "convert to int8": (
            ["convert", "tiny", str(place / "out"), "--precision", "int8"],
            whole_checkpoint,
        ),
        "read pickles": (["info", str(suno), "--cache-dir", str(place)], whole_copies),
        "save a voice": (
            [*say, "-o", str(place / "o.wav"), "--save-voice", str(place / "v.npz")],
            whole_voice,
        ),
    }


def start(words: list[str]) -> int:
    """A fork that runs a command in silence; its number."""
    if pid := os.fork():
        return pid
    status = 99
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = run([*words, "--offline", "-q"])
    finally:
        os._exit(status)


def has_part(place: Path) -> bool:
    return any(place.glob(".*")) or any(place.glob("minibark/.*"))


class Torture:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.killed = self.in_writing = 0
        self.faults: list[str] = []

    def once(self, job: Job, place: Path, old: Path | None, seconds: float, want: object) -> None:
        """Kill one run, look, run again, look again."""
        words, read = job
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if old:
            shutil.copy(old, place / "v.npz")
        pid, begin = start(words), time.monotonic()
        is_early = self.random.random() < 0.5
        if is_early:
            time.sleep(self.random.random() * seconds)
        else:
            while not has_part(place) and time.monotonic() - begin < 1.5 * seconds:
                time.sleep(0.0002)
            time.sleep(self.random.choice([0.0, 0.001, 0.01, 0.1]) * self.random.random())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.killed += os.WIFSIGNALED(status)
        self.in_writing += has_part(place)
        label = f"{' '.join(words)[:60]} after {time.monotonic() - begin:.3f} s"
        if (place / "out").exists() and read(place) != want:
            self.faults.append(f"{label}: half written")
        if old and read(place)[0] != want[0]:
            if Voice.load(old).semantic.tolist() != read(place)[0]:
                self.faults.append(f"{label}: half written")
        audio = place / "o.wav"
        if audio.exists() and audio.read_bytes() != want[1]:
            self.faults.append(f"{label}: half of a clip")
        if "info" in words and not all(
            want[name] == copy for name, copy in whole_copies(place).items()
        ):
            self.faults.append(f"{label}: half of a copy")
        if (place / "out").exists():  # a next run has nothing to do: convert replaces nothing
            shutil.rmtree(place / "out")
        _, status = os.waitpid(start(words), 0)
        if status or read(place) != want:
            self.faults.append(f"{label}: the next run failed ({status})")
        if has_part(place):
            self.faults.append(f"{label}: left over")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="at most (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torture, stop = Torture(args.seed), time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        place, old = Path(scratch, "place"), Path(scratch, "old.npz")
        suno = made.save_suno(Path(scratch, "suno"))
        made.random_voice(made.GenerationConfig(), 50).save(old)
        wanted = {}
        for name, (words, read) in jobs(suno, place).items():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            begin = time.monotonic()
            _, status = os.waitpid(start(words), 0)
            assert status == 0, name
            wanted[name] = (time.monotonic() - begin, read(place))
            print(f"{name}: {wanted[name][0]:.2f} s undisturbed", flush=True)
        done = 0
        while done < args.n and time.monotonic() < stop:
            name = list(wanted)[done % len(wanted)]
            job = jobs(suno, place)[name]
            is_voice = name == "save a voice"
            torture.once(job, place, old if is_voice else None, *wanted[name])
            done += 1
    print("\n".join(torture.faults))
    print(
        f"{done} runs, {torture.killed} killed before their end, {torture.in_writing} of them "
        f"while something temporary was there; {len(torture.faults)} faults"
    )
    return 1 if torture.faults or not torture.in_writing else 0


if __name__ == "__main__":
    sys.exit(main())
