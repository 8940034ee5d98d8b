"""`minibark say`: a text to an audio file."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..audio import FORMATS, AudioStream, check_suffix, encode_audio, save_audio
from ..bark import Bark
from ..files import replacing
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
from .shared import (
    add_model,
    add_options,
    add_running,
    check_writable,
    open_bark,
    options_of,
    show,
)

if TYPE_CHECKING:
    from .shared import Commands


_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    say = commands.add_parser("say", parents=[parent], help="speak a text to an audio file")
    say.set_defaults(run=_run, parser=say)
    add = say.add_argument
    add(
        "text",
        metavar="TEXT",
        nargs="?",
        help="what to say; - reads standard input, as no TEXT does where that is a pipe",
    )
    add("-i", "--input", metavar="FILE", help="say what is in this UTF-8 text file")
    add(
        "-o",
        "--output",
        default="bark.wav",
        metavar="FILE",
        help=f"ends in {', '.join(FORMATS)}; - writes WAV to standard output "
        "(default: %(default)s)",
    )
    add("--raw", action="store_true", help="16-bit samples alone, little-endian, without a header")
    add_model(say)
    add("--voice", metavar="NAME|FILE", help="a voice of the model, or an .npz file")
    add(
        "--save-voice",
        metavar="FILE",
        help="keep what was said (last) as an .npz voice to go on with",
    )
    add_running(say)
    add_options(say)
    long = "how to say what does not fit one piece"
    add_options(say, LongOptions, long)
    more = say.add_argument_group("long texts and dialogs")
    more.add_argument(
        "--speaker",
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="the text is a dialog, lines NAME: text; who speaks how, once for each",
    )
    more.add_argument(
        "--one-piece", action="store_true", help="cut a long text off, as suno/bark does"
    )
    more.add_argument(
        "--split-preview", action="store_true", help="show the pieces of the text, and say nothing"
    )


def _run(args: argparse.Namespace) -> None:
    try:
        _check_places(args)
        options, plan = options_of(args, Options), options_of(args, LongOptions)
    except ValueError as error:
        args.parser.error(str(error))
    for place in filter(None, (args.output if args.output != "-" else None, args.save_voice)):
        check_writable(Path(place))
    text = _text(args)
    bark = open_bark(args)
    if args.split_preview:
        _preview(_reading(bark, text, args, options, plan))
        return
    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        on_step = _Listening(bars.step) if args.output == "-" else bars.step
        if args.one_piece or _is_one_piece(bark, text, args, options, plan):
            made = bark.generate_voice(text, args.voice, on_step=on_step, **vars(options))
            audio, first_s = bark.decode(made.fine), None
            if args.output == "-" and len(audio):
                _write_stdout(audio, bark.sample_rate, args.raw)
        else:
            reading = _reading(bark, text, args, options, plan)
            made, audio, first_s = _long(bark, reading, args, bars, on_step, start)
    wall_s = time.perf_counter() - start
    if not len(audio):
        raise ValueError("no audio was made, so nothing was written")
    if args.save_voice:
        made.save(args.save_voice)
    if args.output != "-":
        if args.raw:
            with replacing(args.output) as part, part.open("wb") as file:
                AudioStream(file, bark.sample_rate, raw=True).write(audio)
        else:
            save_audio(args.output, audio, bark.sample_rate)
    if not args.quiet:
        audio_s = len(audio) / bark.sample_rate
        place = "stdout" if args.output == "-" else args.output
        said = f"{place}: {audio_s:.1f} s of audio in {wall_s:.1f} s, RTF {wall_s / audio_s:.2f}"
        soon = f", the first sound after {first_s:.1f} s" if first_s is not None else ""
        print(said + soon, file=sys.stderr)


def _reading(
    bark: Bark, text: str, args: argparse.Namespace, options: Options, plan: LongOptions
) -> Reading:
    reading = Reading(bark, options, plan)
    if args.speaker:
        return reading.dialog(text, parse_speakers(args.speaker))
    return reading.text(text, args.voice, first_short=args.output == "-")


def _is_one_piece(
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


def _long(
    bark: Bark,
    reading: Reading,
    args: argparse.Namespace,
    bars: Bars,
    on_step: OnStep,
    start: float,
) -> tuple[Voice, Audio, float]:
    """The last piece's tokens, all of the sound, and the seconds until the first of it."""
    is_stream = args.output == "-"
    out = AudioStream(sys.stdout.buffer, bark.sample_rate, args.raw) if is_stream else None
    parts: list[Audio] = []
    first_s = 0.0
    voices: list[Voice] = []
    at_once = 1 if is_stream else MOST_ROWS
    for part in reading.sound(on_step, at_once, bars.pieces, voices.append):
        first_s = first_s or time.perf_counter() - start
        parts.append(part)
        if out:
            out.write(part)
    if out:
        out.close()
    return voices[-1], np.concatenate(parts), first_s


