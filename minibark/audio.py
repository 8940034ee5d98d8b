"""Audio out: 16-bit WAV and FLAC, or Ogg Vorbis, Opus and MP3."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

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
    pcm = pcm16(samples)
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


class AudioStream:
    """16-bit sound, written to a file or pipe as it comes: a WAV, or only its samples.

    A WAV's header says how long it is. Where the file can be gone back in, that is put right at
    the end; elsewhere it stays the largest number, which players take for "until it ends".
    """

    def __init__(self, file: BinaryIO, sample_rate: int = 24_000, raw: bool = False) -> None:
        """`raw` leaves the header out; samples are little-endian."""
        self._file, self._raw, self._n_bytes = file, raw, 0
        self._start: int | None = None
        if not raw:
            with contextlib.suppress(OSError, ValueError):
                if file.seekable() and not _appends(file):
                    self._start = file.tell()
            file.write(_wav_header(sample_rate))

    def write(self, audio: np.ndarray[Any, Any]) -> None:
        """Write (N,) floats in [-1, 1], and let the reader have them."""
        content = pcm16(audio).astype("<i2").tobytes()
        self._file.write(content)
        self._file.flush()
        self._n_bytes += len(content)

    def close(self) -> None:
        """Put the header right, if that can be done; the file stays open."""
        if self._start is not None:
            end = self._file.tell()
            for offset, n_bytes in ((4, self._n_bytes + 36), (40, self._n_bytes)):
                self._file.seek(self._start + offset)
                self._file.write(struct.pack("<I", min(n_bytes, 0xFFFFFFFF)))
            self._file.seek(end)
        self._file.flush()


def _wav_header(sample_rate: int) -> bytes:
    """The 44 bytes in front of 16-bit mono samples whose number is not known yet."""
    form = (b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", *form, b"data", 0xFFFFFFFF
    )


def _appends(file: BinaryIO) -> bool:
    """Whether what is written goes to the end wherever one has gone back to."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    return bool(fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND)


def pcm16(audio: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Samples (N,) as 16-bit numbers; louder ones are clipped."""
    loud = np.clip(audio, -1, 1).astype(np.float64)
    samples: np.ndarray[Any, np.dtype[np.int16]] = np.rint(loud * 32767).astype(np.int16)
    return samples


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
