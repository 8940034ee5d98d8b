"""`minibark cache`: the kept copies of pickles."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..checkpoint.kept import cache_folder, clear_copies, copies
from ..files import shown
from .ends import complain
from .shared import show

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    cache = commands.add_parser(
        "cache",
        parents=[parent],
        help="show the kept copies of pickles, or clear them",
        description="Suno's .pt files and other pickles are read once and kept as safetensors "
        "files. What the hub's client keeps is its own: see 'hf cache'.",
    )
    cache.set_defaults(run=_run)
    cache.add_argument("--clear", action="store_true", help="remove them; the pickles stay")


def _run(args: argparse.Namespace) -> None:
    kept = clear_copies(args.cache_dir) if args.clear else copies(args.cache_dir)
    for copy in kept:
        source = "source unknown" if copy.source is None else f"of {shown(copy.source, 1000)}"
        what = "removed" if args.clear else copy.state
        show(f"{shown(copy.path, 1000)}  {copy.n_bytes / 1e6:,.1f} MB  {source}  {what}")
    if not args.quiet:
        total = sum(copy.n_bytes for copy in kept) / 1e6
        verb = "removed" if args.clear else "kept"
        copy_or_copies = "copy" if len(kept) == 1 else "copies"
        complain(
            f"{cache_folder(args.cache_dir)}: {len(kept)} {copy_or_copies} {verb}, {total:,.1f} MB"
        )
