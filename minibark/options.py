"""What callers bring: every knob of a generation, once, and tokens.

A knob is a field of `Options` with its default, its range and one line of help. Keywords in Python,
options on the command line and documents from outside are made from these fields and checked by
them, so that a bad value gives the same words wherever it comes in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from .sampling import OnStep, Sampling
from .text import LEVELS

TokensLike = Tensor | np.ndarray[Any, Any] | Sequence[int]
"""Tokens in any form that callers have them."""

Seed = int | torch.Generator | None
"""Where a random stream starts: a number, a stream to go on with, or None for torch's own."""

_LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Knob:
    """What is known of one field of `Options`.

    Attributes:
        kind: float, int, bool or str.
        must_be: what a value must be, in words.
        holds: whether a number is that.
        help: what it does, in one line.
        metavar: what stands for a value on the command line.
        flag: the command line's name for it; "" is the field's own.
        bare: the value that the flag alone stands for on the command line, if any.
        is_needed: whether None is refused.
    """

    kind: type
    must_be: str
    holds: Callable[[Any], bool]
    help: str
    metavar: str = ""
    flag: str = ""
    bare: str = ""
    is_needed: bool = False


def knob_field(*knob: Any, **more: Any) -> dict[str, Knob]:
    """The metadata of a field; arguments are those of `Knob`."""
    return {"knob": Knob(*knob, **more)}


def _temperature(stage: str) -> dict[str, Knob]:
    must_be = f"0 (greedy) or a positive number, {_LEAST_TEMPERATURE:g} or more"
    return knob_field(float, must_be, _is_temperature, f"{stage} stage; 0 is greedy", "T")


def _is_temperature(value: float) -> bool:
    """Whether logits can be divided by it; less makes them infinite, and no token can be drawn."""
    return value == 0 or _LEAST_TEMPERATURE <= value < math.inf


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _count(help: str) -> dict[str, Knob]:
    return knob_field(int, "a positive whole number", _positive, help, "N")


@dataclass(frozen=True)
class Knobs:
    """Fields that are checked when they are given; each has a `Knob` as its metadata."""

    def __post_init__(self) -> None:
        for name, knob in knobs(type(self)):
            object.__setattr__(self, name, _checked(name, knob, getattr(self, name)))

    @classmethod
    def from_dict(cls, document: object) -> Self:
        """These from an untrusted document, such as parsed JSON.

        Raises:
            ValueError: not a mapping, an unknown name or a bad value; the text names it.
        """
        if not isinstance(document, Mapping):
            raise ValueError(f"options must be an object, got {brief(document)}")
        _refuse_unknown(document, [name for name, _ in knobs(cls)], ValueError)
        return cls(**document)


@dataclass(frozen=True)
class Options(Knobs):
    """How to generate; None is off, or the model's own.

    Raises:
        ValueError: a value out of its range; the text names the field.
    """

    temperature: float | None = field(default=0.7, metadata=_temperature("text"))
    waveform_temperature: float | None = field(default=0.7, metadata=_temperature("coarse"))
    fine_temperature: float | None = field(default=0.5, metadata=_temperature("fine"))
    top_k: int | None = field(
        default=None,
        metadata=knob_field(
            int,
            "0 (off) or a positive whole number",
            lambda k: k >= 0,
            "text, coarse: keep the K likeliest tokens; 0 keeps all",
            "K",
        ),
    )
    top_p: float | None = field(
        default=None,
        metadata=knob_field(
            float,
            "in (0, 1]",
            lambda p: 0 < p <= 1,
            "text, coarse: keep the likeliest tokens up to this probability",
            "P",
        ),
    )
    min_eos_p: float | None = field(
        default=0.2,
        metadata=knob_field(
            float,
            "in [0, 1]",
            lambda p: 0 <= p <= 1,
            "end the text when its end is this likely; none: when the end is drawn",
            "P",
        ),
    )
    max_duration_s: float | None = field(
        default=None,
        metadata=knob_field(
            float, "positive", _positive, "stop after it (15.4)", "SECONDS", "--max-duration"
        ),
    )
    allow_early_stop: bool = field(
        default=True,
        metadata=knob_field(
            bool,
            "True or False",
            lambda _: True,
            "end where the model does, not at the limit",
            is_needed=True,
        ),
    )
    max_coarse_history: int | None = field(
        default=None, metadata=_count("coarse ids in front of a window (630)")
    )
    sliding_window_len: int | None = field(
        default=None,
        metadata=_count("coarse ids made per window (60); more is faster and may lose words"),
    )
    seed: Seed = field(
        default=None,
        metadata=knob_field(
            int,
            "a whole number in [0, 2**63)",
            lambda n: 0 <= n < 2**63,
            "same seed, same sound",
            "N",
        ),
    )

    normalize: str | None = field(
        default=None,
        metadata=knob_field(
            str,
            f"one of {', '.join(LEVELS)}",
            LEVELS.__contains__,
            "write what the vocabulary lacks (quotes, dashes) as what it has; all: drop emoji, "
            "Markdown, SSML too",
            "{" + ",".join(LEVELS) + "}",
            "--plain-text",
            "plain",
        ),
    )

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The random stream that the seed stands for."""
        if isinstance(self.seed, int):
            return torch.Generator(device).manual_seed(self.seed)
        return self.seed

    @property
    def text_sampling(self) -> Sampling:
        """How the text stage chooses."""
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def coarse_sampling(self) -> Sampling:
        """How the coarse stage chooses."""
        return Sampling(self.waveform_temperature, self.top_k, self.top_p)

    @property
    def fine_sampling(self) -> Sampling:
        """How the fine stage chooses."""
        return Sampling(self.fine_temperature)


class GenerateOptions(TypedDict, total=False):
    """The keywords of `Bark.generate`: the fields of `Options`, and a callback."""

    temperature: float | None
    waveform_temperature: float | None
    fine_temperature: float | None
    top_k: int | None
    top_p: float | None
    min_eos_p: float | None
    max_duration_s: float | None
    allow_early_stop: bool
    max_coarse_history: int | None
    sliding_window_len: int | None
    seed: Seed
    normalize: str | None
    on_step: OnStep | None


def refuse_unknown(keywords: Iterable[object], known: Sequence[str]) -> None:
    """TypeError, as of any function, for a keyword that is not known; near ones are named."""
    _refuse_unknown(keywords, known, TypeError)


def _refuse_unknown(
    names: Iterable[object], known: Sequence[str], kind: type[ValueError] | type[TypeError]
) -> None:
    for name in names:
        if name not in known:
            raise kind(f"unknown option {brief(name)}; {hint_of(name, known)}")


def hint_of(name: object, known: Sequence[str]) -> str:
    """What somebody may have meant by a name that is not known."""
    near = difflib.get_close_matches(str(name)[:80], known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def knobs(kind: type[Knobs] = Options) -> Iterator[tuple[str, Knob]]:
    """The fields of `Options`, or of other knobs, by name."""
    for each in dataclasses.fields(kind):
        yield each.name, each.metadata["knob"]


def flag_of(name: str, knob: Knob) -> str:
    """The command line's name of a field."""
    return knob.flag or "--" + name.replace("_", "-")


