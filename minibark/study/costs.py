"""What each stage took: time, calls, memory, and what share of the memory's speed a step has."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..cpu.cache import is_in_bytes
from ..model import GPT
from ..pipeline import Pipeline
from ..precision import FLOATS
from .watch import Watched

_READ_BYTES = 1 << 27  # far beyond any cache


@dataclass(frozen=True)
class Cost:
    """What one stage took.

    Attributes:
        stage: which.
        seconds: of the loop, without loading.
        n_calls: of its model.
        n_positions: that those computed.
        step_s: median seconds of a step; None where there is none.
        step_bytes: that a step has to read, about: weights, and the cache half full.
        bandwidth_share: of the memory's speed that a step reaches, measured just then; or None.
        memory_bytes: the most that the process (on a GPU, torch there) has held until then; None
            where that cannot be told.
    """

    stage: str
    seconds: float
    n_calls: int
    n_positions: int
    step_s: float | None
    step_bytes: int | None
    bandwidth_share: float | None
    memory_bytes: int | None


class Clock:
    """Times the stages of a pipeline that is watched.

    Attributes:
        costs: of the stages that have run.
    """

    def __init__(self, pipeline: Pipeline, seen: dict[str, Watched]) -> None:
        self.costs: list[Cost] = []
        self._pipeline, self._seen = pipeline, seen
        self._read_rate: float | None = None

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Time the block, in which a stage runs; it is loaded before."""
        self._pipeline.module(stage)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        calls = self._seen[stage].calls if stage in self._seen else []
        steps = [call.seconds for call in calls if call.n_positions == 1]
        step_s = statistics.median(steps) if steps else None
        step_bytes = (
            self._step_bytes(stage, max(map(len, self._seen[stage].logits))) if steps else None
        )
        share = None
        if step_s and step_bytes:
            share = step_bytes / step_s / self._memory_rate()
        self.costs.append(
            Cost(
                stage,
                seconds,
                len(calls) or 1,
                sum(call.n_positions for call in calls),
                step_s,
                step_bytes,
                share,
                _memory(self._pipeline.choice.device),
            )
        )

    def _step_bytes(self, stage: str, n_ids: int) -> int:
        """The matrices of all layers and the head's rows, and keys and values of half a block."""
        model, choice = self._pipeline.module(stage), self._pipeline.choice
        assert isinstance(model, GPT)
        c = model.config
        size = {"int8": 1.0, "int4": 0.5}.get(choice.precision)
        size = size or FLOATS[choice.precision].itemsize
        on_cpu = 1 if is_in_bytes(model, choice.precision) else 4
        cache_size = on_cpu if choice.device.type == "cpu" else max(2.0, size)
        weights = c.n_layer * 12 * c.n_embd**2 + n_ids * c.n_embd
        return int(weights * size + c.n_layer * c.n_embd * c.block_size * cache_size)

    def _memory_rate(self) -> float:
        """Bytes per second that are read of a large array where the stages run."""
        if self._read_rate is None:
            device = self._pipeline.choice.device
            large = torch.ones(_READ_BYTES // 4, device=device)
            times = []
            for _ in range(4):
                start = time.perf_counter()
                float(large.sum())
                times.append(time.perf_counter() - start)
            self._read_rate = _READ_BYTES / min(times)
        return self._read_rate


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
