"""Recordings from files of any format that soundfile reads, in windows: memory stays flat."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..config import CheckpointError
from ..files import naming, reason, shown
from .containers import AudioError, Survey, survey
from .hubert import SAMPLE_RATE
from .resample import resample

WINDOW_S = 10
RATES = (1_000, 384_000)  # Hz
_MAX_CHANNELS = 64
_MAX_PIPED_BYTES = 1 << 30
_LOUDEST = 1e6  # far beyond, squares of samples overflow
_SLACK_S = 0.05  # by which a recording may be shorter than it says; encoders of MP3 count otherwise
_MP3 = ("MP3", "MPEG")
_SLACK_OF_MP3_S = 0.25  # frames that a decoder drops at the start
_UNKNOWN_FRAMES = 1 << 62
_UNKNOWN_BYTES = 0x7EFF_0000  # what writes to a pipe says this or more, since it cannot know

_Samples = np.ndarray[Any, np.dtype[np.float32]]

Place = str | os.PathLike[str] | BinaryIO


def share(n_samples: int, sample_rate: int) -> int:
    """The samples in each window of a recording that is cut into equal ones of at most 10 s."""
    n_windows = max(math.ceil(n_samples / (WINDOW_S * sample_rate)), 1)
    return max(math.ceil(n_samples / n_windows), 1)


def windows(audio: Any, sample_rate: int) -> Iterator[Tensor]:
    """Equal windows of at most 10 s of audio (N,) or (N, channels): (n,) float32, 16_000 Hz.

    Args:
        audio: an array, a tensor on any device, or a list.
        sample_rate: Hz.

    Raises:
        AudioError: other than finite floats, of another shape, or of an odd rate.
    """
    audio = _array(audio)
    if audio.dtype.kind in "iu":
        raise AudioError(
            f"audio must be floats in about [-1, 1], got {audio.dtype}: divide 16 bits by 32768, "
            "other numbers by what their full scale is"
        )
    if audio.ndim not in (1, 2) or audio.dtype.kind != "f":
        raise AudioError(
            f"audio must be (N,) or (N, channels) floats, got {audio.shape} {audio.dtype}"
        )
    if audio.ndim == 2 and audio.shape[0] <= _MAX_CHANNELS < audio.shape[1]:
        raise AudioError(f"audio must be (N, channels), got {audio.shape}: turn it with audio.T")
    sample_rate = _check(1 if audio.ndim == 1 else audio.shape[1], sample_rate)
    size = share(len(audio), sample_rate)
    for start in range(0, len(audio), size):
        yield window(audio[start : start + size], sample_rate)


def _array(audio: Any) -> np.ndarray[Any, Any]:
    """Samples as an array; of a tensor that NumPy has no type for, or that wants gradients too."""
    try:
        if isinstance(audio, Tensor):
            audio = audio.detach().cpu().resolve_neg()
            if audio.is_floating_point() and audio.element_size() < 4:
                audio = audio.float()
        return np.asarray(audio)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(
            f"audio must be an array or tensor of floats, got {type(audio).__name__}, which cannot "
            f"be made one ({reason(error)})"
        ) from error


def window(audio: np.ndarray[Any, Any], sample_rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """Audio (N,) or (N, channels) as (n,) float32 at another rate; of several channels their mean.

    Raises:
        AudioError: it holds NaN or infinity, or numbers so large that they mean nothing.
    """
    if audio.dtype.itemsize < 4:  # float16, which ends at 65,504
        audio = audio.astype(np.float32)
    mono = audio if audio.ndim == 1 else audio.mean(1)
    if not (np.abs(mono) < _LOUDEST).all():  # NaN is not less than anything
        raise AudioError("the audio holds NaN or infinity, or samples far outside [-1, 1]")
    samples = torch.from_numpy(np.require(mono, np.float32, ["C", "W"]))
    return resample(samples, sample_rate, new_rate)


@contextlib.contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """A file from its start, or an open one; any error of the block is one that names it.

    Raises:
        AudioError: whatever was wrong with what was read.
        OSError: it cannot be read.
        TypeError: it is neither a path nor a file opened to read bytes.
    """
    if not isinstance(place, (str, os.PathLike)):
        with _naming(_name(place)):
            yield place
        return
    if not os.fspath(place):
        raise AudioError("'' is no recording; name a file")
    path, where = Path(os.path.expanduser(place)), shown(os.fspath(place), 1000)
    if path.is_dir():
        raise AudioError(f"{where} is a folder; name the files in it")
    with path.open("rb") as file, _naming(where):
        yield file


def _name(file: BinaryIO) -> str:
    """What messages call an open file."""
    if not hasattr(file, "read") or isinstance(file, io.TextIOBase):
        raise TypeError(
            "a recording is a path or a file opened to read bytes (open(path, 'rb')), got "
            f"{type(file).__name__}; samples go to Detector.probability"
        )
    if not file.readable():
        raise TypeError("the file is not open to be read; open it with 'rb'")
    name = getattr(file, "name", None)
    if name == "<stdin>" or file is getattr(sys.stdin, "buffer", None):
        return "standard input"
    return shown(name, 1000) if isinstance(name, str) and name else "the recording"


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = where
        raise
    except CheckpointError:  # of the HuBERT, not of the recording
        raise
    except Exception:
        with naming(where, AudioError):
            raise


def read(file: BinaryIO) -> Iterator[tuple[_Samples, int]]:
    """A recording in equal windows of at most 10 s: samples (n, channels), and their rate in Hz.

    It is decoded twice: the first time tells how long it is and whether it is whole.

    Raises:
        AudioError: none of the formats that soundfile reads, damaged, cut off, or with no sample.
        OSError: it cannot be read.
    """
    file = _seekable(file)
    known = survey(file)
    n_samples, sample_rate = 0, 1
    for audio, rate in _blocks(file, known):
        n_samples, sample_rate = n_samples + len(audio), rate
    if not n_samples:
        raise AudioError("it holds no sound")
    yield from _blocks(file, known, share(n_samples, sample_rate))


def digest(place: Place) -> bytes:
    """What two recordings share whose samples and rate are the same, whatever their files are.

    Raises:
        AudioError, OSError: as of `read`.
    """
    total = hashlib.sha256()
    with opened(place) as file:
        file = _seekable(file)
        for audio, sample_rate in _blocks(file, survey(file)):
            total.update(f"{sample_rate} {audio.shape[1]} ".encode())
            total.update(np.ascontiguousarray(audio).data)
    return total.digest()


def _seekable(file: BinaryIO) -> BinaryIO:
    """The file, or one in memory of what comes out of a pipe."""
    if file.seekable():
        return file
    content = file.read(_MAX_PIPED_BYTES + 1)
    if len(content) > _MAX_PIPED_BYTES:
        raise AudioError(f"more than {_MAX_PIPED_BYTES >> 30} GiB; name a file in its place")
    return io.BytesIO(content)


class _Kept:
    """A file whose first exception is kept: what a callback of libsndfile raises would be lost.

    Bytes in `mended`, by where they are, stand in place of the file's own.
    """

    def __init__(self, file: BinaryIO, mended: dict[int, bytes]) -> None:
        self.file, self.mended = file, mended
        self.error: BaseException | None = None

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    # soundfile asks whether there is one, and calls `readinto`
    def read(self, size: int) -> bytes:
        start = self.tell() if self.mended else 0
        data: bytes = self._tried(self.file.read, size) or b""
        for place, own in self.mended.items():
            at, end = max(place, start), min(place + len(own), start + len(data))
            if at < end:
                new = own[at - place : end - place]
                data = data[: at - start] + new + data[end - start :]
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:  # a damaged header, and no failure of the file
            return -1
        return self._tried(self.file.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._tried(self.file.tell) or 0

    def _tried(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return None if self.error else call(*args)
        except BaseException as error:  # Ctrl-C among them
            self.error = error
            return None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _blocks(file: BinaryIO, known: Survey, size: int = 1 << 17) -> Iterator[tuple[_Samples, int]]:
    """All of a recording, `size` samples (n, channels) at a time, and the rate in Hz."""
    import soundfile

    file.seek(0)
    kept, n_read = _Kept(file, known.mended), 0
    try:
        with soundfile.SoundFile(kept) as sound:
            # Else it seeks after each block, which fails where a FLAC does not say its length.
            sound.seekable = lambda: False
            rate = _check(sound.channels, sound.samplerate)
            expected = _announced(sound, known)
            kept.check()
            while len(audio := sound.read(size, dtype="float32", always_2d=True)):
                kept.check()
                n_read += len(audio)
                yield audio, rate
            kept.check()
            if expected == 0 and known.frames is not None:
                _check_rest(known.frames.seconds, n_read / rate)
    except (soundfile.LibsndfileError, TypeError) as error:  # the latter for headerless `.raw`
        kept.check()
        why = getattr(error, "error_string", None) or reason(error)
        raise AudioError(f"damaged, or no audio that can be read ({why})") from error
    if expected is None:
        raise AudioError("its last page is missing: damaged or cut off")
    if n_read + rate * _SLACK_S < expected:
        raise AudioError(
            f"it says {expected / rate:.1f} s and has {n_read / rate:.1f} s: damaged or cut off"
        )


def _announced(sound: Any, known: Survey) -> float | None:
    """How many samples the header says there are; 0 if it does not say, None without an end."""
    log, frames = sound.extra_info, int(sound.frames)
    if sound.format == "OGG":  # says nothing, but marks the last page
        return None if "lacks an end-of-stream" in log else 0
    if sound.format in _MP3:
        return frames if known.frames is not None and known.frames.n_said else 0
    if frames >= _UNKNOWN_FRAMES:
        return 0
    if found := re.search(r"'ds64' chunk of (\d+)", log):
        return max(int(found[1]), frames)
    # libsndfile mends the sizes of what is cut off, and says so in its log.
    found = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", log, re.M)
    if found is None and sound.format == "W64":
        length = re.search(r"^Length : (\d+)", log, re.M)
        riff = re.search(r"^riff : (\d+)", log, re.M)
        return frames * int(riff[1]) / int(length[1]) if riff and length else frames
    said, there = (int(found[1]), int(found[2])) if found else (0, 1)
    is_known = there < said < _UNKNOWN_BYTES and there > 0
    return frames * said / there if is_known else frames


def _check_rest(seconds: float, read_s: float) -> None:
    """Refuse an MP3 of which libsndfile has read as much as it guessed, and there is more."""
    if seconds > read_s + _SLACK_OF_MP3_S:
        raise AudioError(
            f"its header does not say how long it is, and only {read_s:.1f} s of {seconds:.1f} s "
            "can be read; write it anew, as FLAC or WAV"
        )


def _check(n_channels: int, sample_rate: float) -> int:
    """The rate, of whatever type it is."""
    if not isinstance(sample_rate, (int, float, np.integer, np.floating)) or sample_rate % 1:
        raise AudioError(f"the sample rate must be a whole number of Hz, got {sample_rate!r}")
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise AudioError(
            f"the sample rate must be in [{RATES[0]}, {RATES[1]}] Hz, got {sample_rate}"
        )
    if not 1 <= n_channels <= _MAX_CHANNELS:
        raise AudioError(f"audio may have 1 to {_MAX_CHANNELS} channels, got {n_channels}")
    return int(sample_rate)
