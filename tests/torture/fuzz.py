"""Feeds damaged and made-up files to every reader, in child processes under limits; `make torture`.

    python tests/torture/fuzz.py --n 200000 --minutes 60

A child works from a first case on and reports each. If it dies or stands still, its files are kept
and another child goes on with the next case. Every case is decided by its number. Right is an error
with a name, or a valid object, within 5 s and 1 GB.
"""

import argparse
import io
import itertools
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import hostile_files as made  # noqa: E402

MAX_SECONDS = 5
MAX_MB = 1000


Kind = tuple[str, int, Callable[[Random], bytes], Callable[[Path], object]]
"""The name of a file, how often it comes, what makes it and what reads it."""


def kinds_of_cases(folder: Path) -> list[Kind]:
    """All kinds; files that a file names are looked for in the folder."""
    import numpy as np
    import torch
    from safetensors.torch import save

    from minibark.checkpoint.presets import preset
    from minibark.checkpoint.schema import HF_SECTIONS, config_from_dict, config_from_hf
    from minibark.checkpoint.tensors import read_pickle, read_safetensors
    from minibark.checkpoint.voices import Voices
    from minibark.detect.sklearn_pickles import import_classifier
    from minibark.files import read_json
    from minibark.tokenizer import Tokenizer
    from minibark.voice import Voice

    pickles = [path.read_bytes() for path in sorted((TESTS / "old_torch").glob("*.pt"))]
    state = {
        "a": torch.ones(3, 4),
        "b": torch.zeros(5, dtype=torch.float16),
        "c": torch.ones(2).t(),
    }
    pickles += [made.torch_file(state, is_zip) for is_zip in (True, False)]
    old_classifiers = sorted((TESTS / "old_sklearn").glob("*.pkl"))
    classifiers = [path.read_bytes().partition(b"\n")[2] for path in old_classifiers]
    programs = []
    for whole in pickles:
        if whole[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(whole)) as archive:
                programs.append({name: archive.read(name) for name in archive.namelist()})
    tensors = save(state, {"model_args": "{}"})
    size = int.from_bytes(tensors[:8], "little")
    header, data = json.loads(tensors[8 : 8 + size]), tensors[8 + size :]
    config = preset("random").to_dict()
    hf = {section: config[stage] for stage, section in HF_SECTIONS.items()}
    arrays = {f"{part}_prompt": np.ones((2, 60), int) for part in ("semantic", "coarse", "fine")}
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    npy = {}
    for name, array in arrays.items():
        np.save(buffer := io.BytesIO(), array)
        npy[f"{name}.npy"] = buffer.getvalue()
    index = {f"v{i}": {name: f"{i}/{name}.npy" for name in arrays} for i in range(3)}
    vocab = (TESTS.parent / "weights/tiny/vocab.txt").read_bytes()[:2000]

    def damaged_program(random: Random) -> bytes:
        files = dict(random.choice(programs))
        (name,) = (name for name in files if name.endswith("data.pkl"))
        return made.zipped(files | {name: made.damage(files[name], random)})

    def spliced(random: Random) -> bytes:
        """The beginning of one file and the end of another."""
        one, other = random.choice(pickles), random.choice(pickles)
        return one[: random.randrange(len(one))] + other[random.randrange(len(other)) :]

    def grown(random: Random) -> bytes:
        """A program in which a piece is repeated up to a million times."""
        program = repeated(made.random_program(random) or b"N", random)
        return made.archive(program, {"0": bytes(16)})

    def repeated(program: bytes, random: Random) -> bytes:
        start = random.randrange(len(program))
        piece = program[start : start + random.choice([1, 2, 3, 5, 9, 40])]
        n_times = random.choice([10, 1000, 10**6]) // max(len(piece), 1)
        return program[:start] + piece * n_times + program[start:]

    def damaged_classifier(random: Random) -> bytes:
        whole = random.choice(classifiers)
        return repeated(whole, random) if random.random() < 0.1 else made.damage(whole, random)

    def imported(path: Path) -> None:
        classifier = import_classifier(path)
        assert np.isfinite(classifier.weight).all() and classifier.bias.shape == (1,)

    def damaged_header(random: Random) -> bytes:
        text = made.as_json(made.damage_json(header, random), random)
        return len(text).to_bytes(8, "little") + text + data

    def damaged_npz(random: Random) -> bytes:
        name = random.choice(list(npy))
        whole = npy[name]
        return made.zipped(npy | {name: made.damage(whole[:128], random) + whole[128:]}, 8)

    def document(whole: object) -> Callable[[Random], bytes]:
        return lambda random: made.as_json(made.damage_json(whole, random), random)

    def safe(path: Path) -> None:
        tensors, _ = read_safetensors(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= path.stat().st_size

    def unpickled(path: Path) -> None:
        tensors, metadata = read_pickle(path)
        sizes = {id(tensor): tensor.nbytes for tensor in tensors.values()}
        assert sum(sizes.values()) <= path.stat().st_size
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        assert all(isinstance(json.loads(value), dict) for value in metadata.values())

    def indexed(path: Path) -> None:
        voices = Voices.from_index(path, lambda name: folder / name)
        for name in itertools.islice(voices, 3):
            voices.load(name)

    return [
        ("a.pt", 30, made.random_pickle, unpickled),
        ("a.pt", 15, lambda random: made.damage(random.choice(pickles), random), unpickled),
        ("a.pt", 20, damaged_program, unpickled),
        ("a.pt", 5, spliced, unpickled),
        ("a.pt", 3, grown, unpickled),
        ("c.pkl", 8, damaged_classifier, imported),
        ("a.safetensors", 5, damaged_header, safe),
        ("a.safetensors", 3, lambda random: made.damage(tensors, random), safe),
        ("a.json", 5, document(config), lambda path: config_from_dict(read_json(path))),
        ("b.json", 3, document(hf), lambda path: config_from_hf(read_json(path), None)),
        ("i.json", 4, document(index), indexed),
        ("v.npz", 4, damaged_npz, Voice.load),
        ("v.npz", 4, lambda random: made.damage(npz.getvalue(), random), Voice.load),
        ("vocab.txt", 2, lambda random: made.damage(vocab, random), Tokenizer.from_file),
    ]


def peak_megabytes() -> int:
    """The most memory that this process has had; `getrusage` would count its parent's too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def child(first: int, folder: Path) -> None:
    """Work through cases from `first` on, and say of each how it ended."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    kinds = kinds_of_cases(folder)
    base = peak_megabytes()
    limit = (base + MAX_MB + 4000) << 20  # of addresses, of which a file's mapping takes some
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", flush=True)
    for case in itertools.count(first):
        random = Random(case)
        (kind,) = random.choices(range(len(kinds)), [weight for _, weight, _, _ in kinds])
        name, _, make, read = kinds[kind]
        path = folder / name
        path.write_bytes(make(random))
        start = time.monotonic()
        label, fault = f"{kind} {name} {make.__name__.strip('<>')}", ""
        try:
            read(path)
            end = "read"
        except (ValueError, FileNotFoundError) as error:
            end = type(error).__name__
            if not str(error) or len(str(error)) > 8000:
                fault = "says nothing, or too much"
        except BaseException as error:
            end, fault = "unnamed", f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.monotonic() - start
        megabytes = peak_megabytes()
        if megabytes > MAX_MB:
            fault = f"{megabytes} MB"
        if seconds > MAX_SECONDS:
            fault = f"{seconds:.1f} s"
        print(json.dumps([case, label, end, fault, seconds, megabytes]), flush=True)
        if megabytes > MAX_MB:
            return  # the largest size of a process never sinks


def reports(process: subprocess.Popen[bytes]) -> Iterator[list[Any]]:
    """What a child says, case by case.

    Raises:
        RuntimeError: it does not even start.
        TimeoutError: it says nothing for too long.
    """
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError("the child does not start")
    said, seconds = b"", 4.0 * MAX_SECONDS
    while select.select([process.stdout], [], [], seconds)[0]:
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return
        *lines, said = (said + chunk).split(b"\n")
        yield from map(json.loads, lines)
    raise TimeoutError


class Torture:
    """Counts of what children report, and the files of what went wrong."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.ends: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.slowest = self.largest = 0.0

    def run_child(self, case: int, last: int, stop: float, scratch: Path) -> int:
        """Let a child work until it ends, the time is over or all is done; the next case."""
        command = [sys.executable, __file__, "--child", str(case), str(scratch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
            try:
                for _, label, end, fault, seconds, megabytes in reports(process):
                    self.ends[label, end] += 1
                    self.slowest = max(self.slowest, seconds)
                    self.largest = max(self.largest, megabytes)
                    if fault:
                        self.note(case, f"{label}: {fault}", scratch)
                    case += 1
                    if case == last or time.monotonic() > stop:
                        return case
                if process.wait() == 0:
                    return case
                fault = f"crash, status {process.returncode}"
            except TimeoutError:
                fault = "hang"
            finally:
                process.kill()
        self.note(case, fault, scratch)
        return case + 1

    def note(self, case: int, fault: str, scratch: Path) -> None:
        """Keep the number of a case that went wrong, and the files as they are now."""
        self.faults.append(f"case {case}: {fault}")
        shutil.copytree(scratch, self.keep / str(case), dirs_exist_ok=True)

    def tell(self) -> None:
        """Print all counts."""
        for (label, end), count in sorted(self.ends.items()):
            print(f"{label:32} {end:20} {count:>9,}")
        print("\n".join(self.faults))
        n_read = sum(count for (_, end), count in self.ends.items() if end == "read")
        print(
            f"{self.ends.total():,} cases, {n_read:,} of them read, {len(self.faults)} faults; "
            f"slowest {self.slowest:.2f} s, largest process {self.largest:.0f} MB"
        )


def main() -> int:
    """Run children one after the other, and report."""
    parser = argparse.ArgumentParser(description="Damaged and made-up files for every reader.")
    parser.add_argument("--n", type=int, default=200_000, help="cases (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (%(default)s)")
    parser.add_argument("--minutes", type=float, default=120, help="at most (%(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("build/torture"), help="for what failed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(int(args.child[0]), Path(args.child[1]))
        return 0
    stop, case, torture = time.monotonic() + 60 * args.minutes, args.first, Torture(args.keep)
    with tempfile.TemporaryDirectory() as scratch:
        while case < args.first + args.n and time.monotonic() < stop:
            case = torture.run_child(case, args.first + args.n, stop, Path(scratch))
    torture.tell()
    return 1 if torture.faults else 0


if __name__ == "__main__":
    sys.exit(main())
