"""How well speech is understood and how high its voice is, measured without anyone listening.

The recogniser is pocketsphinx with the English model of its wheel. It is told how many words there
are, and in each place it may choose between the true word and four others (figures: all ten), so
chance is 20 % (10 %). It hears the teacher's own speech at 99 % of words and 98 % of figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pocketsphinx import Decoder, NGramModel, get_model_path
from scipy.signal import resample_poly
from semantic_tokens import RATE_HZ, pitch_of

from minibark.pipeline import Audio

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
N_OTHERS = 4
_N_COMMON = 2500  # words that the others are drawn from
_BEFORE_S, _AFTER_S = 0.2, 0.3  # silence put around, without which edge words are lost
_WINDOW, _HOP = 1_536, 480  # samples: `pitch_of` takes 64 ms, here every 20 ms
_LOUD, _VOICED = 0.25, 0.7  # share of the loudest frame; likeness to itself a period later


class Ear:
    """The recogniser, asked to choose between words."""

    def __init__(self) -> None:
        # Its usual beams and its lattice search now and then lose the last word.
        self._decoder = Decoder(
            samprate=16_000, lm=None, loglevel="FATAL",
            bestpath=False, beam=1e-60, pbeam=1e-60, wbeam=1e-40,
        )  # fmt: skip
        model = NGramModel.readfile(get_model_path("en-us/en-us.lm.bin"))
        lines = Path(self._decoder.config["dict"]).read_text(encoding="utf-8").splitlines()
        known = [word for word, _, _ in (line.partition(" ") for line in lines) if word.isalpha()]
        known.sort(key=lambda word: -model.prob([word]))
        self._common = [word for word in known if len(word) > 1][:_N_COMMON]

    def knows(self, word: str) -> bool:
        """Whether the recogniser has a pronunciation of a lower-case word."""
        return self._decoder.lookup_word(word) is not None

    def words(self, audio: Audio, words: Sequence[str], rng: random.Random) -> list[bool]:
        """Which words are heard, each out of five.

        Args:
            audio: (N,) float32 in about [-1, 1], 24 kHz.
            words: all that is said, in lower case; the recogniser must know them.
            rng: chooses the four others of each place: common words that sound otherwise.
        """
        return self._heard(audio, words, [[word, *self._others(word, rng)] for word in words])

    def digits(self, audio: Audio, words: Sequence[str]) -> list[bool]:
        """Which figures are heard, each out of ten; `words` spells them (`DIGITS`)."""
        return self._heard(audio, words, [DIGITS] * len(words))

    def _others(self, word: str, rng: random.Random) -> list[str]:
        sound = self._decoder.lookup_word(word)
        if sound is None:
            raise ValueError(f"the recogniser does not know {word!r}")
        others: list[str] = []
        while len(others) < N_OTHERS:
            other = rng.choice(self._common)
            if other not in others and self._decoder.lookup_word(other) != sound:
                others.append(other)
        return others

    def _heard(
        self, audio: Audio, words: Sequence[str], slots: Sequence[Sequence[str]]
    ) -> list[bool]:
        rule = " ".join(f"({' | '.join(slot)})" for slot in slots)
        self._decoder.add_jsgf_string(
            "slots", f"#JSGF V1.0; grammar slots; public <said> = {rule};"
        )
        self._decoder.activate_search("slots")
        padded = np.pad(audio, (int(_BEFORE_S * RATE_HZ), int(_AFTER_S * RATE_HZ)))
        samples = np.clip(resample_poly(padded, 2, 3), -1, 1) * 32_767
        self._decoder.start_utt()
        self._decoder.process_raw(samples.astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        heard = found.hypstr.split() if found else []
        heard += [""] * (len(words) - len(heard))
        return [word == other for word, other in zip(words, heard, strict=True)]


def mean_pitch_hz(audio: Audio) -> float:
    """Middle (median) pitch of the voiced frames of audio (N,), 24 kHz; 0 if none is voiced."""
    windows = sliding_window_view(np.pad(audio, (0, _WINDOW)), _WINDOW)[::_HOP].astype(np.float64)
    windows = windows - windows.mean(1, keepdims=True)
    loudness = windows.std(1)
    windows = windows[loudness > _LOUD * loudness.max()]
    voiced = []
    for window, pitch in zip(windows, pitch_of(windows), strict=True):
        lag = round(RATE_HZ / pitch) if pitch else _WINDOW
        early, late = window[:-lag], window[lag:]
        if early @ late > _VOICED * np.sqrt((early @ early) * (late @ late)):
            voiced.append(pitch)
    return float(np.median(voiced)) if voiced else 0.0
