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
from ..speech.pieces import cut
from ..speech.plan import LongOptions
from ..speech.reading import Reading
from ..text import plain
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


def is_one_piece(
    bark: Bark, text: str, args: argparse.Namespace, options: Options, plan: LongOptions
) -> bool:
    """Whether a text needs no more than `generate`."""
    if args.speaker:
        return False
    written = plain(text, bark.tokenizer, options.normalize or bark.normalize)
    if not list(bark.tokenizer.words(written)):
        return True  # which `generate` refuses in its own words
    pieces = cut(written, bark.tokenizer, bark.config.generation.max_input_semantic_length, plan)
    return len(pieces) == 1 and not (pieces[0].pause_before_s or pieces[0].pause_after_s)


def reading_of(
    bark: Bark, text: str, args: argparse.Namespace, options: Options, plan: LongOptions
) -> Reading:
    """The pieces, and who says them, as the options ask."""
    reading = Reading(bark, options, plan)
    if args.speaker:
        return reading.dialog(text, parse_speakers(args.speaker))
    return reading.text(text, args.voice, first_short=args.output == "-")


def say_pieces(
    bark: Bark,
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
