"""The teacher: espeak-ng, called through its shared library, with the time of every phone.

Only its output is used. `apt-get install espeak-ng` (or the libespeak-ng of another system) brings
it; a voice is one of its variants, such as `en-us+edward`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import resample_poly

SAMPLING_RATE = 24_000  # Hz, EnCodec's
LEAD_S, TAIL_S = 0.04, 0.12  # silence kept before and after the speech


@dataclass(frozen=True)
class Utterance:
    """What the teacher said.

    Attributes:
        audio: (N,) int16, 24 kHz.
        phones: names of the phones in order, espeak-ng's mnemonics; `_` and `_:` are pauses.
        starts: (n,) int32, the sample at which each phone begins.
        words: (w,) int32, the sample at which each word begins.
    """

    audio: np.ndarray[Any, np.dtype[np.int16]]
    phones: list[str]
    starts: np.ndarray[Any, np.dtype[np.int32]]
    words: np.ndarray[Any, np.dtype[np.int32]]


class _Identifier(ctypes.Union):
    _fields_ = (("name", ctypes.c_char_p), ("phone", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    )


_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _RATE = 2, 1, 1, 1
_WORD, _PHONEME = 1, 7  # kinds of events
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Teacher:
    """One espeak-ng; a process can have one only."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise FileNotFoundError("no libespeak-ng here; `apt-get install espeak-ng` brings it")
        self._library = ctypes.CDLL(name)
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        if self._rate_hz <= 0:
            raise OSError("espeak-ng does not start; is its data (espeak-ng-data) installed?")
        self._chunks: list[bytes] = []
        self._events: list[tuple[int, str]] = []
        self._words: list[int] = []
        self._callback = _CALLBACK(self._collect)  # kept alive here
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, n: int, events: Any) -> int:
        if samples and n > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * n))
        i = 0
        while events[i].kind:
            if events[i].kind == _WORD:
                self._words.append(events[i].sample)
            if events[i].kind == _PHONEME:
                phone = bytes(events[i].id.phone).split(b"\0")[0].decode()
                self._events.append((events[i].sample, phone))
            i += 1
        return 0

    def say(self, text: str, voice: str, words_per_minute: int) -> Utterance:
        """The utterance of a text; `words_per_minute` is espeak-ng's own measure of speed."""
        self._chunks.clear(), self._events.clear(), self._words.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        raw = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32)
        if not self._events or not len(raw):
            raise ValueError(f"espeak-ng has nothing to say for {text!r}")
        up, down = 160, 147  # 22,050 -> 24,000 Hz
        if self._rate_hz * up != SAMPLING_RATE * down:
            raise ValueError(f"espeak-ng's voices should have 22,050 Hz, got {self._rate_hz}")
        audio = resample_poly(raw, up, down)
        starts = np.array([sample for sample, _ in self._events]) * up // down
        words = np.array(self._words) * up // down
        phones = [phone for _, phone in self._events]
        while len(phones) > 1 and phones[-1].startswith("_"):  # the pause at the end is ours
            end = starts[-1]
            phones, starts = phones[:-1], starts[:-1]
        lead, tail = int(LEAD_S * SAMPLING_RATE), int(TAIL_S * SAMPLING_RATE)
        audio = np.pad(audio[:end], (lead, tail))
        starts = np.concatenate(([0], starts + lead, [end + lead]))
        return Utterance(
            np.clip(audio, -32_767, 32_767).round().astype(np.int16),
            ["_", *phones, "_"],
            starts.astype(np.int32),
            (words + lead).astype(np.int32),
        )
