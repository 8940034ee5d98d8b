"""Seconds of single kernels: calls recorded in a CUDA graph, replayed between two events.

A kernel of some microseconds takes longer to launch than to run, so launches are recorded. Operands
that stay in the L2 cache would be read faster than a model reads its weights, so calls go round
over enough sets of them. On a CPU nothing is recorded, and the times mean nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measure import timed

Call = Callable[[], Any]

LAUNCHES = 64  # recorded at least, of a kernel
MIN_SETS = 8
MAX_SETS = 400
L2_BYTES = 64 << 20  # where torch does not say
WARM_S = 0.03  # replays before the first timed one, for the clocks to rise
COPY_BYTES = 1 << 29


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


def product_rate(device: torch.device) -> float:
    """Operations per second of torch's own product of two large matrices, in bfloat16."""
    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    if device.type != "cuda":
        return 2 * n**3 / min(timed(lambda: a @ b, device)[0] for _ in range(3))
    event_seconds(lambda: a @ b, 5)
    return 2 * n**3 / statistics.median(event_seconds(lambda: a @ b, 10))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, and the values that 20 and 80 % are below."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
    }
