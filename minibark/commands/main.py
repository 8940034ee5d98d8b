"""The command line, the only place that prints."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from .._version import __version__
from . import convert, info, say, voices
from .shared import checkpoint_parser, tell

EXAMPLES = """examples:
  minibark say "Hello, my name is Bark." --model tiny
  minibark say "Hello, my name is Suno. [laughs]" -o hello.wav --voice v2/en_speaker_6 --seed 0
  echo "read me" | minibark say - -o - --model suno/bark > out.wav
  minibark say "Go on." --voice narrator.npz --save-voice narrator-2.npz -o next.flac
  minibark voices --model suno/bark-small
  minibark convert suno/bark-small ./bark-small --precision bfloat16
  minibark info ./bark-small

Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `minibark`; None takes them from the process.

    Returns:
        0, or 1 after a failure that was told in one line on stderr.

    Raises:
        SystemExit: with 2 for wrong usage, 0 for `--help` and `--version`.
    """
    args = _parser().parse_args(argv)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if args.quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
        warnings.simplefilter("always", UserWarning)
        try:
            args.run(args)
        except KeyboardInterrupt:
            tell("interrupted; nothing was written")
            return 1
        except BrokenPipeError:
            # The reader has gone; keep the interpreter from telling so again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            tell(str(error) or type(error).__name__)
            return 1
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            tell("out of memory; try --precision bfloat16, --offload or a smaller model")
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minibark",
        description="Bark: text to speech, music and sounds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibark {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parent = checkpoint_parser()
    for command in (say, voices, convert, info):
        command.add_to(commands, parent)
    return parser
