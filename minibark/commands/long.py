"""What `minibark say` does with a text of several pieces."""

from __future__ import annotations

import argparse
import select
import sys
import time
from dataclasses import dataclass

import numpy as np

from ..audio import AudioStream
from ..bark import Bark
from ..options import Options
from ..pipeline import Audio
from ..sampling import OnStep
from ..speech.batch import MOST_ROWS
from ..speech.dialog import parse_speakers
from ..speech.plan import LongOptions
from ..speech.reading import Reading
from ..voice import Voice
from .bars import Bars
from .shared import naming_stdout, show


@dataclass(frozen=True)
class Said:
    """What was said.

    Attributes:
        voice: its tokens; of several pieces, those of the last that was not empty.
        n_samples: how much sound it was.
        audio: (N,) all of it; None where it has been written as it came.
        first_s: seconds until the first of it, where it came in pieces.
    """

    voice: Voice
    n_samples: int
    audio: Audio | None
    first_s: float | None = None


def reading_of(
    bark: Bark, text: str, args: argparse.Namespace, options: Options, plan: LongOptions
) -> Reading:
    """The pieces, and who says them, as the options ask; a stream begins with a short one."""
    reading = Reading(bark, options, plan)
    if args.speaker:
        return reading.dialog(text, parse_speakers(args.speaker))
    reading.text(text, args.voice)
    return reading.begin_short() if args.output == "-" and not reading.is_one else reading


def say_pieces(
    reading: Reading,
    bars: Bars,
    on_step: OnStep,
    start: float,
    out: AudioStream | None = None,
) -> Said:
    """Say all pieces: those that can be together or, into `out`, each as soon as it is made.

    `start` is when the work began, by `time.perf_counter`. What goes into `out` is not kept.
    """
    at_once = MOST_ROWS if out is None else 1
    parts: list[Audio] = []
    voices: list[Voice] = []
    n_samples, first_s = 0, 0.0

    def keep(voice: Voice) -> None:
        if len(voice.semantic) or not voices:
            voices[:] = [voice]

    for part in reading.sound(on_step, at_once, bars.pieces, keep):
        first_s = first_s or time.perf_counter() - start
        n_samples += len(part)
        if out is None:
            parts.append(part)
        else:
            with naming_stdout():
                out.write(part)
    audio = np.concatenate(parts) if out is None else None
    return Said(voices[0], n_samples, audio, first_s)


def preview(reading: Reading) -> None:
    """Show a line for each piece."""
    for number, (piece, speaker) in enumerate(((t.piece, t.speaker) for t in reading.turns), 1):
        who = f"{speaker}: " if speaker else ""
        pauses = [
            f"[{seconds:g} s]" if seconds else ""
            for seconds in (piece.pause_before_s, piece.pause_after_s)
        ]
        words = " ".join(filter(None, (pauses[0], who + piece.text, pauses[1])))
        show(f"{number:>3}  {piece.n_tokens:>3} tokens  {piece.expected_s:>4.1f} s  {words}")


class Listening:
    """A callback that ends the work when nobody reads standard output any more."""

    def __init__(self, step: OnStep) -> None:
        self.step = step
        self.poll = select.poll() if hasattr(select, "poll") else None
        if self.poll:
            self.poll.register(sys.stdout.fileno(), 0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Pass a step on.

        Raises:
            BrokenPipeError: the reader has gone.
        """
        self.step(stage, done, total)
        if self.poll and any(event & select.POLLERR for _, event in self.poll.poll(0)):
            raise BrokenPipeError("the reader of standard output has gone")
