"""What the bytes of a recording say before it is decoded: is it one, and are its sizes known?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from .mpeg import Frames, count_frames


class AudioError(ValueError):
    """Sound that nothing can be said of: damaged, too short, not finite; the text says why."""


_WAVE = rb"R[IF][F6][FX4].{4}WAVE"
# How a recording begins, by its first four bytes. One that begins so twice is two, of which
# libsndfile reads the first, or the second's header as noise.
_STARTS = {
    first: re.compile(start, re.DOTALL)
    for first, start in {
        b"OggS": rb"OggS\0[\x02\x06].{20}\x01.(?:\x01vorbis|OpusHead|Speex   |\x7fFLAC)",
        b"fLaC": rb"fLaC[\0\x80]\0\0\x22",
        b"RIFF": _WAVE,
        b"RIFX": _WAVE,
        b"RF64": _WAVE,
        b"FORM": rb"FORM.{4}(?:AIF[FC]|8SVX|16SV)",
        b".snd": rb"\.snd\0\0.{6}\0\0\0[\x01-\x1c]",
        b"caff": rb"caff\0\x01.{2}desc",
        # What writes W64 to a pipe repeats the header, with nothing behind it.
        b"riff": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb(?!.{0,200}(?:riff\x2e\x91\xcf\x11|\Z))",
        b"\0\0\0\0": rb"\0{4}\x01\0\0\0\x01\0{7}\x0b\0\0\0samplerate",  # MATLAB's, version 4
        b"\xf0\x7e\0\x01": rb"\xf0\x7e\0\x01.{16}\xf7\xf0\x7e\0\x02",  # MIDI's sample dump
    }.items()
}
_LONGEST_START = 256
_BLOCK = 1 << 20
_MOST_CHUNKS = 1000
_UNKNOWN = (0, -1)  # sizes of what was begun, and not ended or written to a pipe
# Where chunks begin, how long a size is, and in which order its bytes are.
_Chunks = tuple[int, int, Literal["little", "big"]]
_CHUNKS: dict[bytes, _Chunks] = {
    b"RIFF": (12, 4, "little"),
    b"RIFX": (12, 4, "big"),
    b"RF64": (12, 4, "little"),
    b"caff": (8, 8, "big"),
}


@dataclass(frozen=True)
class Survey:
    """What is known of a recording before it is decoded.

    Attributes:
        mended: what stands in place of sizes that are not known, by where in the file that is.
        frames: of an MP3.
    """

    mended: dict[int, bytes] = field(default_factory=dict)
    frames: Frames | None = None


def survey(file: BinaryIO) -> Survey:
    """What the bytes of a recording say.

    Args:
        file: can be seeked in.

    Raises:
        AudioError: it is empty, or holds several recordings.
        OSError: it cannot be read.
    """
    if not file.seek(0, 2):
        raise AudioError("it is empty")
    start = _behind_id3(file)
    head = _read(file, start, _LONGEST_START)
    frames = None
    if again := _STARTS.get(head[:4]):
        _check_single(file, start, again)
    elif start or head[:1] == b"\xff":
        frames = count_frames(file, start)
        _check_frames(frames)
    return Survey({} if start else _mended(file, head), frames)


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _behind_id3(file: BinaryIO) -> int:
    """Where the sound begins: a tag may lie in front of any format."""
    head = _read(file, 0, 10)
    if head[:3] != b"ID3":
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))


def _check_single(file: BinaryIO, at: int, start: re.Pattern[bytes]) -> None:
    """Refuse a file in which several recordings begin."""
    places: set[int] = set()
    while block := _read(file, at, _BLOCK):
        places |= {at + found.start() for found in start.finditer(block)}
        if len(places) > 1:
            raise AudioError(_several(f"one begins at byte {sorted(places)[1]:,}"))
        if len(block) <= _LONGEST_START:
            return
        at += len(block) - _LONGEST_START


def _check_frames(frames: Frames) -> None:
    if frames.n_said is not None and frames.n > frames.n_said + 1:  # some count the tag's own
        raise AudioError(
            _several(f"the first says that it has {frames.n_said} frames, and there are {frames.n}")
        )


def _several(why: str) -> str:
    return (
        f"several recordings in one file ({why}), which would not all be heard: give each as a "
        "file, or make them one stream, with ffmpeg for example"
    )


def _mended(file: BinaryIO, head: bytes) -> dict[int, bytes]:
    """The sizes that libsndfile would believe, as they are."""
    if head[:4] == b".snd":
        return {} if any(head[8:12]) else {8: b"\xff" * 4}
    if head[:4] not in _CHUNKS:
        return {}
    at, width, order = _CHUNKS[head[:4]]
    end, long_size = file.seek(0, 2), None
    for _ in range(_MOST_CHUNKS):
        chunk = _read(file, at, 4 + width)
        if len(chunk) < 4 + width:
            break
        place, at = at + 4, at + 4 + width
        size = int.from_bytes(chunk[4:], order, signed=width == 8)
        if chunk[:4] == b"ds64" and not any(_read(file, at + 8, 8)):
            long_size = at + 8
        if chunk[:4] != b"data":
            if size < 0:
                break
            at += size + (size % 2 if width == 4 else 0)
            continue
        there = end - at
        if long_size is not None:
            return {long_size: there.to_bytes(8, "little")}
        least = 4 if width == 8 else 0  # of Core Audio's: a number in front of the sound
        if size not in (*_UNKNOWN, least) or _are_chunks(file, at + least, end, width, order):
            break
        return {place: min(there, (1 << 8 * width - (width == 8)) - 1).to_bytes(width, order)}
    return {}


def _are_chunks(
    file: BinaryIO, at: int, end: int, width: int, order: Literal["little", "big"]
) -> bool:
    """Whether nothing but whole chunks is left: then the one in front is empty indeed."""
    for _ in range(_MOST_CHUNKS):
        if at >= end:
            return at <= end + 1
        chunk = _read(file, at, 4 + width)
        if len(chunk) < 4 + width or not (chunk[:4].isascii() and chunk[:4].decode().isprintable()):
            return False
        size = int.from_bytes(chunk[4:], order)
        at += 4 + width + size + (size % 2 if width == 4 else 0)
    return False
