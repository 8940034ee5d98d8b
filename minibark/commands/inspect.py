"""`minibark inspect`: a page that shows how a sentence became sound."""

from __future__ import annotations

import argparse
import secrets
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..bark import Bark
from ..options import Options
from ..speech.plan import LongOptions
from ..speech.reading import Reading
from ..speech.split import MissingExtraError
from .bars import Bars
from .ends import complain
from .say import add_text, check_text, text_of
from .shared import (
    add_model,
    add_options,
    add_running,
    check_writable,
    open_bark,
    options_of,
    tell,
)

if TYPE_CHECKING:
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
    from ..study.page import save_numbers, save_page
    from ..study.trace import trace

    text = text_of(args)
    bark = open_bark(args)
    _tell_of_pieces(bark, text, args, options)
    given = {**vars(options)}
    if options.seed is None:  # one that the page can name
        given["seed"] = secrets.randbelow(2**31)
    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        seen = trace(bark, text, args.voice, on_step=bars.step, **given)
    save_page(seen, args.output, _command(args, text, given["seed"]))
    if args.json:
        save_numbers(seen, args.json)
    if args.save_voice:
        seen.voice.save(args.save_voice)
    if not args.quiet:
        wall_s = time.perf_counter() - start
        complain(
            f"{args.output}: {seen.duration_s:.1f} s of audio, shown after {wall_s:.1f} s; open it "
            "in a browser"
        )


def _check_places(args: argparse.Namespace) -> None:
    check_text(args)
    for flag, place, suffixes in (
        ("-o", args.output, (".html", ".htm")),
        ("--json", args.json, (".json",)),
        ("--save-voice", args.save_voice, (".npz",)),
    ):
        if place and Path(place).suffix.lower() not in suffixes:
            raise ValueError(f"{flag} must end in {suffixes[0]}, got {place!r}")


def _tell_of_pieces(bark: Bark, text: str, args: argparse.Namespace, options: Options) -> None:
    """Say that `say` would make more than one utterance of a text, which this does not."""
    try:
        with warnings.catch_warnings():  # `trace` reads it again, and warns
            warnings.simplefilter("ignore")
            reading = Reading(bark, options, LongOptions()).text(text, args.voice)
    except MissingExtraError:
        return
    if not reading.is_one and not args.quiet:
        tell(
            f"say would speak this text in {len(reading.turns)} pieces; here it is one utterance, "
            "as with say --one-piece"
        )


def _command(args: argparse.Namespace, text: str, seed: int) -> str:
    """The command that makes the page again: as it was given, with the seed and the text."""
    words: list[str] = args.parser.words
    ours = ["--seed", str(seed)] if args.seed is None else []
    if args.input in (None, "-") and args.text in (None, "-"):  # it came by standard input
        left_out = ("-", "--", "-i", "--input", "-i-", "--input=-")
        words = [*(word for word in words if word not in left_out), "--", text.strip()]
    return shlex.join(["minibark", "inspect", *ours, *words])
