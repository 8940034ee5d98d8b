"""Clocks, memory, medians and output that the benchmarks share."""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from checkpoints import RANDOM_MODELS

TEXT = "Hello, my name is Suno. And, uh, and I like pizza. [laughs]"

T = TypeVar("T")


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Wall seconds of a call, work on a GPU included, and what it returned."""
    _synchronize(device)
    start = time.perf_counter()
    result = call()
    _synchronize(device)
    return time.perf_counter() - start, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(values: dict[str, float], digits: int = 3) -> str:
    """A spread as `median (min-max)`."""
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    # ru_maxrss of a child starts at its parent's on Linux; VmHWM starts at zero.
    return _status_bytes("VmHWM:")


def rss_bytes() -> int:
    """The memory that this process has resident, mapped files included (at most, off Linux)."""
    return _status_bytes("VmRSS:")


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def max_duration_s(n_tokens: int, semantic_rate_hz: float) -> float:
    """The limit that gives exactly `n_tokens`: both Barks stop after the token that passes it."""
    return (n_tokens - 0.5) / semantic_rate_hz


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that both generation benchmarks have."""
    add = parser.add_argument
    add(
        "--model",
        default="small",
        help=f"{', '.join(RANDOM_MODELS)}: random weights of a released size, or of a tiny one to "
        "try the script out; else a directory or hub name (default: %(default)s)",
    )
    add(
        "--precision",
        nargs="+",
        default=["float32"],
        metavar="P",
        help="float32, bfloat16 ...; several are measured in turn, round by round (float32)",
    )
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own)")
    add(
        "--semantic-tokens",
        type=positive,
        default=100,
        metavar="N",
        help="exact length of the utterance, 49.9 a second (default: %(default)s)",
    )
    add("--voice", metavar="FILE", help=".npz voice, or a voice of the model (default: none)")
    add("--repeats", type=positive, default=5, metavar="N", help="timed rounds (%(default)s)")
    add("--warmup", type=int, default=1, metavar="N", help="rounds before them (%(default)s)")
    add("--seed", type=int, default=0, help="of random weights and tokens (%(default)s)")
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Where the figures go besides the last line of standard output."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the closing JSON line here too"
    )


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Refuse a device that this machine does not have."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: torch sees no GPU here")


def check_output(parser: argparse.ArgumentParser, *places: Path | None) -> None:
    """Refuse an output place before minutes of work rather than after them."""
    for place in places:
        if place is not None and not place.resolve().parent.is_dir():
            parser.error(f"the folder of {place} does not exist")


def check_plot(file: Path | None) -> None:
    """End here, with one plain line, if a plot is wanted and matplotlib is missing."""
    if file is not None and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install matplotlib")


def emit(document: dict[str, Any], file: Path | None) -> None:
    """Print one line of JSON, the last of every benchmark, and keep it if asked to."""
    line = json.dumps(document)
    print(line)
    if file is not None:
        file.write_text(line + "\n", encoding="utf-8")
