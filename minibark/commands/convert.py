"""`minibark convert`: a checkpoint of any layout as one directory in ours."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.saving import STORED, convert
from .bars import Bars
from .ends import complain
from .shared import add_precision, checkpoint_options

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "convert", parents=[parent], help="write a checkpoint as one safe, memory-mapped directory"
    )
    parser.set_defaults(run=_run)
    parser.add_argument("source", metavar="SRC", help="hub repository, directory or 'tiny'")
    parser.add_argument("destination", metavar="DST", help="directory to make")
    parser.add_argument(
        "--voices", type=_names, metavar="NAMES", help="take only these, comma between (all)"
    )
    add_precision(parser, STORED, "as it is")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with a comma between, got {text!r}")
    return names


def _run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        convert(
            args.source,
            args.destination,
            precision=args.precision,
            voices=args.voices,
            on_step=bars.step,
            **checkpoint_options(args),
        )
    if not args.quiet:
        folder = Path(args.destination).expanduser()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seconds = time.perf_counter() - start
        complain(f"{folder}: {size / 1e6:,.1f} MB in {seconds:.1f} s")
