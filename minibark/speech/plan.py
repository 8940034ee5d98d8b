"""How the pieces of a long text follow one another: knobs of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..options import (
    GenerateOptions,
    Knobs,
    Options,
    document,
    knob_field,
    knobs,
    refuse_unknown,
)
from ..sampling import OnStep
from .split import GOAL, MAX_PAUSE_S

_HISTORY = re.compile(r"fixed|chained|reset:[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class LongOptions(Knobs):
    """How to say a long text.

    Raises:
        ValueError: a value out of its range; the text names the field.
    """

    history: str = field(
        default="fixed",
        metadata=knob_field(
            str,
            "fixed, chained or reset:N with N from 1",
            _HISTORY.fullmatch,
            "fixed: each piece in the given voice, or the first piece's; chained: each goes on "
            "from the last; reset:N: chained, and back to the voice after N pieces",
            "HOW",
            is_needed=True,
        ),
    )
    silence_s: float = field(
        default=0.25,
        metadata=knob_field(
            float,
            f"a number in [0, {MAX_PAUSE_S:.0f}]",
            lambda s: 0 <= s <= MAX_PAUSE_S,
            "silence between pieces",
            "SECONDS",
            "--silence",
            is_needed=True,
        ),
    )
    retries: int = field(
        default=2,
        metadata=knob_field(
            int,
            "a whole number in [0, 100]",
            lambda n: 0 <= n <= 100,
            "times a piece that went wrong is made again, with other seeds",
            "N",
            is_needed=True,
        ),
    )
    goal: int | None = field(
        default=None,
        metadata=knob_field(
            int,
            "a whole number in [20, 1000]",
            lambda n: 20 <= n <= 1000,
            f"characters that a piece should have ({GOAL}, or less if the model reads little)",
            "N",
            "--piece-length",
        ),
    )
    language: str = field(
        default="en",
        metadata=knob_field(
            str,
            "a code of two or three letters",
            re.compile("[a-z]{2,3}").fullmatch,
            "of the text, by whose rules sentences are found",
            "CODE",
            is_needed=True,
        ),
    )

    @property
    def chain_length(self) -> int:
        """Pieces that go on from one another before the given voice comes back."""
        if self.history == "fixed":
            return 1
        return int(self.history.partition(":")[2] or 10**9)


class LongKeywords(GenerateOptions, total=False):
    """The keywords of `Bark.generate_long`: the fields of both kinds of options, and a callback."""

    history: str
    silence_s: float
    retries: int
    goal: int | None
    language: str


def one_utterance(keywords: Mapping[str, Any]) -> Options:
    """The options of one utterance, checked.

    Raises:
        TypeError: an unknown keyword, or one of long texts.
    """
    for name, _ in knobs(LongOptions):
        if name in keywords:
            raise TypeError(f"{name} is an option of generate_long and stream, not of this")
    refuse_unknown(keywords, list(dict(knobs())))
    return Options(**keywords)


def sorted_out(keywords: LongKeywords) -> tuple[Options, LongOptions, OnStep | None]:
    """The two kinds of options, checked, and the callback."""
    given: dict[str, Any] = {**keywords}
    on_step = given.pop("on_step", None)
    ours = {name: given.pop(name) for name, _ in knobs(LongOptions) if name in given}
    refuse_unknown(given, [*dict(knobs()), *dict(knobs(LongOptions))])
    return Options(**given), LongOptions(**ours), on_step


document(LongOptions)