def _checked(name: str, knob: Knob, value: Any) -> Any:
    """The value as a plain Python number, if it is one that the knob can have."""
    if isinstance(value, torch.Generator) and name == "seed":
        return value
    if value is None and not knob.is_needed:
        return None
    kinds: dict[type, tuple[type, ...]] = {
        float: (int, float, np.integer, np.floating),
        int: (int, np.integer),
        bool: (bool, np.bool_),
        str: (str,),
    }
    if knob.kind is int and isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    is_bool = isinstance(value, (bool, np.bool_))
    if isinstance(value, kinds[knob.kind]) and is_bool == (knob.kind is bool):
        # As it will be kept: a number may be within bounds and too large for a float.
        with contextlib.suppress(OverflowError):
            if knob.holds(plain := knob.kind(value)):
                return plain
    raise ValueError(f"{name} must be {knob.must_be}, got {brief(value)}")


def token_ids(tokens: TokensLike, name: str, ndim: int, end: int) -> Tensor:
    """Tokens of a caller as int64 on the CPU.

    Args:
        tokens: of `ndim` dimensions, whole numbers in [0, end).
        name: what to call them in an error.
        ndim: how many dimensions they must have.
        end: one more than the largest.

    Raises:
        ValueError: others.
    """
    try:
        array = tokens.cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of whole numbers: {error}") from error
    if array.dtype.kind not in "iu" and (array.size or array.dtype.kind != "f"):
        or_text = (
            " (token ids) or be one str; generate_batch takes a list" if name == "text" else ""
        )
        raise ValueError(f"{name} must hold whole numbers{or_text}, got {brief(tokens)}")
    if name == "text" and not array.ndim:
        raise ValueError(f"text must be str or token ids, got {brief(tokens)}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {array.shape}")
    if array.size and not 0 <= array.min() <= array.max() < end:
        raise ValueError(f"{name} must hold ids in [0, {end}), got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64, order="C"))


def code_ids(tokens: TokensLike, name: str, end: int, least: int, most: int) -> Tensor:
    """Codes of a caller, (K, T) in [0, end) with K from `least` to `most`; as `token_ids`."""
    codes = token_ids(tokens, name, 2, end)
    if not least <= len(codes) <= most:
        rows = f"({most}, T)" if least == most else f"(K, T) with K from {least} to {most}"
        raise ValueError(f"{name} must be {rows}, got {tuple(codes.shape)}")
    return codes


def document(kind: type[Knobs]) -> None:
    """Write the fields and their help into the docstring."""
    lines = [f"        {name}: {knob.help}." for name, knob in knobs(kind)]
    kind.__doc__ = f"{kind.__doc__}\n    Attributes:\n" + "\n".join(lines)


document(Options)
