"""Four threads on one Bark, cold and warm, each clip against the one made alone; `make torture`.

python tests/torture/threads.py --cold 20 --warm 400
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from minibark import Bark

N_THREADS = 4
N_SEEDS = 6
WAYS = {
    "float32": {},
    "int8": {"precision": "int8"},
    "offload": {"offload": True},
}


def opened(options: dict) -> Bark:
    return Bark.from_pretrained("tiny", device="cpu", **options)


def clip(bark: Bark, number: int) -> np.ndarray:
    seed = number % N_SEEDS
    voice = ("male", "female", None)[seed % 3]
    return bark.generate("Hello there.", voice, seed=seed, max_duration_s=0.1 + 0.05 * seed)


def differing(bark: Bark, alone: list[np.ndarray], n: int, stop: float, cold: bool) -> list[int]:
    """A clip for each of n numbers, those that come after the time left out: 1 where it differs.

    Cold, the threads begin at once.
    """
    gate = Barrier(N_THREADS)

    def work(number: int) -> list[int]:
        if time.monotonic() > stop:
            return []
        if cold:
            gate.wait(60)
        return [int(not np.array_equal(clip(bark, number), alone[number % N_SEEDS]))]

    with ThreadPoolExecutor(N_THREADS) as pool:
        return [one for found in pool.map(work, range(n)) for one in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cold", type=int, default=20, help="Barks, each way (%(default)s)")
    parser.add_argument("--warm", type=int, default=400, help="clips, each way (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="at most, each (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for way, options in WAYS.items():
        alone = [clip(opened(options), seed) for seed in range(N_SEEDS)]
        assert len({audio.tobytes() for audio in alone}) == N_SEEDS
        stop = time.monotonic() + 60 * args.minutes
        cold: list[int] = []
        for _ in range(args.cold):
            if time.monotonic() < stop:  # for all four, or they would wait for each other
                cold += differing(opened(options), alone, N_THREADS, float("inf"), cold=True)
        warm = differing(opened(options), alone, args.warm, stop, cold=False)
        wrong += sum(cold) + sum(warm)
        print(
            f"{way}: {len(cold)} cold clips of {len(cold) // N_THREADS} Barks, {sum(cold)} differ; "
            f"{len(warm)} warm, {sum(warm)} differ",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
