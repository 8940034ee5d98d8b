"""Sound in the formats of OpenAI's endpoint, in pieces as it is made."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

import numpy as np

from ..audio import FORMATS as FILES
from ..audio import AudioStream, encode_audio, pcm16

FORMATS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
"""What sound can leave as, and its media type; pcm is 16-bit, little-endian, mono."""


def whole(audio: np.ndarray[Any, Any], sample_rate: int, audio_format: str) -> bytes:
    """The bytes of sound of which nothing more comes: a file with its length in its header.

    Raises:
        ValueError: a sample rate that the format cannot have.
    """
    if audio_format == "pcm":
        return pcm16(audio).astype("<i2").tobytes()
    return encode_audio(audio, sample_rate, "." + audio_format)


class Encoder:
    """Sound of a length not known yet, to bytes that go out at once.

    Headers cannot be put right when it ends: a WAV's says the largest number, a FLAC's that the
    length is unknown, MP3 has a constant bit rate. Opus leaves in pages of a second.
    """

    def __init__(self, sample_rate: int, audio_format: str) -> None:
        """`audio_format` is one of `FORMATS`; ValueError: it cannot have that sample rate."""
        import soundfile

        self._sink = _Sink()
        self._file: AudioStream | Any
        if audio_format in ("wav", "pcm"):
            self._file = AudioStream(
                cast(BinaryIO, self._sink), sample_rate, raw=audio_format == "pcm"
            )
            return
        kind, subtype = FILES["." + audio_format]
        more = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if kind == "MP3" else {}
        try:
            self._file = soundfile.SoundFile(
                self._sink, "w", sample_rate, 1, subtype, format=kind, **more
            )
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{audio_format} cannot have {sample_rate} Hz ({error}); use wav"
            ) from error

    def write(self, audio: np.ndarray[Any, Any]) -> bytes:
        """What can go out once (N,) floats in [-1, 1] have come."""
        self._file.write(audio if isinstance(self._file, AudioStream) else pcm16(audio))
        return self._sink.take()

    def close(self) -> bytes:
        """The rest."""
        self._file.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file that grows at its end; what is written over its beginning is too late and is lost."""

    def __init__(self) -> None:
        self._new = bytearray()
        self._place = self._size = 0

    def take(self) -> bytes:
        """What has come since it was last asked."""
        new = bytes(self._new)
        self._new.clear()
        return new

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """True, for libsndfile writes to nothing else; `AudioStream` asks `tell`."""
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def write(self, content: Any) -> int:
        held = bytes(content)
        fresh = held[max(0, self._size - self._place) :]
        self._new += fresh
        self._place += len(held)
        self._size += len(fresh)
        return len(held)
