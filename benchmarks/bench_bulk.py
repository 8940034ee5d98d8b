"""A whole job of `minibark batch`, files and all: clips and seconds of sound a second, by rows.

python benchmarks/bench_bulk.py --model tiny
python benchmarks/bench_bulk.py --model small --precision int8
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import (
    RANDOM_MODELS,
    add_options,
    checkpoint,
    close,
    machine_card,
    one_line,
    parse,
    positive,
    print_card,
    spread,
)

import minibark
from minibark.speech.bulk import Summary, run

WORDS = "the old house on the hill has a door and nobody went in before the morning came".split()
N_WORDS = (2, 4, 8, 14)  # of texts, in turn; 14 fit one piece of every model
SECONDS = (0.5, 1.0, 2.0, 4.0)  # of sound, where random weights would not end


def write_manifest(path: Path, args: argparse.Namespace) -> None:
    """Texts of mixed length, each with its seed, so that every job makes the same clips."""
    rng = random.Random(args.seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(args.texts):
            kind = index % len(N_WORDS)
            text = " ".join(rng.choices(WORDS, k=N_WORDS[kind])).capitalize() + "."
            line: dict[str, Any] = {"id": f"clip-{index}", "text": text, "seed": index}
            if args.model in RANDOM_MODELS:
                seconds = min(SECONDS[kind], args.longest_s)
                line |= {"max_duration_s": seconds, "allow_early_stop": False}
            file.write(json.dumps(line) + "\n")


def measure(bark: minibark.Bark, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Jobs with each number of rows, which take turns."""
    jobs: dict[int, list[Summary]] = {rows: [] for rows in args.rows}
    for n in range(args.warmup + args.repeats):
        for rows, done in jobs.items():
            with tempfile.TemporaryDirectory(prefix="minibark-bench-") as name:
                write_manifest(Path(name, "manifest.jsonl"), args)
                job = run(bark, Path(name, "manifest.jsonl"), Path(name, "clips"), rows=rows)
            if n >= args.warmup:
                done.append(job)
    results = []
    for rows, done in jobs.items():
        seconds = spread([job.wall_s for job in done])
        audio_s, median_s = done[0].audio_s, seconds["median"]
        results.append(
            {
                "precision": precision,
                "rows": rows,
                "clips": done[0].n_made,
                "seconds": seconds,
                "audio_s": audio_s,
                "clips_per_s": done[0].n_made / median_s,
                "rtf": median_s / audio_s,
                "times_faster": results[0]["seconds"]["median"] / median_s if results else 1.0,
                "path": bark.describe(),
            }
        )
        last = results[-1]
        print(
            f"{precision:<9} {rows:>4}{last['clips']:>7}{audio_s:>9.1f}{median_s:>9.2f}"
            f"{last['clips_per_s']:>9.2f}{last['rtf']:>8.2f}{last['times_faster']:>8.2f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time jobs of texts of mixed length, one by one and in groups.",
        epilog="RTF is seconds over seconds of sound; x first: how many times faster than the "
        "first number of rows. The last line is JSON.",
    )
    names = "model precision device threads repeats warmup seed json"
    add_options(parser, names, model="tiny", repeats=3)
    parser.add_argument("--texts", type=positive, default=64, metavar="N", help="clips (64)")
    rows = {"type": positive, "nargs": "+", "default": [1, 8], "metavar": "B"}
    parser.add_argument("--rows", **rows, help="made together (1 8)")
    longest = {"type": float, "default": max(SECONDS), "metavar": "S"}
    parser.add_argument("--longest-s", **longest, help="of clips of random weights (4)")
    args = parse(parser)
    card = machine_card(torch.device(args.device))
    print_card(card)
    heads = f"{'clips':>7}{'sound':>9}{'seconds':>9}{'clips/s':>9}{'RTF':>8}{'x first':>8}"
    print(f"{'precision':<9} {'rows':>4}{heads}")
    results: list[dict[str, Any]] = []
    with one_line("bench_bulk"), checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            bark = minibark.Bark.from_pretrained(model, device=args.device, precision=precision)
            results += measure(bark, precision, args)
    close("bulk", args, card=card, results=results)


if __name__ == "__main__":
    main()
