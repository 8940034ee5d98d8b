"""`minibark inspect`: a page that shows how a sentence became sound."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..bark import Bark
from ..files import is_file, replacing, warn
from ..options import Options
from ..speech.pieces import cut, is_one
from ..speech.plan import LongOptions
from ..speech.split import MissingExtraError
from .bars import Bars
from .ends import complain
from .say import add_text, check_text, text_of
from .shared import (
    add_model,
    add_options,
    add_running,
    check_distinct,
    check_writable,
    is_same,
    open_bark,
    options_of,
)

if TYPE_CHECKING:
    from ..study import ReadText, Trace
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    inspect = commands.add_parser(
        "inspect", parents=[parent], help="show how a sentence becomes sound, as an HTML page"
    )
    inspect.set_defaults(run=_run, parser=inspect)
    add = inspect.add_argument
    add_text(inspect)
    add(
        "-o",
        "--output",
        default="inspect.html",
        metavar="FILE",
        help="ends in .html (default: %(default)s)",
    )
    add("--json", metavar="FILE", help="write the numbers too")
    add_model(inspect)
    add("--voice", metavar="NAME|FILE", help="a voice of the model, or an .npz file")
    add("--save-voice", metavar="FILE", help="keep what was said as an .npz voice to go on with")
    add_running(inspect)
    add_options(inspect)


def _run(args: argparse.Namespace) -> None:
    try:
        _check_places(args)
        options = options_of(args, Options)
    except ValueError as error:
        args.parser.error(str(error))
    for place in filter(None, (args.output, args.json, args.save_voice)):
        check_writable(Path(place))
    from ..study import read_text, trace

    text = text_of(args)
    bark = open_bark(args)
    _check_named_voice(bark, args)
    read = read_text(bark, text, options.normalize)
    _tell_of_pieces(bark, read)
    if options.seed is None:  # one that the page can name
        options = dataclasses.replace(options, seed=secrets.randbelow(2**31))
    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        seen = trace(bark, read, args.voice, on_step=bars.step, **vars(options))
    _write(seen, args, _command(args, text, options))
    if not args.quiet:
        wall_s = time.perf_counter() - start
        complain(
            f"{args.output}: {seen.duration_s:.1f} s of audio, shown after {wall_s:.1f} s; open it "
            "in a browser"
        )


def _check_places(args: argparse.Namespace) -> None:
    check_text(args)
    if args.input == "":
        raise ValueError("-i is empty; name a file")
    places = {"-o": args.output, "--json": args.json, "--save-voice": args.save_voice}
    suffixes = {"-o": (".html", ".htm"), "--json": (".json",), "--save-voice": (".npz",)}
    given = {flag: place for flag, place in places.items() if place is not None}
    for flag, place in given.items():
        is_folder = place.endswith(("/", os.sep))
        if is_folder or Path(place).suffix.lower() not in suffixes[flag]:
            raise ValueError(f"{flag} must end in {suffixes[flag][0]}, got {place!r}")
    voice = args.voice if args.voice and args.voice.lower().endswith(".npz") else None
    check_distinct(places, {"-i": None if args.input == "-" else args.input, "--voice": voice})


def _check_named_voice(bark: Bark, args: argparse.Namespace) -> None:
    """Refuse to write over a voice of the model's, or of --voices-dir, that is to be used."""
    if args.save_voice and any(
        is_same(args.save_voice, at) for at in bark.voices.files(args.voice)
    ):
        raise ValueError(
            f"--save-voice {args.save_voice} is the file of the voice {args.voice}; give another"
        )


def _tell_of_pieces(bark: Bark, read: ReadText) -> None:
    """Say that `say` would make more than one utterance of a text, which this does not.

    Of a text that has too many tokens for one `trace` says it.
    """
    limit = bark.config.generation.max_input_semantic_length
    if read.n_ids > limit:
        return
    try:
        pieces = cut(read.text, bark.tokenizer, limit, LongOptions())
    except MissingExtraError:
        return
    if not is_one(pieces):
        warn(
            f"say would speak this text in {len(pieces)} pieces; here it is one utterance, as with "
            "say --one-piece"
        )


def _write(seen: Trace, args: argparse.Namespace, command: str) -> None:
    """Write the page and what else was asked for: all of it, or nothing."""
    from ..study import save_numbers, save_page

    with contextlib.ExitStack() as stack:
        save_page(seen, stack.enter_context(replacing(args.output)), command)
        if args.json:
            save_numbers(seen, stack.enter_context(replacing(args.json)))
        if args.save_voice:
            seen.voice.save(stack.enter_context(replacing(args.save_voice)))


def _command(args: argparse.Namespace, text: str, options: Options) -> str:
    """The command that makes the page again: all that was given, the seed and the text."""
    from ..study.settings import words_of_flags, words_of_options, words_of_text

    names = ("model", "voice", "device", "precision", "backend", "threads", "offload")
    places = ("revision", "offline", "voices_dir", "cache_dir")
    flags = {name: getattr(args, name) for name in (*names, *places)} | {"seed": options.seed}
    outputs = {"output": args.output, "json": args.json, "save_voice": args.save_voice}
    words = (
        *words_of_flags(flags, dict(args.stage)),
        *words_of_options(vars(options)),
        *words_of_flags(outputs, {}),
        *(("-i", args.input) if _is_kept(args.input) else words_of_text(text)),
    )
    return shlex.join(["minibark", "inspect", *words])


def _is_kept(place: str | None) -> bool:
    """Whether a text's file will be there again: no pipe, and no descriptor of this process."""
    if place in (None, "-"):
        return False
    path = os.path.abspath(os.path.expanduser(place))
    return is_file(path) and not path.startswith(("/dev/", "/proc/"))
