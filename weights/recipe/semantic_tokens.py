"""Step 2: semantic tokens, what each fiftieth of a second means, whoever says it.

Bark's own come from clusters of a self-supervised model's features. Here the teacher knows which
phone sounds when, so a token is a phone, the third of it that a frame lies in and, for vowels,
which quarter of the voice's range its pitch lies in. Any voice says a text with the same tokens,
which is what lets the coarse model alone decide how it sounds.

    semantic.npz   tokens (m,) int16, ends (n,), names (V,)

`names` spells the tokens: phone, third, pitch.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import numpy as np
from tiny import SEMANTIC_RATE_HZ, Data, n_semantic_of, work_argument

RATE_HZ = 24_000
THIRDS, PITCHES = 3, 4
_VOWEL = re.compile("[aAeEiIoOuUVY03@]")
_LOW_HZ, _HIGH_HZ, _WINDOW = 60, 420, 1_536  # a window of 64 ms holds four periods of 60 Hz


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    args = parser.parse_args()
    data = Data.load(args.work)
    phones = np.load(args.work / "phones.npz")
    names, ids, starts = phones["names"].tolist(), phones["phones"], phones["starts"]
    phone_ends = phones["phone_ends"]
    is_vowel = np.array([bool(_VOWEL.match(name)) for name in names])
    pitch_hz = np.zeros(len(ids), dtype=np.float32)
    for i, (first, last) in enumerate(zip([0, *phone_ends[:-1]], phone_ends, strict=True)):
        pitch_hz[first:last] = vowel_pitch(data, i, ids[first:last], starts[first:last], is_vowel)
        if i % 10_000 == 0:
            print(f"pitch of {i}/{len(phone_ends)} utterances", flush=True)
    voice_of_phone = np.repeat([s["voice"] for s in data.sentences], np.diff(phone_ends, prepend=0))
    pitch = np.zeros(len(ids), dtype=np.int64)
    for voice in np.unique(voice_of_phone):
        mine = (voice_of_phone == voice) & (pitch_hz > 0)
        edges = np.quantile(pitch_hz[mine], np.arange(1, PITCHES) / PITCHES)
        pitch[mine] = np.searchsorted(edges, pitch_hz[mine])
        print(f"{voice}: pitch {np.median(pitch_hz[mine]):.1f} Hz, quarters at {edges.round(1)}")
    table = np.full((len(names), THIRDS, PITCHES), -1)
    spelled: list[str] = []
    for phone, third, level in np.ndindex(table.shape):
        if level == 0 or is_vowel[phone]:
            table[phone, third, level] = len(spelled)
            spelled.append(f"{names[phone]} {third} {level}")
    tokens, ends = [], []
    for i, (first, last) in enumerate(zip([0, *phone_ends[:-1]], phone_ends, strict=True)):
        n_samples = int(data.audio_ends[i] - (data.audio_ends[i - 1] if i else 0))
        frames, third = frame_phones(starts[first:last], n_samples)
        tokens.append(table[ids[first:last][frames], third, pitch[first:last][frames]])
        ends.append(len(frames))
    joined = np.concatenate(tokens)
    used, compact = np.unique(joined, return_inverse=True)
    np.savez(
        args.work / "semantic.npz",
        tokens=compact.astype(np.int16),
        ends=np.cumsum(ends),
        names=np.array([spelled[token] for token in used]),
    )
    print(f"{len(used)} semantic tokens, {len(joined)} frames")


def frame_phones(starts: Any, n_samples: int) -> tuple[Any, Any]:
    """The phone under the middle of each frame, and the third of it where that lies."""
    middles = (np.arange(n_semantic_of(n_samples)) + 0.5) / SEMANTIC_RATE_HZ * RATE_HZ
    phone = np.searchsorted(starts, middles, side="right") - 1
    ends = np.append(starts[1:], n_samples)
    share = (middles - starts[phone]) / np.maximum(1, ends[phone] - starts[phone])
    return phone, np.clip((share * THIRDS).astype(int), 0, THIRDS - 1)


def vowel_pitch(data: Data, i: int, ids: Any, starts: Any, is_vowel: Any) -> Any:
    """Pitch in Hz of each phone of utterance i, by autocorrelation; 0 for what is no vowel."""
    audio = data.samples(i)
    found = np.zeros(len(ids), dtype=np.float32)
    where = np.flatnonzero(is_vowel[ids])
    if len(where):
        ends = np.append(starts[1:], len(audio))
        padded = np.pad(audio, _WINDOW)
        first = (starts[where] + ends[where]) // 2 - _WINDOW // 2 + _WINDOW
        found[where] = pitch_of(padded[first[:, None] + np.arange(_WINDOW)])
    return found


def pitch_of(windows: Any) -> Any:
    """Pitch in Hz of windows (n, 1536) at 24 kHz: the lag at which each is most like itself."""
    windows = (windows - windows.mean(1, keepdims=True)) * np.hanning(_WINDOW)
    spectrum = np.abs(np.fft.rfft(windows, 2 * _WINDOW)) ** 2
    likeness = np.fft.irfft(spectrum)[:, : RATE_HZ // _LOW_HZ]
    # The window's own taper makes long lags look less alike.
    taper = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(_WINDOW), 2 * _WINDOW)) ** 2)
    likeness = likeness / np.maximum(1e-9, taper[: RATE_HZ // _LOW_HZ])
    shortest = RATE_HZ // _HIGH_HZ
    likeness = likeness[:, shortest:]
    # The shortest lag that is nearly as good as the best, so that no octave is lost.
    good = likeness >= 0.9 * likeness.max(1, keepdims=True)
    peak = good & (likeness >= np.roll(likeness, 1, 1)) & (likeness >= np.roll(likeness, -1, 1))
    peak[:, 0] = peak[:, -1] = False
    return np.where(peak.any(1), RATE_HZ / (peak.argmax(1) + shortest), 0)


if __name__ == "__main__":
    main()
