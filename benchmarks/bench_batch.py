"""Many utterances at once, by the rows of the pipeline: how much sound a second of time makes.

python benchmarks/bench_batch.py --model small --precision int8 --rows 1 4 8
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import (
    TEXT,
    add_options,
    check_length,
    checkpoint,
    close,
    machine_card,
    max_duration_s,
    one_line,
    parse,
    positive,
    print_card,
    timed,
)

import minibark
from minibark.pipeline import Row

STAGES = ("semantic", "coarse", "fine", "codec")


def speak(bark: minibark.Bark, n_rows: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage of so many utterances of one length, and of sound."""
    g, pipeline, voice = bark.config.generation, bark.pipeline, bark.load_voice(args.voice)
    limit_s = max_duration_s(args.semantic_tokens, g.semantic_rate_hz)
    options = minibark.Options(max_duration_s=limit_s, allow_early_stop=False)
    ids = torch.tensor(bark.tokenizer.encode(TEXT)[: g.max_input_semantic_length])
    streams = [torch.Generator(bark.device).manual_seed(args.seed + i) for i in range(n_rows)]
    rows = [Row(ids, voice, stream) for stream in streams]
    voices = [voice] * n_rows
    seconds: dict[str, float] = {}
    device = bark.device
    seconds["semantic"], semantics = timed(lambda: pipeline.semantic(rows, options), device)
    seconds["coarse"], coarses = timed(
        lambda: pipeline.coarse(semantics, voices, streams, options), device
    )
    seconds["fine"], fines = timed(lambda: pipeline.fine(coarses, voices, streams, options), device)
    seconds["codec"], audio = timed(lambda: [pipeline.decode(fine) for fine in fines], device)
    seconds["audio"] = sum(map(len, audio)) / bark.sample_rate
    return seconds


def measure(bark: minibark.Bark, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians for each number of rows, which take turns."""
    rounds: dict[int, list[dict[str, float]]] = {n_rows: [] for n_rows in args.rows}
    for n in range(args.warmup + args.repeats):
        for n_rows, made in rounds.items():
            found = speak(bark, n_rows, args)
            if n >= args.warmup:
                made.append(found)
    results = []
    for n_rows, made in rounds.items():
        stages = {stage: statistics.median(one[stage] for one in made) for stage in STAGES}
        total_s = statistics.median(sum(one[stage] for stage in STAGES) for one in made)
        audio_s = made[0]["audio"]
        results.append(
            {
                "precision": precision,
                "n_rows": n_rows,
                "seconds": stages,
                "total_s": total_s,
                "audio_s": audio_s,
                "audio_per_s": audio_s / total_s,
                "times_one_row": total_s / results[0]["total_s"] if results else 1.0,
                "path": bark.describe(),
            }
        )
        shown = "".join(f"{stages[stage]:>10.2f}" for stage in STAGES)
        last = results[-1]
        print(
            f"{precision:<9} {n_rows:>4}{shown}{total_s:>10.2f}{total_s / audio_s:>8.2f}"
            f"{last['audio_per_s']:>9.2f}{last['times_one_row']:>8.2f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time utterances that go through the pipeline together, as rows.",
        epilog="RTF is seconds over seconds of all sound; x first: the total over that of the "
        "first number of rows. The last line is JSON.",
    )
    names = "model precision device threads semantic-tokens voice repeats warmup seed json"
    add_options(parser, names)
    rows = {"type": positive, "nargs": "+", "default": [1, 8], "metavar": "B"}
    parser.add_argument("--rows", **rows, help="at once (1 8)")
    args = parse(parser)
    card = machine_card(torch.device(args.device))
    print_card(card)
    heads = "".join(f"{stage:>10}" for stage in (*STAGES, "total"))
    print(f"{'precision':<9} {'rows':>4}{heads}{'RTF':>8}{'audio/s':>9}{'x first':>8}")
    results: list[dict[str, Any]] = []
    with one_line("bench_batch"), checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            bark = minibark.Bark.from_pretrained(model, device=args.device, precision=precision)
            check_length(args.semantic_tokens, bark.config.generation)
            results += measure(bark, precision, args)
    close("batch", args, card=card, results=results)


if __name__ == "__main__":
    main()
