"""Progress bars on stderr, for the command line and for suno's functions."""

from __future__ import annotations

import sys
from typing import Any


class Bars:
    """One bar per stage, drawn from `on_step` calls.

    with Bars(quiet=False) as bars:
        bark.generate("Hello", on_step=bars.step)
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._stage: str | None = None
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def step(self, stage: str, done: int, total: int) -> None:
        """Advance the bar of `stage` to `done` of `total`; a new stage closes the one before."""
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(desc=f"{stage:<8}", total=total, disable=self.quiet, file=sys.stderr)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
