"""Kills `minibark batch` at fifty moments of its work, and checks what is left after each.

    python tests/torture/bulk.py --kills 50

Each job is killed again and again until it is complete; then the next one begins. At the end the
clips of each must be those of a job that nobody disturbed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

import killed_jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
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


def sounds(out: Path) -> dict[str, bytes]:
    return {name: clip[3] for name, clip in killed_jobs.clips(out).items()}


if __name__ == "__main__":
    main()
