"""Kills `minibark batch` at fifty moments of its work, and runs it for thousands of clips.

    python tests/torture/bulk.py --kills 50 --soak 5000

Each job is killed again and again until it is complete; then the next one begins. At the end the
clips of each must be those of a job that nobody disturbed.

Then one process makes thousands of short clips with `tiny`, as one job whose rows join and leave:
after all of them it must hold as much memory as after a hundred, within 5 %, and as many files.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import killed_jobs

from minibark import Bark, LongOptions
from minibark.speech.batch import MOST_ROWS
from minibark.speech.bulk import Job

TOLERANCE = 0.05
EARLY = 100  # clips, after which memory is first looked at
WORDS = "hi no yes well go on a dog the hut".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--soak", type=int, default=5000, help="clips (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills:
        kill(args)
    return 0 if not args.soak or soak(args.soak, Random(args.seed)) else 1


def kill(args: argparse.Namespace) -> None:
    rng = Random(args.seed)
    with tempfile.TemporaryDirectory() as name, killed_jobs.Nursery() as nursery:
        root = Path(name)
        model = killed_jobs.save_model(root)
        manifest = root / "manifest.jsonl"
        ids = killed_jobs.write_manifest(manifest, args.clips, rng)
        options = ("--model", model, "--rows", 3, "-q")
        with nursery.running("batch", manifest, root / "whole", *options):
            pass
        whole = sounds(root / "whole")
        n_killed, n_jobs = 0, 0
        while n_killed < args.kills:
            n_jobs += 1
            out = root / f"job {n_jobs}"
            words = ["batch", manifest, out, *options]
            while killed_jobs.trial(nursery, words, out, rng, 1.0):
                n_killed += 1
                print(f"killed {n_killed}: {len(killed_jobs.clips(out))} of {len(ids)} clips done")
            killed_jobs.assert_complete(out, ids)
            assert sounds(out) == whole, "a job that was killed has made other clips"
        print(f"{n_killed} kills of {n_jobs} jobs of {len(ids)} clips: nothing lost or made twice")


def soak(n_clips: int, rng: Random) -> bool:
    """Whether memory and files after so many clips are those after the first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        manifest, begin = Path(name, "manifest.jsonl"), time.monotonic()
        with manifest.open("w") as file:
            for number in range(n_clips):
                text = " ".join(rng.choices(WORDS, k=1 + number % 3))
                line = {"id": f"c{number}", "text": text, "voice": rng.choice(["male", "female"])}
                file.write(json.dumps(line | {"max_duration_s": 0.04 + 0.04 * (number % 6)}) + "\n")
        bark = Bark.from_pretrained("tiny", device="cpu")
        early, last, n_files, n_left, done = 0.0, 0.0, 0, 0, 0
        with Job(bark, manifest, Path(name, "out"), plan=LongOptions(retries=0)) as job:
            for done, _ in enumerate(job.run(), 1):
                if done == min(EARLY, n_clips // 2):
                    early, n_files = resident_mb(), open_files()
                if done <= n_clips - 2 * MOST_ROWS:  # while as many rows are on their way
                    last, n_left = resident_mb(), open_files()
        growth, taken_s = last / early - 1, time.monotonic() - begin
        print(
            f"{done} clips in {taken_s:.0f} s, {job.summary.n_bad} without sound: {early:.1f} MB "
            f"and {n_files} files after {min(EARLY, n_clips // 2)}, {last:.1f} MB ({growth:+.1%}) "
            f"and {n_left} files at the end"
        )
    return done == n_clips and growth <= TOLERANCE and n_left <= n_files


def resident_mb() -> float:
    """Anonymous memory of this process; pages of mapped files are the system's to take back."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def sounds(out: Path) -> dict[str, bytes]:
    return {name: clip[3] for name, clip in killed_jobs.clips(out).items()}


if __name__ == "__main__":
    sys.exit(main())
