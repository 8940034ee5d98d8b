"""The pipeline as all requests share it: the one place that says how their rows run together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from ..options import Options
from ..pipeline import Pipeline, Row
from ..sampling import OnStep
from ..voice import Voice


def shared(pipeline: Pipeline, most_rows: int) -> Pipeline:
    """A pipeline whose `speak` many threads may call; it runs `most_rows` rows at most."""
    return cast(Pipeline, _InTurn(pipeline))


class _InTurn:
    """One call of `speak` after the other."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._lock = pipeline, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def speak(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Voice]:
        """As `Pipeline.speak`."""
        while not self._lock.acquire(timeout=0.1):
            if on_step:
                on_step("semantic", 0, 1)
        try:
            return self._pipeline.speak(rows, options, on_step)
        finally:
            self._lock.release()
