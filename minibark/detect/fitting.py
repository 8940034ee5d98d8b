"""A classifier of one's own: two folders of recordings in, weights and honest figures out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import shown, warn
from .classifier import Classifier
from .containers import AudioError
from .detector import THRESHOLD, recording_features
from .hubert import SAMPLE_RATE, Hubert
from .pretrained import fingerprint
from .recordings import digest, window
from .regression import Flags, Floats, average_precision, equal_error_rate, fit
from .resample import resample

N_FOLDS = 5
STRENGTH = 0.25  # of the penalty; less learns a few hundred windows by heart (docs/detect.md)
SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus"),
    *(".mp1", ".mp2", ".mp3", ".aiff", ".aif", ".aifc", ".caf", ".au", ".snd", ".voc"),
    *(".avr", ".htk", ".iff", ".svx", ".8svx", ".nist", ".sph", ".paf", ".pvf"),
    *(".mat", ".sds", ".sf", ".wve", ".xi"),
)  # in any case; with others, of soundfile's, it cannot tell what is in them

# What `minibark batch` writes beside its clips, where the first of them is.
BATCH_MARK, _BATCH_ERRORS = ".minibark-batch", "errors.jsonl"

OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CodecCopier:
    """Sends sound through a codec.

    Attributes:
        copy: makes (n,) float32 of (n,) float32, about [-1, 1], both at `sample_rate`.
        sample_rate: Hz.
        name: of the codec.
    """

    copy: Callable[[Tensor], Tensor]
    sample_rate: int
    name: str

    def __call__(self, audio: np.ndarray[Any, Any], sample_rate: int) -> Tensor:
        """What HuBERT hears of samples (n, channels): their mean's copy, (n,) at 16_000 Hz."""
        copied = self.copy(window(audio, sample_rate, self.sample_rate))
        return resample(copied, self.sample_rate, SAMPLE_RATE)


@dataclass(frozen=True)
class Example:
    """A recording, or a codec copy of one, as its windows' features.

    Attributes:
        rows: (windows, C).
        is_bark: whether Bark made it.
        is_copy: whether it went through the codec.
        group: of it and its copies; all are in one fold.
    """

    rows: Floats
    is_bark: bool
    is_copy: bool
    group: int


@dataclass(frozen=True)
class Rates:
    """Bark against others, each recording judged by a classifier that saw neither it nor its copy.

    Attributes:
        n_bark: recordings of Bark.
        n_other: those held against them.
        average_precision: 1 is best; by chance n_bark / (n_bark + n_other).
        equal_error_rate: 0 is best, 0.5 chance.
        n_false: of the others, those that get P(Bark) of at least 0.5.
    """

    n_bark: int
    n_other: int
    average_precision: float
    equal_error_rate: float
    n_false: int


@dataclass(frozen=True)
class Report:
    """How a fit went: Bark against all others, against recordings and against codec copies.

    Attributes:
        everything: the rates against both.
        recordings: against recordings as they are.
        copies: against their codec copies; None if there are none.
        n_missed: recordings of Bark with P(Bark) under 0.5.
        n_windows: of all examples.
    """

    everything: Rates
    recordings: Rates
    copies: Rates | None
    n_missed: int
    n_windows: int


def recordings_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The recordings in a folder and those below it, by name; a warning says what is left out.

    Links to files are followed, links to folders are not.

    Raises:
        FileNotFoundError: no such folder, or none in it.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(root, 1000)}")
    found: list[Path] = []
    left: dict[str, list[str]] = {}

    def leave(kind: str, path: str | os.PathLike[str]) -> None:
        left.setdefault(kind, []).append(os.path.relpath(path, root))

    for place, folders, names in os.walk(
        root, onerror=lambda error: leave("folders that cannot be read", error.filename)
    ):
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                leave("links to folders", os.path.join(place, name))
        for name in _without_records(names):
            path = Path(place, name)
            if path.suffix.lower() not in SUFFIXES:
                leave("files that are no recordings by their suffix", path)
            elif not os.path.isfile(path):
                leave("links to nothing, or what is no file", path)
            else:
                found.append(path)
    if left:
        each = (
            f"{len(places)} {kind} ({shown(', '.join(sorted(places)[:3]))}"
            f"{', ...' if len(places) > 3 else ''})"
            for kind, places in left.items()
        )
        warn(f"left out of {shown(root, 1000)}: {'; '.join(each)}")
    if not found:
        raise FileNotFoundError(f"{shown(root, 1000)} holds no recordings ({', '.join(SUFFIXES)})")
    return sorted(found)


