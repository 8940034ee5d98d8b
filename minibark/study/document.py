"""A trace as plain numbers, ready for JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from ..files import replacing
from .draws import Array, Draws
from .sound import difference
from .tracing import Trace
from .words import MOST_TEXT, shown_words

VERSION = 2
"""Of the document; it changes when a name or a meaning does."""


def numbers(trace: Trace) -> dict[str, Any]:
    """All of a trace but the sound itself; of attention, that of the heads that were picked.

    Of a text that is far too long the first words that found no slot are here, and the count of
    the others, `n_words_left_out`; of more than 20,000 characters those, and the count of the
    others, `n_characters_left_out`. `settings` has the text whole, as it was given.

    Names are those of `Trace` and what it is made of; times are in seconds, rows as in the arrays.
    """
    shown, n_left = shown_words(trace.words)
    found, rate_hz = trace.alignment, trace.config.codec.sampling_rate
    attention = {
        f"{head.layer}.{head.head}": _plain(trace.attention[head.layer, head.head])
        for head in found.heads
    }
    apart = {depth: difference(a, trace.audio, rate_hz) for depth, a in trace.depths.items()}
    return {
        "version": VERSION,
        "text": trace.text[:MOST_TEXT],
        "n_characters_left_out": max(0, len(trace.text) - MOST_TEXT),
        "words": [dataclasses.asdict(word) for word in shown],
        "n_words_left_out": n_left,
        "histories": dataclasses.asdict(trace.histories),
        "duration_s": trace.duration_s,
        "rates_hz": {
            "semantic": trace.config.generation.semantic_rate_hz,
            "codes": trace.config.generation.coarse_rate_hz,
            "samples": rate_hz,
        },
        "semantic": _draws(trace.semantic) | {"end_p": _plain(trace.end_p), "ended": trace.ended},
        "alignment": {
            "heads": [dataclasses.asdict(head) for head in found.heads],
            "scores": _plain(found.scores),
            "slots": _plain(found.slots),
            "words": [
                {"text": trace.words[time.word].text, **dataclasses.asdict(time)}
                for time in found.words
            ],
            "attention": attention,
        },
        "coarse": _draws(trace.coarse)
        | {"windows": [dataclasses.asdict(window) for window in trace.windows]},
        "fine": _draws(trace.fine) | {"n_predicted": _plain(trace.n_predicted)},
        "depths": [
            {
                "codebooks": depth,
                "error_db": one.error_db if np.isfinite(one.error_db) else None,
                "spectral_db": one.spectral_db,
            }
            for depth, one in apart.items()
        ],
        "costs": [dataclasses.asdict(cost) for cost in trace.costs],
        "settings": trace.settings,
        "config": trace.config.to_dict(),
    }


def save_numbers(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write `numbers` as JSON, whole or not at all; OSError where it cannot be written."""
    check_place(path)
    content = json.dumps(numbers(trace), allow_nan=False).encode("ascii")
    with replacing(path) as part:
        part.write_bytes(content + b"\n")


def check_place(path: str | os.PathLike[str]) -> None:
    """IsADirectoryError, which names it, where a file is to be written over a folder."""
    place = os.path.realpath(os.path.expanduser(path))  # as `replacing` does; "" is the folder here
    if os.path.isdir(place):
        raise IsADirectoryError(f"{place} is a folder; name a file in it")


def _draws(draws: Draws) -> dict[str, Any]:
    return {name: _plain(values) for name, values in vars(draws).items()}


def _plain(values: Array) -> Any:
    """Lists of whole numbers, or of numbers with as many digits as float32 tells apart."""
    if values.dtype.kind == "f":
        digits = [float(f"{value:.6g}") for value in values.ravel().tolist()]
        return np.array(digits, np.float64).reshape(values.shape).tolist()
    return values.tolist()
