"""Many utterances at once, by the rows of the pipeline: clips a second, and why so many.

python benchmarks/bench_batch.py --model small --precision int8 --rows 1 4 8
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
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
from minibark import fast
from minibark.decoding import Decoder
from minibark.model import GPT
from minibark.pipeline import Row

STAGES = ("semantic", "coarse", "fine", "codec")


class Clocked(Decoder):
    """A decoder whose prompts and steps are timed; `kept` has seconds and the tokens of steps."""

    def __init__(self, decoder: Decoder, device: torch.device, stage: str, kept: dict[str, float]):
        self.decoder, self.device, self.stage, self.kept = decoder, device, stage, kept
        self.steps_at_once = decoder.steps_at_once

    def keep(self, rows: list[int]) -> bool:
        return self.decoder.keep(rows)

    def join(self, *args: Any) -> Any:
        return self.decoder.join(*args)

    def prefill(self, *args: Any) -> Any:
        taken_s, logits = timed(lambda: self.decoder.prefill(*args), self.device)
        self.kept["prefill"] += taken_s
        return logits

    def decode_one(self, *args: Any) -> Any:
        return self.decoder.decode_one(*args)

    def take_steps(self, *args: Any) -> Any:
        taken_s, made = timed(lambda: self.decoder.take_steps(*args), self.device)
        self.kept[f"{self.stage} steps"] += taken_s
        self.kept[f"{self.stage} tokens"] += made[0].numel()
        return made


def speak(bark: minibark.Bark, n_rows: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage of so many utterances of one length, and of sound."""
    g, pipeline, voice = bark.config.generation, bark.pipeline, bark.load_voice(args.voice)
    limit_s = max_duration_s(args.semantic_tokens, g.semantic_rate_hz)
    options = minibark.Options(max_duration_s=limit_s, allow_early_stop=False)
    ids = torch.tensor(bark.tokenizer.encode(TEXT)[: g.max_input_semantic_length])
    streams = [torch.Generator(bark.device).manual_seed(args.seed + i) for i in range(n_rows)]
    rows = [Row(ids, voice, stream) for stream in streams]
    voices = [voice] * n_rows
    seconds: dict[str, float] = defaultdict(float)
    device = bark.device

    def clocked(model: GPT, n_merged: int, choice: fast.Choice) -> Decoder:
        stage = "semantic" if n_merged else "coarse"
        return Clocked(fast.decoder(model, n_merged, choice), device, stage, seconds)

    pipeline.new_decoder = clocked
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
        rates = {
            stage: statistics.median(one[f"{stage} tokens"] / one[f"{stage} steps"] for one in made)
            for stage in ("semantic", "coarse")
        }
        first = results[0] if results else {"total_s": total_s, "tokens_per_s": rates}
        gains = {stage: rate / first["tokens_per_s"][stage] for stage, rate in rates.items()}
        results.append(
            {
                "precision": precision,
                "n_rows": n_rows,
                "seconds": stages,
                "total_s": total_s,
                "audio_s": audio_s,
                "audio_per_s": audio_s / total_s,
                "clips_per_s": n_rows / total_s,
                "times_one_row": total_s / first["total_s"],
                "tokens_per_s": rates,
                "step_gain": gains,
                "prefill_share": statistics.median(one["prefill"] for one in made) / total_s,
                "fine_share": stages["fine"] / total_s,
                "path": bark.describe(),
            }
        )
        shown = "".join(f"{stages[stage]:>10.2f}" for stage in STAGES)
        last = results[-1]
        print(
            f"{precision:<9} {n_rows:>4}{shown}{total_s:>10.2f}{total_s / audio_s:>8.2f}"
            f"{last['clips_per_s']:>9.3f}{last['times_one_row']:>8.2f}"
            f"{gains['semantic']:>11.2f}{gains['coarse']:>9.2f}"
            f"{last['prefill_share']:>8.0%}{last['fine_share']:>6.0%}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time utterances that go through the pipeline together, as rows.",
        epilog="RTF: seconds over seconds of all sound. x first: the total over that of the first "
        "number of rows; semantic, coarse x: tokens a second of their steps, over the same. "
        "prefill, fine: shares of the total. The last line is JSON.",
    )
    names = "model precision device threads semantic-tokens voice repeats warmup seed json"
    add_options(parser, names)
    rows = {"type": positive, "nargs": "+", "default": [1, 8], "metavar": "B"}
    parser.add_argument("--rows", **rows, help="at once (1 8)")
    args = parse(parser)
    card = machine_card(torch.device(args.device))
    print_card(card)
    heads = "".join(f"{stage:>10}" for stage in (*STAGES, "total"))
    print(
        f"{'precision':<9} {'rows':>4}{heads}{'RTF':>8}{'clips/s':>9}{'x first':>8}"
        f"{'semantic x':>11}{'coarse x':>9}{'prefill':>8}{'fine':>6}"
    )
    results: list[dict[str, Any]] = []
    with one_line("bench_batch"), checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            bark = minibark.Bark.from_pretrained(model, device=args.device, precision=precision)
            check_length(args.semantic_tokens, bark.config.generation)
            results += measure(bark, precision, args)
    close("batch", args, card=card, results=results)


if __name__ == "__main__":
    main()
