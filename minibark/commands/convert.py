"""`minibark convert`: a checkpoint as one directory in our layout."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .bars import Bars
from .shared import checkpoint_options


def run_convert(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Convert a checkpoint."""
    from ..checkpoint.saving import convert

    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        convert(
            args.source,
            args.destination,
            precision=args.precision,
            voices=args.voices.split(",") if args.voices else None,
            on_step=bars.step,
            **checkpoint_options(args),
        )
    if not args.quiet:
        folder = Path(args.destination)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seconds = time.perf_counter() - start
        print(f"{folder}: {size / 1e6:,.1f} MB in {seconds:.1f} s", file=sys.stderr)
