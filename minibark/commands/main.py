"""The command line, the only place that prints."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings

from .._version import __version__
from ..files import is_out_of_memory, reason, shown
from ..options import knobs
from ..speech.split import MissingExtraError
from ..surroundings import variables
from . import batch, cache, convert, detect, ends, info, inspect, say, serve, voices
from .shared import Parser, checkpoint_parser, general_parser, naming_stdout, tell

EXAMPLES = """examples:
  minibark say "Hello, my name is Bark." --model tiny
  minibark say "Hello, my name is Suno. [laughs]" -o hello.wav --voice v2/en_speaker_6 --seed 0
  echo "read me" | minibark say -o - --model suno/bark > out.wav
  minibark say -i chapter.txt -o chapter.mp3 --model tiny --voice female
  minibark say -i chapter.txt -o - --model tiny | aplay
  minibark say -i scene.txt --speaker Ann=female --speaker Bob=male --model tiny
  minibark say "Go on." --voice narrator.npz --save-voice narrator-2.npz -o next.flac
  minibark batch manifest.jsonl clips/ --model tiny --voice female
  minibark inspect "Hello, my name is Bark." --model tiny --voice female --seed 0 -o hello.html
  minibark serve --model tiny
  minibark voices --model suno/bark-small
  minibark voices female --model tiny -o preview.wav
  minibark convert suno/bark-small ./bark-small --precision bfloat16
  minibark info ./bark-small
  minibark detect clip.wav --classifier classifier.safetensors
  minibark cache --clear

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
    words = sys.argv[1:] if argv is None else argv
    with ends.ended_by(ends.Interruption()):
        try:
            return _main(words)
        except KeyboardInterrupt:
            line, status = ends.parting(words)
            tell(line)
            return status


def _main(words: list[str]) -> int:
    args = _parser().parse_args(_spelled_out(words))
    with warnings.catch_warnings(), variables(_hub_settings(args.quiet)):
        warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
        warnings.simplefilter("always", UserWarning)
        try:
            args.run(args)
            with naming_stdout():
                if sys.stdout is not None:
                    sys.stdout.flush()
            return 0
        except KeyboardInterrupt:
            if getattr(args, "output", None) != "-":
                raise
            tell("interrupted")  # what went to standard output has been written
            return 1
        except BrokenPipeError:
            ends.hush(sys.stdout)  # its reader has gone; the interpreter would say so at exit
            return 1
        except (ValueError, OSError, FloatingPointError, MissingExtraError) as error:
            return _failed(args, _words(error))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                what = reason(error) if isinstance(error, MemoryError) and str(error) else ""
                what = what or "out of memory"
                tip = "try --precision bfloat16, --offload or a smaller model"
                if not hasattr(args, "precision"):  # a command without the models' options
                    tip = "free some, or take a machine with more"
                return _failed(args, f"{what}; {tip}")
            tip = "" if args.debug else " (--debug shows where)"
            return _failed(args, f"{type(error).__name__}: {reason(error)}{tip}")


def _failed(args: argparse.Namespace, line: str) -> int:
    """Tell of the error that is being handled."""
    if args.debug:
        ends.complain(traceback.format_exc())
    tell(line)
    return 1


def _words(error: Exception) -> str:
    """An error as a person would say it: no number, and the file first."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error) or type(error).__name__
    where = shown(os.fsdecode(error.filename), 1000)
    if isinstance(error, PermissionError):
        return f"{where}: permission denied; its rights, or its folder's, do not allow this"
    return f"{where}: {error.strerror}"


def _spelled_out(words: list[str]) -> list[str]:
    """The words with the value of an option that may stand alone; argparse would take the next."""
    bare = {knob.flag: knob for _, knob in knobs() if knob.bare}
    spelled: list[str] = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == "--":
            return spelled + words[words.index("--") :]
        alone = word in bare and not bare[word].holds(following)
        spelled.append(f"{word}={bare[word].bare}" if alone else word)
    return spelled


def _hub_settings(quiet: bool) -> dict[str, str]:
    """Variables with which the hub's client says nothing of its own while a command runs."""
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {}
    return {"HF_HUB_VERBOSITY": "error", **bars}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minibark",
        description="Bark: text to speech, music and sounds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibark {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    opens = checkpoint_parser()
    for command in (say, serve, batch, inspect, voices, convert, info):
        command.add_to(commands, opens)
    for other in (detect, cache):
        other.add_to(commands, general_parser())
    return parser
