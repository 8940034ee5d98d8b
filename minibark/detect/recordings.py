"""Recordings from files of any format that soundfile reads, in windows: memory stays flat."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import naming, reason, shown
from .hubert import SAMPLE_RATE
from .resample import resample

WINDOW_S = 10
RATES = (1_000, 384_000)  # Hz
_MAX_CHANNELS = 64
_MAX_PIPED_BYTES = 1 << 30
_LOUDEST = 1e6  # far beyond, squares of samples overflow

Place = str | os.PathLike[str] | BinaryIO


class AudioError(ValueError):
    """Sound that nothing can be said of: damaged, too short, not finite; the text says why."""


def share(n_samples: int, sample_rate: int) -> int:
    """The samples in each window of a recording that is cut into equal ones of at most 10 s."""
    n_windows = max(math.ceil(n_samples / (WINDOW_S * sample_rate)), 1)
    return max(math.ceil(n_samples / n_windows), 1)


def windows(audio: np.ndarray[Any, Any], sample_rate: int) -> Iterator[Tensor]:
    """Equal windows of at most 10 s of audio (N,) or (N, channels): (n,) float32, 16_000 Hz.

    Raises:
        AudioError: other than finite floats, of another shape, or of an odd rate.
    """
    if audio.ndim not in (1, 2) or audio.dtype.kind != "f":
        raise AudioError(
            f"audio must be (N,) or (N, channels) floats, got {audio.shape} {audio.dtype}"
        )
    _check(1 if audio.ndim == 1 else audio.shape[1], sample_rate)
    size = share(len(audio), sample_rate)
    for start in range(0, len(audio), size):
        yield window(audio[start : start + size], sample_rate)


def window(audio: np.ndarray[Any, Any], sample_rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """Audio (N,) or (N, channels) as (n,) float32 at another rate; of several channels their mean.

    Raises:
        AudioError: it holds NaN or infinity, or numbers so large that they mean nothing.
    """
    mono = audio if audio.ndim == 1 else audio.mean(1)
    if not (np.abs(mono) < _LOUDEST).all():  # NaN is not less than anything
        raise AudioError("the audio holds NaN or infinity, or samples far outside [-1, 1]")
    samples = torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))
    return resample(samples, sample_rate, new_rate)


@contextlib.contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """A file, or an open one as it is; any error of the block is one that names it.

    Raises:
        AudioError: whatever was wrong with what was read.
        OSError: it cannot be read.
    """
    if not isinstance(place, (str, os.PathLike)):
        with naming("standard input", AudioError):
            yield place
        return
    path, where = Path(os.path.expanduser(place)), shown(os.fspath(place), 1000)
    if path.is_dir():
        raise AudioError(f"{where} is a folder; name the files in it")
    with path.open("rb") as file, naming(where, AudioError):
        yield file


def read(file: BinaryIO) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.float32]], int]]:
    """A recording in equal windows of at most 10 s: samples (n, channels), and their rate in Hz.

    Raises:
        AudioError: none of the formats that soundfile reads, damaged, or with no sample in it.
    """
    import soundfile

    if not file.seekable():
        content = file.read(_MAX_PIPED_BYTES + 1)
        if len(content) > _MAX_PIPED_BYTES:
            raise AudioError(f"more than {_MAX_PIPED_BYTES >> 30} GiB; name a file in its place")
        file = io.BytesIO(content)
    n_read = 0
    try:
        with soundfile.SoundFile(file) as sound:
            _check(sound.channels, sound.samplerate)
            size = share(sound.frames, sound.samplerate)
            while len(audio := sound.read(size, dtype="float32", always_2d=True)):
                n_read += len(audio)
                yield audio, sound.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # the latter for headerless `.raw`
        why = getattr(error, "error_string", None) or reason(error)
        raise AudioError(f"damaged, or no audio that can be read ({why})") from error
    if not n_read:
        raise AudioError("it holds no sound")


def _check(n_channels: int, sample_rate: int) -> None:
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise AudioError(
            f"the sample rate must be in [{RATES[0]}, {RATES[1]}] Hz, got {sample_rate}"
        )
    if not 1 <= n_channels <= _MAX_CHANNELS:
        raise AudioError(f"audio may have 1 to {_MAX_CHANNELS} channels, got {n_channels}")
