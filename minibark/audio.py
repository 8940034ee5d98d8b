"""Audio out: 16-bit WAV and FLAC, or Ogg Vorbis, Opus and MP3."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from .files import replacing

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_BLOCK = 1 << 16  # samples; libsndfile's Vorbis encoder overflows its stack on very long writes
_MAX_SAMPLE_RATE = 192_000  # Hz; the same encoder crashes at 0 and at rates far beyond


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of an audio file's name, in lower case; a device or pipe without one gets WAV.

    Raises:
        ValueError: none of `FORMATS`.
    """
    place = Path(os.path.expanduser(path))
    suffix = place.suffix.lower()
    if not suffix and place.exists() and not (place.is_file() or place.is_dir()):
        return ".wav"
    if suffix not in FORMATS:
        raise ValueError(
            f"cannot tell the audio format of {os.fspath(path)!r}; end it in {', '.join(FORMATS)}"
        )
    return suffix


def encode_audio(
    audio: np.ndarray[Any, Any], sample_rate: int = 24_000, suffix: str = ".wav"
) -> bytes:
    """The bytes of an audio file.

    Args:
        audio: (N,) float in [-1, 1]; louder is clipped.
        sample_rate: Hz.
        suffix: `.wav` (16-bit PCM), `.flac` (16-bit), `.ogg` (Vorbis), `.opus` or `.mp3`.

    Raises:
        ValueError: unknown suffix, a sample rate that the format cannot have, or audio that is not
            (N,) finite floats or, but for `.wav` and `.ogg`, empty.
    """
    import soundfile

    suffix = check_suffix(f"audio{suffix}")
    kind, subtype = FORMATS[suffix]
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"audio must be (N,) floats, got {samples.shape} {samples.dtype}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinity")
    if not 1 <= sample_rate <= _MAX_SAMPLE_RATE:
        raise ValueError(f"sample_rate must be in [1, {_MAX_SAMPLE_RATE}] Hz, got {sample_rate}")
    if suffix not in (".wav", ".ogg") and not len(samples):
        raise ValueError(f"there is no audio, and nothing opens a {suffix} without any; use .wav")
    pcm = np.rint(np.clip(samples, -1, 1).astype(np.float64) * 32767).astype(np.int16)
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(
            buffer, "w", samplerate=sample_rate, channels=1, format=kind, subtype=subtype
        ) as out:
            for start in range(0, len(pcm), _BLOCK):
                out.write(pcm[start : start + _BLOCK])
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{suffix} at {sample_rate} Hz cannot be written here ({error}); use .wav"
        ) from error
    return buffer.getvalue()


def save_audio(
    path: str | os.PathLike[str], audio: np.ndarray[Any, Any], sample_rate: int = 24_000
) -> None:
    """Write an audio file, whole or not at all; its suffix chooses the format.

    Arguments and errors are those of `encode_audio`, and OSError where the place cannot be written;
    what was there before is then untouched.
    """
    content = encode_audio(audio, sample_rate, check_suffix(path))
    with replacing(path) as part:
        part.write_bytes(content)
