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
        self.title = ""
        self._stage: str | None = None
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def step(self, stage: str, done: int, total: int) -> None:
        """Advance the bar of `stage` to `done` of `total`; a new stage closes the one before."""
        if self.quiet or sys.stderr is None:  # where there is none, tqdm would look for one
            return
        try:
            self._draw(stage, done, total)
        except (OSError, ValueError):  # a terminal that has gone, a full disk: no reason to stop
            self.quiet, self._bar = True, None

    def _draw(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(desc=f"{self.title}{stage:<8}", total=total, file=sys.stderr)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def pieces(self, first: int, end: int, n: int) -> None:
        """Name the pieces, of n, that the next bars are for."""
        self._close()
        one = f"{first + 1}" if end == first + 1 else f"{first + 1}-{end}"
        self.title = f"{one:>5} of {n} "

    def _close(self) -> None:
        bar, self._stage, self._bar = self._bar, None, None
        if bar is not None:
            try:
                bar.close()
            except (OSError, ValueError):
                self.quiet = True
