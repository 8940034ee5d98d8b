"""The frames of an MP3, counted without decoding any: what its header says may not be so.

Source: ISO/IEC 11172-3 and 13818-3, the headers of frames; Xing's tag (Info) and Fraunhofer's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

_VERSIONS = {0: 4, 2: 2, 3: 1}  # MPEG 2.5, 2 and 1: by how much the rates are divided
_RATES = (44_100, 48_000, 32_000)  # Hz
_KBIT = {  # a second, by whether it is MPEG 1 and by layer
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HEADER = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")
_IN_A_ROW = 3  # frames that begin where others end: no accident
_MOST_TRIES = 1 << 16  # at bytes between frames that look like one
_BLOCK = 1 << 16


class _Frame(NamedTuple):
    size: int  # bytes
    samples: int
    rate: int  # Hz


@dataclass(frozen=True)
class Frames:
    """What there is, and what is said of it.

    Attributes:
        n: how many frames of sound there are.
        seconds: how long they are.
        n_said: how many the tag in the first one says there are; None if it says nothing.
    """

    n: int
    seconds: float
    n_said: int | None


def count_frames(file: BinaryIO, at: int = 0) -> Frames:
    """The frames of an MP3, those behind a tag or a damaged part too.

    Args:
        file: can be seeked in.
        at: where to begin, in bytes.
    """
    end = file.seek(0, 2)
    n, seconds, n_said, tries = 0, 0.0, None, [_MOST_TRIES]
    is_known = False  # that a frame begins at `at`
    while True:
        frame = _frame_at(file, at) if is_known else None
        if frame is None:
            start = _next_frame(file, at, end, tries)
            if start is None:
                return Frames(n, seconds, n_said)
            at, is_known = start, True
            continue
        if not n and n_said is None and (tag := _tag(file, at)) is not None:
            n_said = tag or None  # an encoder that wrote to a pipe left a zero
        else:
            n, seconds = n + 1, seconds + frame.samples / frame.rate
        at += frame.size


def _frame_at(file: BinaryIO, at: int) -> _Frame | None:
    """The frame that begins there, by its header."""
    file.seek(at)
    header = int.from_bytes(file.read(4).ljust(4, b"\0"), "big")
    version, layer, kbit = header >> 19 & 3, 4 - (header >> 17 & 3), header >> 12 & 15
    if header >> 21 != 0x7FF or version not in _VERSIONS or layer == 4:
        return None
    if kbit in (0, 15) or header >> 10 & 3 == 3:  # the former is free: it does not say its size
        return None
    rate = _RATES[header >> 10 & 3] // _VERSIONS[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    unit = 4 if layer == 1 else 1  # bytes, of which a frame has a whole number
    bits = samples * 1000 * _KBIT[version == 3, layer][kbit - 1]
    return _Frame((bits // (8 * unit * rate) + (header >> 9 & 1)) * unit, samples, rate)


def _next_frame(file: BinaryIO, at: int, end: int, tries: list[int]) -> int | None:
    """Where the next frame begins that others follow, or the end of the file."""
    while at < end:
        file.seek(at)
        block = file.read(_BLOCK)
        for found in _HEADER.finditer(block):
            if not tries[0]:
                return None
            tries[0] -= 1
            place, left = at + found.start(), _IN_A_ROW
            while left and place < end and (frame := _frame_at(file, place)) is not None:
                place, left = place + frame.size, left - 1
            if not left or (left < _IN_A_ROW and place == end):
                return at + found.start()
        if len(block) < _BLOCK:
            return None
        at += _BLOCK - 2
    return None


def _tag(file: BinaryIO, at: int) -> int | None:
    """How many frames a frame says there are that holds no sound but this; None if it is sound."""
    file.seek(at)
    start = file.read(64)
    if found := re.search(rb"(?:Xing|Info)(.{4})(.{4})", start, re.S):
        return int.from_bytes(found[2], "big") if found[1][3] & 1 else 0
    found = re.search(rb"VBRI.{10}(.{4})", start, re.S)
    return int.from_bytes(found[1], "big") if found else None
