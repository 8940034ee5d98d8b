"""The detector: recordings in, the probability that Bark made them out.

    audio    (N,) any rate; in equal windows of at most 10 s, each at 16_000 Hz
      | HuBERT's sixth layer, the mean over the frames of a window
    features (C,), C = 768
      | logistic regression
    P(Bark)  in [0, 1]; of several windows the mean

Source: suno-ai/bark, notebooks/fake_classifier.ipynb; windows are ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..config import CheckpointError
from ..surroundings import running
from .classifier import Classifier
from .containers import AudioError
from .hubert import Hubert
from .pretrained import HUBERT, fingerprint, open_hubert
from .recordings import Place, opened, read, window, windows

THRESHOLD = 0.5  # the notebook gives none
_Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Judgement:
    """What is thought of a recording.

    Attributes:
        probability: that Bark made it, the mean over its windows. A hint and no proof.
        windows: the probability of each.
        seconds: how long it is.
        starts: the second at which each window begins.
    """

    probability: float
    windows: tuple[float, ...]
    seconds: float
    starts: tuple[float, ...]

    @property
    def highest(self) -> tuple[float, float]:
        """The highest probability of a window, and the second at which that window begins."""
        place = int(np.argmax(self.windows))
        return self.windows[place], self.starts[place]

    @property
    def verdict(self) -> str:
        """The same in words."""
        is_bark = self.probability >= THRESHOLD
        if self.probability == THRESHOLD:
            return "could be Bark or not to this classifier"
        return f"{'sounds' if is_bark else 'does not sound'} like Bark to this classifier"


class Detector:
    """Says how probable it is that Bark made a recording.

    One Detector may be used by many threads.
    """

    def __init__(self, hubert: Hubert, classifier: Classifier, name: str = "this HuBERT") -> None:
        """Take an encoder and a classifier.

        Raises:
            CheckpointError: they do not belong together.
        """
        known = classifier.fingerprint is not None
        print_of_hubert = fingerprint(hubert) if known else ""
        classifier.check(hubert.config.hidden_size, print_of_hubert, name)
        self.hubert, self.classifier = hubert, classifier

    @classmethod
    def from_pretrained(
        cls,
        hubert: str | os.PathLike[str] = HUBERT,
        classifier: str | os.PathLike[str] = "classifier.safetensors",
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        offline: bool = False,
    ) -> Detector:
        """Open both.

        Args:
            hubert: hub repository or directory of a HuBERT of base's architecture.
            classifier: safetensors file with `weight` (1, C) and `bias` (1,). None ships with
                minibark: `minibark detect --import-classifier` and `--fit` make one.
            cache_dir: the hub's cache and ours; None is the usual place of each.
            revision: branch, tag or commit of the HuBERT on the hub.
            offline: never ask the hub, use what is cached.

        Raises:
            FileNotFoundError: nothing there, or a file is missing.
            CheckpointError: files that are damaged or do not fit together.
        """
        line = Classifier.load(classifier)
        encoder = open_hubert(hubert, cache_dir=cache_dir, revision=revision, offline=offline)
        return cls(encoder, line, os.fspath(hubert))

    def features(self, audio: _Array | Tensor, sample_rate: int) -> _Array:
        """The features of a recording, (C,) float32; of several windows their mean.

        Args:
            audio: (N,) or (N, channels) floats in about [-1, 1], of which nothing is normalised; an
                array or a tensor.
            sample_rate: Hz, a whole number in [1_000, 384_000].

        Raises:
            AudioError: shorter than 25 ms, not finite, or of another shape or type.
        """
        rows = list(features_of(self.hubert, windows(audio, sample_rate)))
        mean: _Array = np.mean(_some(rows), axis=0, dtype=np.float32)
        return mean

    def probability(self, audio: _Array | Tensor, sample_rate: int) -> float:
        """P(Bark), in [0, 1]; the mean over windows. Arguments and errors as of `features`."""
        rows = list(features_of(self.hubert, windows(audio, sample_rate)))
        return float(np.mean([self.classifier.probability(row) for row in _some(rows)]))

    def judge(self, place: Place) -> Judgement:
        """What is thought of a file, or of what an open one has; only 10 s of it are in memory.

        Raises:
            AudioError: as of `features`, or not an audio file; the text names it.
            OSError: it cannot be read.
            TypeError: neither a path nor a file that is open to read bytes.
        """
        rows, starts, seconds = recording_features(self.hubert, place)
        found = [self.classifier.probability(row) for row in rows]
        return Judgement(float(np.mean(found)), tuple(found), seconds, tuple(starts))


def recording_features(
    hubert: Hubert, place: Place, heard: Callable[[_Array, int], Tensor] = window
) -> tuple[list[_Array], list[float], float]:
    """The features (C,) of each window of a recording, the second where it begins, and the length.

    Args:
        hubert: the encoder.
        place: a file of any format that soundfile reads, or an open binary one.
        heard: makes what the encoder hears, (n,) at 16_000 Hz, of a window's samples (n, channels)
            and their rate.

    Raises:
        AudioError, OSError: as of `Detector.judge`.
    """
    starts: list[float] = []
    n_read, rate = 0, 1

    def pieces(file: BinaryIO) -> Iterator[Tensor]:
        nonlocal n_read, rate
        for audio, rate in read(file):
            starts.append(n_read / rate)
            n_read += len(audio)
            yield heard(audio, rate)

    with opened(place) as file:
        rows = _some(list(features_of(hubert, pieces(file))))
    return rows, starts[: len(rows)], n_read / rate


def features_of(hubert: Hubert, pieces: Iterable[Tensor]) -> Iterator[_Array]:
    """The features of each window: its frames' mean, (C,) float32. Windows under 25 ms have none.

    Raises:
        CheckpointError: the weights are such that features are not finite.
    """
    device = next(hubert.parameters()).device
    for audio in pieces:
        if len(audio) < hubert.config.least_samples:
            continue
        with running(device), torch.inference_mode():
            mean: _Array = hubert(audio[None].to(device))[0].mean(0).cpu().numpy()
        if not np.isfinite(mean).all():
            raise CheckpointError("the HuBERT gives features that are not finite numbers")
        yield mean


def _some(found: list[Any]) -> list[Any]:
    if not found:
        raise AudioError("shorter than 25 ms: too little to say anything")
    return found
