"""The model card that lies beside a classifier: what it is, how good, and what it cannot tell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import replacing, shown
from .classifier import Classifier
from .fitting import N_FOLDS, Rates, Report
from .pretrained import HUBERT

_SIGN = "Made by `minibark detect --fit`"  # tells a card from other files
_TEXT = """# {title}

A logistic regression on HuBERT's features that gives the probability that Bark made a recording.
{sign}: {command}. Used by {use}.

| | |
|---|---|
| Bark | {n_bark} recordings |
| Not Bark | {n_other} recordings, {copies} |
| Features | layer 6 of {hubert}, mean over windows of at most 10 s; {n_windows:,} windows |
| HuBERT's SHA-256 | `{fingerprint}` |
| Penalty | L2, {strength:g} (features brought to deviation 1) |

## How well it parts them

Each recording was judged by a classifier that had seen neither it nor its codec copy, one of
{n_folds} (cross-validation).

| Bark against | recordings | AP | EER | taken for Bark at 0.5 |
|---|---|---|---|---|
{rows}

Of {n_bark} recordings of Bark, {n_missed} got less than 0.5. AP: average precision, 1 is best. EER:
equal error rate, 0 is best and 0.5 is chance. Recordings unlike these give other figures.

## What it cannot tell

- It is a hint and no proof: do not accuse anybody by it.
- Other voices, words, rooms, microphones, languages, music or noise, other versions of Bark, and
  recordings that were compressed, cut, mixed or sent by telephone may be judged wrongly; so may
  other synthetic speech, in either direction.
{warning}"""

_NO_COPIES = """- **It was fitted without codec copies.** What Bark says comes out of a codec.
  A classifier that was shown no other sound out of it learns the codec, and takes every voice sent
  through it for fake. Fit again with `--codec-copies`.
"""


def card_place(classifier: str | os.PathLike[str]) -> Path:
    """Where the card of a classifier lies: `.md` behind its name, so `mine.safetensors.md`."""
    return Path(os.path.expanduser(f"{os.fspath(classifier)}.md"))


def check_no_card(classifier: str | os.PathLike[str]) -> None:
    """Refuse to write a classifier beside the card of another one; raises FileExistsError."""
    if _is_card(place := card_place(classifier)):
        raise FileExistsError(
            f"{shown(place, 1000)} is the card of another classifier, and would be taken for this "
            "one's: move it and its classifier away, or name another OUT.safetensors"
        )


def check_card_place(classifier: str | os.PathLike[str]) -> None:
    """Refuse to write a card over a file that is none; raises FileExistsError."""
    place = card_place(classifier)
    if place.is_file() and not _is_card(place):
        raise FileExistsError(
            f"{shown(place, 1000)} is there and is no card of a classifier; the card would "
            "replace it: move it away, or name another OUT.safetensors"
        )


def _is_card(place: Path) -> bool:
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return _SIGN.encode() in file.read(4096)


def write_both(
    classifier: Classifier, path: str | os.PathLike[str], report: Report, **card: Any
) -> None:
    """Write a classifier and its card, each whole or neither; `card` as of `card_text`.

    Raises:
        FileExistsError: what lies in the card's place is no card.
    """
    check_card_place(path)
    text = card_text(path, report, **card)
    with replacing(path) as part, replacing(card_place(path)) as card_part:
        classifier.save(part)
        card_part.write_text(text, encoding="utf-8")


def card_text(
    classifier: str | os.PathLike[str],
    report: Report,
    *,
    hubert: str,
    revision: str | None = None,
    fingerprint: str,
    strength: float,
    codec: str | None,
    command: Sequence[str],
) -> str:
    """The card.

    Args:
        classifier: the file that it describes.
        report: how the fit went.
        hubert: what the encoder was opened as.
        revision: of it on the hub, if one was named.
        fingerprint: of the encoder.
        strength: of the penalty.
        codec: through which the copies went; None if there are none.
        command: the words that made it.
    """
    against = {
        "recordings": report.recordings,
        "their codec copies": report.copies,
        "both": report.everything if report.copies else None,
    }
    use = ["minibark", "detect", "FILE", "--classifier", str(classifier)]
    use += [] if hubert == HUBERT else ["--hubert", hubert]
    use += [] if revision is None else ["--revision", revision]
    rows = [_row(name, rates) for name, rates in against.items() if rates is not None]
    n_copies = report.copies.n_other if report.copies else 0
    return _TEXT.format(
        sign=_SIGN,
        title=shown(Path(classifier).name),
        command=_code(shlex.join(command)),
        use=_code(shlex.join(use)),
        n_bark=report.recordings.n_bark,
        n_other=report.recordings.n_other,
        copies=f"{n_copies} codec copies of them by {_code(codec)}" if codec else "no codec copies",
        hubert=_code(hubert),
        n_windows=report.n_windows,
        fingerprint=fingerprint,
        strength=strength,
        n_folds=N_FOLDS,
        rows="\n".join(rows),
        n_missed=report.n_missed,
        warning="" if codec else _NO_COPIES,
    )


def _code(text: str) -> str:
    """A text as Markdown's code: between more backticks than it has in a row."""
    text = shown(text, 1000)
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _row(name: str, rates: Rates) -> str:
    share = f"{rates.n_false} of {rates.n_other}"
    precision, error = rates.average_precision, rates.equal_error_rate
    return (
        f"| {name} | {rates.n_bark} + {rates.n_other} | {precision:.3f} | {error:.3f} | {share} |"
    )
