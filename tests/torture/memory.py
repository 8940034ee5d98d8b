"""Resident memory of a process that goes on and on; `make torture`.

    python tests/torture/memory.py --loads 300 --clips 2000

A Bark is opened, speaks and is deleted, many times; then one speaks many short clips. Right is as
much memory after all of them as after a sixth (loads) or a tenth (clips), within 5 %.
"""

import argparse
import gc
import sys
import time
from functools import partial
from pathlib import Path

import torch

from minibark import Bark

TOLERANCE = 0.05


def resident_mb() -> float:
    """Anonymous memory of this process; pages of mapped files are the system's to take back."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def clip(bark: Bark, number: int) -> None:
    """Say something of one of many lengths."""
    words = " ".join(["well"] * (1 + number % 5))
    audio = bark.generate(words, seed=number, max_duration_s=0.04 + 0.02 * (number % 7))
    assert len(audio)


def load_and_delete(number: int) -> None:
    bark = Bark.from_pretrained("tiny", device="cpu")
    clip(bark, number)
    del bark
    gc.collect()


def watch(what: str, n: int, early: int, do: object, stop: float) -> bool:
    """Do it n times; whether memory after all is what it was after the early ones."""
    first, done = 0.0, 0
    while done < n and time.monotonic() < stop:
        do(done)
        done += 1
        if done == early:
            first = resident_mb()
    last = resident_mb()
    if done <= early:
        print(f"{what}: only {done} of {n} in the time given")
        return False
    growth = last / first - 1
    print(f"{what}: {first:.1f} MB after {early}, {last:.1f} MB after {done}: {growth:+.1%}")
    return abs(growth) <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--clips", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="at most, each (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_right = True
    if args.loads:
        stop = time.monotonic() + 60 * args.minutes
        is_right &= watch("loads", args.loads, max(args.loads // 6, 5), load_and_delete, stop)
    if args.clips:
        stop = time.monotonic() + 60 * args.minutes
        bark = Bark.from_pretrained("tiny", device="cpu")
        speak = partial(clip, bark)
        is_right &= watch("clips", args.clips, args.clips // 10, speak, stop)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
