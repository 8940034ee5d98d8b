"""A whole job of `minibark batch`, files and all: clips and seconds of sound a second.

One by one; in groups that rows leave and none joins; and as it is, where the next clip joins.

python benchmarks/bench_bulk.py --model tiny
python benchmarks/bench_bulk.py --model small --precision int8
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

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
from minibark.audio import encode_audio
from minibark.pipeline import Row
from minibark.speech.batch import in_groups
from minibark.speech.bulk import run
from minibark.speech.manifest import Line, read_manifest
from minibark.text import readable_ids

WORDS = "the old house on the hill has a door and nobody went in before the morning came".split()
N_WORDS = (2, 4, 8, 14)  # of texts, in turn; 14 fit one piece of every model
WORDS_PER_S = 2.5  # spoken: how long a text is made last where random weights would not end it


class Done(NamedTuple):
    """What became of a job."""

    n_made: int
    audio_s: float
    wall_s: float


def write_manifest(path: Path, args: argparse.Namespace) -> None:
    """Texts of mixed length, each with its seed, so that every job makes the same clips."""
    rng = random.Random(args.seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(args.texts):
            kind = index % len(N_WORDS)
            text = " ".join(rng.choices(WORDS, k=N_WORDS[kind])).capitalize() + "."
            line: dict[str, Any] = {"id": f"clip-{index}", "text": text, "seed": index}
            if args.model in RANDOM_MODELS:
                seconds = min(N_WORDS[kind] / WORDS_PER_S, args.longest_s)
                line |= {"max_duration_s": seconds, "allow_early_stop": False}
            file.write(json.dumps(line) + "\n")


def joined(bark: minibark.Bark, folder: Path, rows: int) -> Done:
    """The job as `minibark batch` does it: where a clip ends the next one joins."""
    job = run(bark, folder / "manifest.jsonl", folder / "clips", rows=rows, one_piece=True)
    return Done(job.n_made, job.audio_s, job.wall_s)


def closed(bark: minibark.Bark, folder: Path, rows: int) -> Done:
    """The same clips in groups of like length, which rows leave and none joins; no records."""
    begin, audio_s = time.perf_counter(), 0.0
    found = [line for line in read_manifest(folder / "manifest.jsonl") if isinstance(line, Line)]
    alike: dict[minibark.Options, list[Line]] = {}
    for line in found:
        alike.setdefault(dataclasses.replace(line.options, seed=None), []).append(line)
    for options, lines in alike.items():
        lines.sort(key=lambda line: len(line.text))
        row = [
            Row(torch.tensor(readable_ids(line.text, bark.tokenizer, bark.normalize)), None, stream)
            for line in lines
            if (stream := line.options.generator(bark.device))
        ]
        for line, voice in zip(
            lines, in_groups(bark.pipeline, row, options, most=rows), strict=True
        ):
            audio = bark.pipeline.decode(voice.fine)
            (folder / f"{line.id}.wav").write_bytes(encode_audio(audio, bark.sample_rate))
            audio_s += len(audio) / bark.sample_rate
    return Done(len(found), audio_s, time.perf_counter() - begin)


def measure(bark: minibark.Bark, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The job in each way, which take turns."""
    ways = [(1, "alone", joined)]
    ways += [(n, *way) for n in args.rows for way in (("closed", closed), ("joined", joined))]
    jobs: list[list[Done]] = [[] for _ in ways]
    for n in range(args.warmup + args.repeats):
        for (rows, _, do), done in zip(ways, jobs, strict=True):
            with tempfile.TemporaryDirectory(prefix="minibark-bench-") as name:
                write_manifest(Path(name, "manifest.jsonl"), args)
                job = do(bark, Path(name), rows)
            if n >= args.warmup:
                done.append(job)
    results: list[dict[str, Any]] = []
    for (rows, how, _), done in zip(ways, jobs, strict=True):
        seconds = spread([job.wall_s for job in done])
        audio_s, median_s = done[0].audio_s, seconds["median"]
        results.append(
            {
                "precision": precision,
                "rows": rows,
                "how": how,
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
            f"{precision:<9} {rows:>4} {how:<6}{last['clips']:>7}{audio_s:>9.1f}{median_s:>9.2f}"
            f"{last['clips_per_s']:>9.2f}{last['rtf']:>8.2f}{last['times_faster']:>8.2f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time jobs of texts of mixed length, one by one and together.",
        epilog="RTF is seconds over seconds of sound; x first: how many times faster than the "
        "one by one. The last line is JSON.",
    )
    names = "model precision device threads repeats warmup seed json"
    add_options(parser, names, model="tiny", repeats=3)
    parser.add_argument("--texts", type=positive, default=64, metavar="N", help="clips (64)")
    rows = {"type": positive, "nargs": "+", "default": [8], "metavar": "B"}
    parser.add_argument("--rows", **rows, help="made together (8)")
    longest = {"type": float, "default": max(N_WORDS) / WORDS_PER_S, "metavar": "S"}
    parser.add_argument("--longest-s", **longest, help="of clips of random weights (5.6)")
    args = parse(parser)
    card = machine_card(torch.device(args.device))
    print_card(card)
    heads = f"{'clips':>7}{'sound':>9}{'seconds':>9}{'clips/s':>9}{'RTF':>8}{'x first':>8}"
    print(f"{'precision':<9} {'rows':>4} {'how':<6}{heads}")
    results: list[dict[str, Any]] = []
    with one_line("bench_bulk"), checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            bark = minibark.Bark.from_pretrained(model, device=args.device, precision=precision)
            results += measure(bark, precision, args)
    close("bulk", args, card=card, results=results)


if __name__ == "__main__":
    main()
