"""`minibark say`: a text to an audio file."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio import FORMATS, AudioStream, check_suffix, encode_audio, save_audio
from ..bark import Bark
from ..files import replacing
from ..options import Options
from ..pipeline import Audio
from ..speech.dialog import parse_speakers
from ..speech.plan import LongOptions
from .bars import Bars
from .ends import complain
from .long import Listening, Said, preview, reading_of, say_pieces
from .shared import (
    add_model,
    add_options,
    add_running,
    check_distinct,
    check_writable,
    naming_stdout,
    open_bark,
    options_of,
    tell_of_idle,
)

if TYPE_CHECKING:
    from .shared import Commands


_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    say = commands.add_parser("say", parents=[parent], help="speak a text to an audio file")
    say.set_defaults(run=_run, parser=say)
    add = say.add_argument
    add_text(say)
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
    more = add_options(say, LongOptions, "long texts and dialogs, which are said in pieces")
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
        "--split-preview", action="store_true", help="show the pieces, and say nothing"
    )


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the text, in words or in a file."""
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="?",
        help="what to say; - reads standard input, as no TEXT does where that is a pipe",
    )
    parser.add_argument("-i", "--input", metavar="FILE", help="say what is in this UTF-8 text file")


def _run(args: argparse.Namespace) -> None:
    try:
        _check_places(args)
        options, plan = options_of(args, Options), options_of(args, LongOptions)
    except ValueError as error:
        args.parser.error(str(error))
    if args.one_piece:
        tell_of_idle(args, LongOptions)
    for place in filter(None, (args.output if args.output != "-" else None, args.save_voice)):
        check_writable(Path(place))
    text = text_of(args)
    bark = open_bark(args)
    if args.split_preview:
        preview(reading_of(bark, text, args, options, plan))
        return
    start = time.perf_counter()
    said = _say(bark, text, args, options, plan, start)
    wall_s = time.perf_counter() - start
    if not said.n_samples:
        raise ValueError("no audio was made, so nothing was written")
    if args.output != "-":
        _write(said, args, bark.sample_rate)
    if args.save_voice:
        said.voice.save(args.save_voice)
    if not args.quiet:
        audio_s = said.n_samples / bark.sample_rate
        place = "stdout" if args.output == "-" else args.output
        told = f"{place}: {audio_s:.1f} s of audio in {wall_s:.1f} s, RTF {wall_s / audio_s:.2f}"
        soon = f", the first sound after {said.first_s:.1f} s" if said.first_s is not None else ""
        complain(told + soon)


def _say(
    bark: Bark,
    text: str,
    args: argparse.Namespace,
    options: Options,
    plan: LongOptions,
    start: float,
) -> Said:
    """The sound of a text; what goes to standard output is written as it comes."""
    is_stream = args.output == "-"
    with Bars(args.quiet) as bars, contextlib.ExitStack() as stack:
        on_step = Listening(bars.step) if is_stream else bars.step
        reading = None if args.one_piece else reading_of(bark, text, args, options, plan)
        if reading is None or reading.is_one:
            what = bark.tokenizer.encode(reading.turns[0].piece.text) if reading else text
            voice = reading.voices[""] if reading else args.voice
            made = bark.generate_voice(what, voice, on_step=on_step, **vars(options))
            audio = bark.decode(made.fine)
            if is_stream and len(audio):
                _write_stdout(audio, bark.sample_rate, args.raw)
            return Said(made, len(audio), audio)
        with naming_stdout():
            out = AudioStream(sys.stdout.buffer, bark.sample_rate, args.raw) if is_stream else None
        if out:
            stack.enter_context(contextlib.closing(out))
        return say_pieces(reading, bars, on_step, start, out)


def _write(said: Said, args: argparse.Namespace, sample_rate: int) -> None:
    assert said.audio is not None
    if args.raw:
        with replacing(args.output) as part, part.open("wb") as file:
            AudioStream(file, sample_rate, raw=True).write(said.audio)
    else:
        save_audio(args.output, said.audio, sample_rate)


def _write_stdout(audio: Audio, sample_rate: int, raw: bool) -> None:
    out = sys.stdout.buffer
    with naming_stdout():
        if raw:
            AudioStream(out, sample_rate, raw=True).write(audio)
        else:
            out.write(encode_audio(audio, sample_rate))
        out.flush()


def _check_places(args: argparse.Namespace) -> None:
    check_text(args)
    if args.one_piece and args.split_preview:
        raise ValueError(
            "--one-piece makes one piece; --split-preview shows what it would be without"
        )
    if args.speaker and (args.voice or args.one_piece):
        raise ValueError("--speaker has the voices of a dialog; leave --voice and --one-piece out")
    if args.speaker:
        parse_speakers(args.speaker)
    if args.output in _STDOUT:
        args.output = "-"
    if args.output != "-":
        if not args.raw:
            check_suffix(args.output)
        elif Path(args.output).suffix.lower() in FORMATS:
            raise ValueError("--raw writes no audio file; end -o FILE in .raw or .pcm, or use -o -")
    elif sys.stdout is None and not args.split_preview:
        raise ValueError("-o - writes audio to standard output, which is closed; give -o FILE")
    elif sys.stdout is not None and sys.stdout.isatty() and not args.split_preview:
        raise ValueError("-o - writes audio; send it to a file or a pipe, not a terminal")
    if args.save_voice and Path(args.save_voice).suffix.lower() != ".npz":
        raise ValueError(f"--save-voice must end in .npz, got {args.save_voice!r}")
    sound = None if args.output == "-" else args.output
    read = {"-i": None if args.input == "-" else args.input}
    check_distinct({"-o": sound, "--save-voice": args.save_voice}, read)
    check_distinct({"-o": sound}, {"--voice": args.voice})  # a voice may be gone on with in place


def check_text(args: argparse.Namespace) -> None:
    """Refuse no text, and two; ValueError."""
    if args.text is not None and args.input is not None:
        raise ValueError("TEXT and -i FILE are two texts; give one")
    if args.text is None and args.input is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("there is no text: give TEXT, -i FILE, or a pipe on standard input")
    if "-" in (args.text, args.input) and sys.stdin is None:
        raise ValueError("- reads standard input, which is closed; give TEXT or -i FILE")


def text_of(args: argparse.Namespace) -> str:
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
