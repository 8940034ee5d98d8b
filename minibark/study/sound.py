"""Sound to look at: mel spectrograms, envelopes, and how far two sounds are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pipeline import Audio

Array = np.ndarray[Any, Any]
RANGE_DB = 70  # below the loudest, what is still shown
_WINDOW_S = 0.032


def mel_db(audio: Audio, rate_hz: int, n_bands: int = 80, hop_s: float = 0.01) -> Array:
    """The mel spectrogram (n_bands, frames) in dB: 0 is a full sine wave.

    Frame t is centred on `t * hop_s`.

    Args:
        audio: (N,) in about [-1, 1].
        rate_hz: samples a second.
        n_bands: triangles, evenly spaced in mels up to half the rate.
        hop_s: between two frames.

    Source: the scale is 2595 log10(1 + f / 700), O'Shaughnessy 1987.
    """
    size = max(16, round(_WINDOW_S * rate_hz))
    starts = np.round(np.arange(0, len(audio), max(1.0, hop_s * rate_hz))).astype(np.int64)
    padded = np.pad(audio.astype(np.float32), (size // 2, size))
    taper = np.hanning(size).astype(np.float32)
    filters = _triangles(n_bands, size, rate_hz)
    power = [
        np.abs(np.fft.rfft(padded[start : start + size] * taper)) ** 2 @ filters
        for start in starts.tolist()
    ]
    bands = np.array(power).reshape(len(starts), n_bands).T / (taper.sum() / 2) ** 2
    db: Array = 10 * np.log10(np.maximum(bands, 1e-10))
    return db


def _triangles(n_bands: int, size: int, rate_hz: int) -> Array:
    """(size // 2 + 1, n_bands), the share of each frequency in each band."""
    top = 2595 * np.log10(1 + rate_hz / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_bands + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(size, 1 / rate_hz)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    shares: Array = np.clip(np.minimum(rising, falling), 0, 1)
    # A band narrower than a bin would see nothing.
    nearest = np.abs(frequencies - edges[1:-1]).argmin(0)
    shares[nearest, np.arange(n_bands)] = np.maximum(shares[nearest, np.arange(n_bands)], 0.5)
    return shares


def envelope(audio: Audio, n_columns: int) -> tuple[Array, Array]:
    """The lowest and the highest sample (n,) of up to so many equal stretches of audio (N,)."""
    n = min(n_columns, len(audio))
    starts = np.linspace(0, len(audio), n, endpoint=False).astype(np.int64)
    return np.minimum.reduceat(audio, starts), np.maximum.reduceat(audio, starts)


@dataclass(frozen=True)
class Difference:
    """How far a sound is from another.

    Attributes:
        error_db: energy of their difference against that of the other's; less is nearer.
        spectral_db: root of the mean square of how far their mel spectrograms are apart, where
            the other's is within `RANGE_DB` of its loudest.
    """

    error_db: float
    spectral_db: float


def difference(audio: Audio, full: Audio, rate_hz: int) -> Difference:
    """The difference of audio (N,) to the full one (N,)."""
    energy = float(np.sum(full.astype(np.float64) ** 2))
    error = float(np.sum((audio.astype(np.float64) - full) ** 2))
    ours, theirs = mel_db(audio, rate_hz), mel_db(full, rate_hz)
    if not theirs.size:
        return Difference(-np.inf, 0.0)
    low = theirs.max() - RANGE_DB
    apart = (np.maximum(ours, low) - np.maximum(theirs, low))[theirs > low]
    ratio = error / energy if energy else 0.0
    return Difference(
        10 * float(np.log10(ratio)) if ratio else -np.inf,
        float(np.sqrt(np.mean(apart**2))) if apart.size else 0.0,
    )
