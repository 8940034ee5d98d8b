"""Audio out: 16-bit WAV and FLAC, or Ogg Vorbis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .files import replacing

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_BLOCK = 1 << 16  # samples; libsndfile's Vorbis encoder overflows its stack on very long writes


def audio_format(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Libsndfile's format and subtype for a file name.

    Raises:
        ValueError: the suffix is none of `.wav`, `.flac`, `.ogg`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"cannot tell the audio format of {os.fspath(path)!r}; end it in {', '.join(FORMATS)}"
        )
    return FORMATS[suffix]


def write_audio(
    file: BinaryIO, audio: np.ndarray[Any, Any], sample_rate: int = 24_000, suffix: str = ".wav"
) -> None:
    """Encode audio into an open, seekable binary file.

    Args:
        file: where to.
        audio: (N,) float in [-1, 1]; louder is clipped.
        sample_rate: Hz.
        suffix: `.wav`, `.flac` or `.ogg`.

    Raises:
        ValueError: not one-dimensional, not finite, or an unknown suffix.
    """
    import soundfile

    kind, subtype = audio_format(f"audio{suffix}")
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"audio must be (N,) floats, got {samples.shape} {samples.dtype}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinity")
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    with soundfile.SoundFile(
        file, "w", samplerate=sample_rate, channels=1, format=kind, subtype=subtype
    ) as out:
        for start in range(0, len(pcm), _BLOCK):
            out.write(pcm[start : start + _BLOCK])


def save_audio(
    path: str | os.PathLike[str], audio: np.ndarray[Any, Any], sample_rate: int = 24_000
) -> None:
    """Write an audio file, whole or not at all; the suffix chooses the format.

    Args:
        path: ends in `.wav` (16-bit PCM), `.flac` (16-bit) or `.ogg` (Vorbis).
        audio: (N,) float in [-1, 1]; louder is clipped.
        sample_rate: Hz.

    Raises:
        ValueError: unknown suffix, or audio that is not (N,) finite floats.
        OSError: the place cannot be written; what was there before is untouched.
    """
    audio_format(path)
    with replacing(path) as part, part.open("w+b") as file:
        write_audio(file, audio, sample_rate, Path(path).suffix.lower())