def _preview(reading: Reading) -> None:
    """A line for each piece."""
    for number, (piece, speaker) in enumerate(((t.piece, t.speaker) for t in reading.turns), 1):
        who = f"{speaker}: " if speaker else ""
        pauses = [
            f"[{seconds:g} s]" if seconds else ""
            for seconds in (piece.pause_before_s, piece.pause_after_s)
        ]
        words = " ".join(filter(None, (pauses[0], who + piece.text, pauses[1])))
        show(f"{number:>3}  {piece.n_tokens:>3} tokens  {piece.expected_s:>4.1f} s  {words}")


def _write_stdout(audio: Audio, sample_rate: int, raw: bool) -> None:
    out = sys.stdout.buffer
    if raw:
        AudioStream(out, sample_rate, raw=True).write(audio)
    else:
        out.write(encode_audio(audio, sample_rate))
    out.flush()


class _Listening:
    """A callback that ends the work when nobody reads standard output any more."""

    def __init__(self, step: OnStep) -> None:
        self.step = step
        self.poll = select.poll() if hasattr(select, "poll") else None
        if self.poll:
            self.poll.register(sys.stdout.fileno(), 0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.step(stage, done, total)
        if self.poll and any(event & select.POLLERR for _, event in self.poll.poll(0)):
            raise BrokenPipeError("the reader of standard output has gone")


def _check_places(args: argparse.Namespace) -> None:
    if args.text is not None and args.input is not None:
        raise ValueError("TEXT and -i FILE are two texts; give one")
    if args.text is None and args.input is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("there is no text: give TEXT, -i FILE, or a pipe on standard input")
    if args.speaker and (args.voice or args.one_piece):
        raise ValueError("--speaker has the voices of a dialog; leave --voice and --one-piece out")
    if args.speaker:
        parse_speakers(args.speaker)
    if args.output in _STDOUT:
        args.output = "-"
    if args.output != "-":
        if not args.raw:
            check_suffix(args.output)
    elif sys.stdout.isatty() and not args.split_preview:
        raise ValueError("-o - writes audio; send it to a file or a pipe, not a terminal")
    if args.save_voice and Path(args.save_voice).suffix.lower() != ".npz":
        raise ValueError(f"--save-voice must end in .npz, got {args.save_voice!r}")


def _text(args: argparse.Namespace) -> str:
    """What is to be said.

    Raises:
        ValueError: it is empty, or not UTF-8.
        OSError: the file cannot be read.
    """
    if args.input is not None and args.input != "-":
        where, content = args.input, Path(os.path.expanduser(args.input)).read_bytes()
    elif args.text is None or args.text == "-":
        where, content = "standard input", sys.stdin.buffer.read()
    else:
        where, content = "TEXT", os.fsencode(args.text)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error})") from error
    if not text.strip():
        raise ValueError(f"{where} is empty; give at least one word")
    return text
