"""Jobs of `minibark batch` that are killed while they work, and what must hold of their folders."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Self

import soundfile
from checkpoints import TINY

import minibark
from minibark.checkpoint.voices import Voices

WORDS = "a hut on the hill and no one in it".split()
CONFIG = dataclasses.replace(
    TINY, generation=dataclasses.replace(TINY.generation, max_input_semantic_length=32)
)
"""A Bark that reads 32 characters and speaks for a third of a second, at 300 Hz."""

# The parent has imported everything and run nothing, so that a child may be forked.
_NURSERY = """
import json, os, resource, signal, sys
import soundfile, torch, tqdm
from minibark.commands.main import main
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        words, stderr, limit = json.loads(line)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        status = main(words)
        sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def save_model(folder: Path) -> Path:
    """Write a small Bark with one voice, `made`; its directory."""
    bark = minibark.Bark(CONFIG, device="cpu", seed=3)
    (folder / "voices").mkdir()
    bark.generate_voice("A voice.", max_duration_s=0.25, allow_early_stop=False, seed=1).save(
        folder / "voices" / "made.npz"
    )
    voices = Voices.from_directory(folder / "voices")
    minibark.Bark(CONFIG, voices=voices, device="cpu", seed=3).save(folder / "model")
    return folder / "model"


def write_manifest(path: Path, n: int, rng: Random) -> list[str]:
    """A manifest of n texts; their ids."""
    ids = [f"clip {i}" for i in range(n)]
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in ids]
    lines = [{"id": name, "text": text} for name, text in zip(ids, texts, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ids


class Nursery:
    """A process that has imported minibark, and forks one that runs a command when asked to."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)

    @contextlib.contextmanager
    def running(
        self, *words: object, stderr: Path = Path(os.devnull), limit: int = 0
    ) -> Iterator[int]:
        """The process of a command; it is waited for, and `status` is how it ended.

        `stderr` is the file of what it says, `limit` the most bytes of any file that it writes.
        """
        self.process.stdin.write(json.dumps([list(map(str, words)), str(stderr), limit]) + "\n")
        self.process.stdin.flush()
        yield int(self.process.stdout.readline())
        self.status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))


def trial(nursery: Nursery, words: list[object], out: Path, rng: Random, longest_s: float) -> bool:
    """Run a job, kill it at some moment of its work, and check its folder; whether it was killed.

    The moment is up to `longest_s` seconds after it has changed the folder for the first time.
    """
    before = clips(out)
    names = set(os.listdir(out)) if out.exists() else set()
    with nursery.running(*words) as child:
        deadline = time.monotonic() + 60
        while (set(os.listdir(out)) if out.exists() else set()) <= names:
            if time.monotonic() > deadline or not Path(f"/proc/{child}").exists():
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, longest_s))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    after = clips(out)
    assert before.items() <= after.items(), "a clip that was done has been made again, or lost"
    assert nursery.status in (0, -signal.SIGKILL)
    return nursery.status != 0


def clips(out: Path) -> dict[str, tuple[int, bytes, int, bytes]]:
    """Clips by id: when their records and sounds were written, and what they are; all can be read.

    Fails if there is a record that has no sound of its length.
    """
    found = {}
    for path in out.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        sound = out / record["file"]
        info = soundfile.info(sound)
        assert abs(info.frames / info.samplerate - record["seconds"]) < 1e-3
        found[record["id"]] = (
            *(path.stat().st_mtime_ns, path.read_bytes()),
            *(sound.stat().st_mtime_ns, sound.read_bytes()),
        )
    return found


def assert_complete(out: Path, ids: list[str]) -> None:
    """Each id has its two files, and nothing else is there."""
    files = {f"{name}{suffix}" for name in ids for suffix in (".json", ".wav")}
    assert set(os.listdir(out)) == files | {".minibark-batch"}
    assert set(clips(out)) == set(ids)