def _without_records(names: Sequence[str]) -> list[str]:
    """A folder's files but those that tell of the clips of a batch."""
    if BATCH_MARK not in names:
        return list(names)
    parts = map(os.path.splitext, names)
    own = {f"{stem}.json" for stem, suffix in parts if suffix.lower() in SUFFIXES}
    own |= {BATCH_MARK, _BATCH_ERRORS}
    return [name for name in names if name not in own]


def check_apart(bark: str | os.PathLike[str], others: str | os.PathLike[str]) -> None:
    """Refuse two classes of which one's folder is the other's, or lies in it; a ValueError."""
    places = [Path(os.path.realpath(os.path.expanduser(place))) for place in (bark, others)]
    for inner, outer in ((0, 1), (1, 0)):
        if places[inner].is_relative_to(places[outer]):
            names = [shown(os.fspath((bark, others)[i]), 1000) for i in (inner, outer)]
            how = "the same folder as" if places[0] == places[1] else "a folder in"
            raise ValueError(
                f"{names[0]} is {how} {names[1]}, so that its recordings would be both Bark's and "
                "not; put the two classes side by side"
            )


def distinct(
    bark: Sequence[Path], others: Sequence[Path], on_step: OnStep | None = None
) -> tuple[list[Path], list[Path]]:
    """The two classes without what cannot be read, and without what a class has twice.

    Two are one if their samples and rate are the same, whatever their files are.

    Args:
        bark: recordings that Bark made.
        others: recordings that it did not.
        on_step: is told of `"reading"`, how many recordings are done, and of how many.

    Raises:
        ValueError: a recording is in both, or a class has fewer than there are folds.
    """
    seen: dict[bytes, tuple[Path, int]] = {}
    kept: tuple[list[Path], list[Path]] = ([], [])
    places = [(path, 0) for path in bark] + [(path, 1) for path in others]
    for n_done, (path, i) in enumerate(places, 1):
        try:
            first, its_class = seen.setdefault(digest(path), (path, i))
        except (AudioError, OSError) as error:
            _leave_out(path, error)
        else:
            if its_class != i:
                raise ValueError(
                    f"one recording is in both classes: {shown(first)} and {shown(path)}"
                )
            if first == path:
                kept[i].append(path)
            else:
                warn(f"{shown(path)} is {shown(first)} again and is left out")
        if on_step is not None:
            on_step("reading", n_done, len(places))
    for i in (0, 1):
        _check_number(len(kept[i]), i == 0)
    return kept


def _leave_out(path: Path, error: Exception) -> None:
    words = error.strerror if isinstance(error, OSError) else None
    warn(f"left out: {shown(path, 1000)}: {words}" if words else f"left out: {error}")


def _check_number(n: int, is_bark: bool) -> None:
    if n < N_FOLDS:
        kind = "of Bark" if is_bark else "that are not of Bark"
        raise ValueError(
            f"there are {n} recordings {kind}, and at least {N_FOLDS} are needed, one for each fold"
        )


