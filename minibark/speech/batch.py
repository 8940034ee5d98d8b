"""Many rows, in groups that go through the pipeline together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as brief
from typing import Any

import numpy as np

from ..checkpoint.voices import VoiceLike
from ..options import Options, Seed, TokensLike
from ..pipeline import Pipeline, Row
from ..sampling import OnStep
from ..voice import Voice

MOST_ROWS = 8
"""Rows at once: more of them make no more sound a second on a CPU, and take more memory."""


def positive(value: object, name: str) -> int:
    """A number of rows or clips; ValueError for anything but a positive whole number."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise ValueError(f"{name} must be a positive whole number, got {brief(value)}")


def in_groups(
    pipeline: Pipeline,
    rows: Sequence[Row],
    options: Options,
    on_step: OnStep | None = None,
    most: int = MOST_ROWS,
) -> Iterator[Voice]:
    """The voices of rows, in order; each is what it is alone.

    Rows that draw from one stream (no seeds) take turns in it, one after the other.
    """
    if len({id(row.generator) for row in rows}) < len(rows):
        most = 1
    for first in range(0, len(rows), most):
        yield from pipeline.speak(rows[first : first + most], options, on_step)


def asked_for(
    texts: Sequence[str | TokensLike],
    voices: VoiceLike | Sequence[VoiceLike],
    seeds: Seed | Sequence[Seed],
    n: int,
    options: Options,
) -> list[tuple[str | TokensLike, VoiceLike, Options]]:
    """The text, voice and options of each clip.

    Raises:
        ValueError: one text where a list belongs, lists of unequal lengths, or a bad n or seed.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list; for one text use generate, or [{texts!r:.40}]")
    if isinstance(texts, (bytes, Mapping)) or not hasattr(texts, "__getitem__"):
        raise ValueError(f"texts must be a list, not {type(texts).__name__}")
    positive(n, "n")
    if seeds is not None and options.seed is not None:
        raise ValueError("seed and seeds were both given; give one of them")
    n_clips = len(texts) * n
    each: list[Any] = list(voices) if isinstance(voices, (list, tuple)) else [voices] * len(texts)
    if len(each) != len(texts):
        raise ValueError(f"there are {len(texts)} texts and {len(each)} voices; give one for each")
    numbered: list[Any]
    if isinstance(seeds, (Sequence, np.ndarray)) and not isinstance(seeds, str):
        numbered = list(seeds)
    else:
        first = dataclasses.replace(options, seed=options.seed if seeds is None else seeds).seed
        numbered = [
            (first + i) % 2**63 if isinstance(first, int) else first for i in range(n_clips)
        ]
    if len(numbered) != n_clips:
        raise ValueError(f"there are {n_clips} clips and {len(numbered)} seeds; give one for each")
    asked = []
    for i, seed in enumerate(numbered):
        with of_item("seeds", i):
            own = dataclasses.replace(options, seed=seed)
        asked.append((texts[i // n], each[i // n], own))
    return asked


@contextlib.contextmanager
def of_item(name: str, index: int) -> Iterator[None]:
    """Make what a caller's list is wrong in begin with where: `texts[3]: ...`."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}[{index}]: {error}") from error
