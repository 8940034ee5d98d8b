"""How long each of minibark's stages takes for one utterance, and in how much memory.

    python benchmarks/bench_generate.py --model small --precision float32 bfloat16

Every precision runs in a process of its own, so that its peak memory is its own; their rounds
alternate, so that a busy moment of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from card import machine_card, print_card
from checkpoints import checkpoint
from measure import (
    TEXT,
    add_common_options,
    check_device,
    check_output,
    check_plot,
    emit,
    max_duration_s,
    peak_rss_bytes,
    show,
    spread,
    timed,
)

import minibark
from minibark.config import STAGES
from minibark.gpu.backend import describe_backend
from minibark.precision import BACKENDS


@dataclass(frozen=True)
class Round:
    """One utterance, stage by stage."""

    seconds: dict[str, float]
    tokens: dict[str, int]  # ids of the semantic and coarse stage, frames of the fine and codec
    audio_s: float


_bark: minibark.Bark  # of a worker process, set by `load`


def load(
    model: str, device: str, precision: str, backend: str | None, threads: int | None
) -> tuple[dict[str, Any], str]:
    """Open the model in this process; stages load when first used.

    Returns:
        The machine card, and what decodes, in words.
    """
    global _bark
    if threads:
        torch.set_num_threads(threads)
    _bark = minibark.Bark.from_pretrained(
        model, device=device, precision=precision, backend=backend
    )
    return machine_card(_bark.device), describe_backend(_bark.backend, _bark.device)


def generate(n_tokens: int, voice: str | None, seed: int) -> Round:
    """Generate one utterance of an exact length.

    Raises:
        ValueError: more tokens than the model makes at once.
    """
    config = _bark.config.generation
    if n_tokens > config.max_new_tokens:
        raise ValueError(f"--semantic-tokens must be at most {config.max_new_tokens}")
    loaded = _bark.load_voice(voice)
    limit_s = max_duration_s(n_tokens, config.semantic_rate_hz)
    seconds: dict[str, float] = {}
    seconds["semantic"], semantic = timed(
        lambda: _bark.text_to_semantic(
            TEXT, loaded, allow_early_stop=False, max_duration_s=limit_s, seed=seed
        ),
        _bark.device,
    )
    seconds["coarse"], coarse = timed(
        lambda: _bark.semantic_to_coarse(semantic, loaded, seed=seed), _bark.device
    )
    seconds["fine"], fine = timed(
        lambda: _bark.coarse_to_fine(coarse, loaded, seed=seed), _bark.device
    )
    seconds["codec"], audio = timed(lambda: _bark.decode(fine), _bark.device)
    assert len(semantic) == n_tokens
    n_frames = fine.shape[1]
    tokens = {
        "semantic": len(semantic),
        "coarse": coarse.numel(),
        "fine": n_frames,
        "codec": n_frames,
    }
    return Round(seconds, tokens, len(audio) / _bark.config.codec.sampling_rate)


def peaks() -> dict[str, int | None]:
    """The most memory that this process has used so far."""
    on_gpu = _bark.device.type == "cuda"
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(_bark.device) if on_gpu else None,
    }


def run(
    model: str, args: argparse.Namespace
) -> tuple[dict[str, Any], str, dict[str, list[Round]], dict[str, Any]]:
    """The machine card, what decodes, and per precision the timed rounds and the peak memory."""
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        workers = {
            precision: stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
            for precision in args.precision
        }
        for precision, worker in workers.items():
            opened = worker.submit(load, model, args.device, precision, args.backend, args.threads)
            card, decoding = opened.result()
        rounds: dict[str, list[Round]] = {precision: [] for precision in workers}
        for n in range(args.warmup + args.repeats):
            for precision, worker in workers.items():
                made = worker.submit(generate, args.semantic_tokens, args.voice, args.seed).result()
                if n >= args.warmup:
                    rounds[precision].append(made)
        memory = {precision: worker.submit(peaks).result() for precision, worker in workers.items()}
    return card, decoding, rounds, memory


def summarize(rounds: list[Round]) -> dict[str, Any]:
    """Medians of the timed rounds of one precision."""
    audio_s = rounds[0].audio_s
    totals = [sum(made.seconds.values()) for made in rounds]
    stages = {}
    for stage in STAGES:
        seconds = spread([made.seconds[stage] for made in rounds])
        tokens = rounds[0].tokens[stage]
        shares = [made.seconds[stage] / total for made, total in zip(rounds, totals, strict=True)]
        stages[stage] = {
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds["median"],
            "share": spread(shares)["median"],
        }
    return {
        "stages": stages,
        "total_s": spread(totals),
        "audio_s": audio_s,
        "rtf": spread([total / audio_s for total in totals]),
    }


def print_result(result: dict[str, Any]) -> None:
    """One precision as a table."""
    print(f"\n{result['precision']}")
    row = "{:<9} {:>7}  {:<24} {:>9}  {:>6}"
    print(row.format("stage", "tokens", "seconds (min-max)", "tokens/s", "share"))
    for stage, figures in result["stages"].items():
        per_s, share = f"{figures['tokens_per_s']:.1f}", f"{figures['share']:.0%}"
        print(row.format(stage, figures["tokens"], show(figures["seconds"]), per_s, share))
    print(row.format("total", "", show(result["total_s"]), "", "").rstrip())
    gpu = result["peak_gpu_bytes"]
    print(
        f"{result['audio_s']:.2f} s of audio, RTF {show(result['rtf'])}, lower is better; "
        f"peak RSS {result['peak_rss_bytes'] / 1e9:.2f} GB"
        + (f", peak GPU memory {gpu / 1e9:.2f} GB" if gpu is not None else "")
    )


def plot(results: list[dict[str, Any]], title: str, file: Path) -> None:
    """One bar per precision: the median seconds of its stages, end to end."""
    from matplotlib.figure import Figure

    results = results[::-1]  # the first on top
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(results)
    for stage in STAGES:
        seconds = [result["stages"][stage]["seconds"]["median"] for result in results]
        labels = [result["precision"] for result in results]
        bars = axes.barh(labels, seconds, left=left, label=stage)
        shown = [f"{s:.2g}" if s > 0.03 * result["total_s"]["median"] else "" for s, result in
                 zip(seconds, results, strict=True)]  # fmt: skip
        axes.bar_label(bars, shown, label_type="center", fontsize=8)
        left = [before + s for before, s in zip(left, seconds, strict=True)]
    axes.set_xlabel("seconds (lower is better)")
    figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time minibark's stages for one utterance of an exact length.",
        epilog="tokens: ids of the semantic and coarse stages, frames (75 a second) of the others. "
        "RTF is wall seconds over audio seconds. The last line is JSON.",
    )
    add_common_options(parser)
    add = parser.add_argument
    add(
        "--backend",
        choices=BACKENDS,
        help="what decodes: torch or triton (default: the fastest that can run)",
    )
    add("--plot", type=Path, metavar="PNG", help="draw the medians (needs matplotlib)")
    args = parser.parse_args()
    check_device(parser, args.device)
    check_output(parser, args.json, args.plot)
    check_plot(args.plot)
    try:
        with checkpoint(args.model, args.seed) as model:
            card, decoding, rounds, memory = run(model, args)
    except (ValueError, OSError) as error:
        sys.exit(f"bench_generate: {error}")
    results = [
        {"precision": precision, **summarize(made), **memory[precision]}
        for precision, made in rounds.items()
    ]
    print_card(card)
    title = (
        f"{args.model}, voice {args.voice}, {args.semantic_tokens} semantic tokens, "
        f"{args.repeats} rounds after {args.warmup}: medians"
    )
    print(f"{title}\ndecoding: {decoding}")
    for result in results:
        print_result(result)
    if args.plot:
        plot(results, f"{title}\n{card['gpu'] or card['cpu']}, {decoding}", args.plot)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    document = {
        "benchmark": "generate",
        "card": card,
        "settings": settings,
        "decoding": decoding,
        "results": results,
    }
    emit(document, args.json)


if __name__ == "__main__":
    main()