def examples_of(
    hubert: Hubert,
    bark: Sequence[Path],
    others: Sequence[Path],
    copier: CodecCopier | None = None,
    on_step: OnStep | None = None,
) -> list[Example]:
    """The examples of two classes; what cannot be read is left out, with a warning.

    Args:
        hubert: the encoder.
        bark: recordings that Bark made.
        others: recordings that it did not.
        copier: adds a copy of each of the others; None adds none.
        on_step: is told of `"features"`, how many recordings are done, and of how many.

    Raises:
        ValueError: fewer of a class are left than there are folds.
    """
    found: list[Example] = []
    places = [(path, True) for path in bark] + [(path, False) for path in others]
    for group, (path, is_bark) in enumerate(places):
        if on_step is not None:
            on_step("features", group, len(places))
        try:
            ways: list[Callable[..., Tensor]] = [window]
            if copier is not None and not is_bark:
                ways.append(copier)
            rows = [recording_features(hubert, path, way)[0] for way in ways]
        except (AudioError, OSError) as error:
            _leave_out(path, error)
            continue
        found += [
            Example(np.stack(some).astype(np.float64), is_bark, i == 1, group)
            for i, some in enumerate(rows)
        ]
    if on_step is not None:
        on_step("features", len(places), len(places))
    for is_bark in (True, False):
        _check_number(sum(e.is_bark == is_bark and not e.is_copy for e in found), is_bark)
    return found


def fit_classifier(
    examples: Sequence[Example], hubert: Hubert, strength: float = STRENGTH
) -> tuple[Classifier, Report]:
    """The classifier of all examples, and how well such classifiers judge what they did not see.

    Each window is an example; recordings are judged as a detector does, by the mean of their
    windows. Nothing is drawn but the folds, and those always the same.

    Args:
        examples: at least five recordings of each class.
        hubert: whose features they are.
        strength: of the penalty, see `regression.fit`.
    """
    scores = _unseen_scores(examples, strength)
    is_bark = np.array([example.is_bark for example in examples])
    is_copy = np.array([example.is_copy for example in examples])
    everything, recordings = np.ones(len(examples), bool), ~is_copy
    report = Report(
        _rates(scores, is_bark, everything),
        _rates(scores, is_bark, recordings),
        _rates(scores, is_bark, is_bark | is_copy) if is_copy.any() else None,
        int((scores[is_bark] < THRESHOLD).sum()),
        sum(len(example.rows) for example in examples),
    )
    weight, bias = fit(*_windows(examples), strength)
    return Classifier(weight, bias, fingerprint(hubert)), report


def folds_of(examples: Sequence[Example]) -> list[int]:
    """The fold of each example: each class is spread evenly, groups stay together."""
    fold: dict[int, int] = {}
    for is_bark in (True, False):
        groups = sorted({example.group for example in examples if example.is_bark == is_bark})
        random.Random(0).shuffle(groups)
        fold |= {group: i % N_FOLDS for i, group in enumerate(groups)}
    return [fold[example.group] for example in examples]


def _unseen_scores(examples: Sequence[Example], strength: float) -> Floats:
    scores, folds = np.zeros(len(examples)), folds_of(examples)
    for k in range(N_FOLDS):
        seen = [example for example, fold in zip(examples, folds, strict=True) if fold != k]
        classifier = Classifier(*fit(*_windows(seen), strength))
        for i, (example, fold) in enumerate(zip(examples, folds, strict=True)):
            if fold == k:
                scores[i] = np.mean([classifier.probability(row) for row in example.rows])
    return scores


def _windows(examples: Sequence[Example]) -> tuple[Floats, Flags]:
    rows = np.concatenate([example.rows for example in examples])
    return rows, np.repeat([e.is_bark for e in examples], [len(e.rows) for e in examples])


def _rates(scores: Floats, is_bark: Flags, chosen: Flags) -> Rates:
    scores, is_bark = scores[chosen], is_bark[chosen]
    return Rates(
        int(is_bark.sum()),
        int((~is_bark).sum()),
        average_precision(scores, is_bark),
        equal_error_rate(scores, is_bark),
        int((scores[~is_bark] >= THRESHOLD).sum()),
    )
