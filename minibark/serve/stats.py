"""What has become of requests: counts, and medians of the last ones."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_RECENT = 1000


@dataclass(frozen=True)
class Served:
    """A request that got its sound.

    Attributes:
        first_s: seconds from its coming to the first sound that went out.
        waited_s: seconds of these in the queue.
        audio_s: seconds of sound.
        work_s: seconds that making and sending it took.
    """

    first_s: float
    waited_s: float
    audio_s: float
    work_s: float


class Stats:
    """Counts since the start; who counts does so on the event loop alone."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._statuses: Counter[str] = Counter()
        self._recent: deque[Served] = deque(maxlen=_RECENT)
        self._audio_s = 0.0

    def count(self, outcome: int | str) -> None:
        """A speech request that ended: the status it was refused with, or `"gone"`."""
        self._statuses[str(outcome)] += 1

    def served(self, one: Served) -> None:
        """A request that got its sound."""
        self._statuses["200"] += 1
        self._audio_s += one.audio_s
        self._recent.append(one)

    def document(self) -> dict[str, Any]:
        """As `/stats` says it."""
        recent = list(self._recent)
        return {
            "uptime_s": round(time.monotonic() - self._begin, 1),
            "requests": {"total": self._statuses.total(), **self._statuses},
            "audio_s": round(self._audio_s, 2),
            "first_sound_s": _middle(one.first_s for one in recent),
            "waited_s": _middle(one.waited_s for one in recent),
            "rtf": _middle(one.work_s / one.audio_s for one in recent if one.audio_s),
        }


def _middle(values: Iterable[float]) -> dict[str, float | None]:
    """Median and 99th percentile."""
    held = list(values)
    if not held:
        return {"median": None, "p99": None}
    median, p99 = np.percentile(held, [50, 99])
    return {"median": round(float(median), 4), "p99": round(float(p99), 4)}
