"""The command line, the only place that prints."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from .._version import __version__
from .convert import run_convert
from .info import run_info
from .say import run_say
from .shared import add_model, add_precision, checkpoint_parser, number, tell
from .voices import run_voices

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
    parser = _parser()
    args = parser.parse_args(argv)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if args.quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
        warnings.simplefilter("always", UserWarning)
        try:
            args.run(args, parser)
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
    source = checkpoint_parser()

    say = commands.add_parser("say", parents=[source], help="speak a text to an audio file")
    say.set_defaults(run=run_say)
    say.add_argument("text", metavar="TEXT", help="what to say; - reads standard input")
    add = say.add_argument
    add(
        "-o",
        "--output",
        default="bark.wav",
        metavar="FILE",
        help="ends in .wav, .flac or .ogg; - writes WAV to standard output (default: %(default)s)",
    )
    add_model(say)
    add("--voice", metavar="NAME|FILE", help="a voice of the model, or an .npz file")
    add("--seed", type=number(int, 0, 2**63 - 1), help="same seed, same sound")
    add("--temperature", type=float, default=0.7, metavar="T", help="text stage; 0 is greedy (0.7)")
    add("--waveform-temperature", type=float, default=0.7, metavar="T", help="coarse stage (0.7)")
    add("--fine-temperature", type=float, default=0.5, metavar="T", help="fine stage (0.5)")
    add("--top-k", type=int, metavar="K", help="text, coarse: keep the K likeliest (0: all)")
    add("--top-p", type=float, metavar="P", help="text, coarse: keep the likeliest up to P")
    add(
        "--min-eos-p",
        type=number(float, 0, 1),
        default=0.2,
        metavar="P",
        help="end the text when its end is this likely (0.2)",
    )
    add("--max-duration", type=number(float, 1e-3, 1e6), metavar="SECONDS", help="stop after it")
    add("--save-voice", metavar="FILE", help="keep what was said as an .npz voice to go on with")
    add("--device", help="cpu, cuda, mps ... (default: cuda where there is one, else cpu)")
    add_precision(
        say,
        ("float32", "float16", "bfloat16", "int8", "int4"),
        "float32 on a CPU, bfloat16 on CUDA; int8 is for both, int4 for CPUs",
    )
    add(
        "--backend",
        choices=("torch", "triton"),
        help="what decodes; triton's fused kernels need an NVIDIA GPU (default: the fastest here)",
    )
    add("--threads", type=number(int, 1, 1024), metavar="N", help="on a CPU (default: its cores)")
    add("--offload", action="store_true", help="keep only the running stage on the device")

    voices = commands.add_parser("voices", parents=[source], help="list voices, or check one")
    voices.set_defaults(run=run_voices)
    voices.add_argument("name", nargs="?", metavar="NAME|FILE", help="the voice to check")
    add_model(voices)

    convert = commands.add_parser(
        "convert", parents=[source], help="write a checkpoint as one safe, memory-mapped directory"
    )
    convert.set_defaults(run=run_convert)
    convert.add_argument("source", metavar="SRC", help="hub repository, directory or 'tiny'")
    convert.add_argument("destination", metavar="DST", help="directory to make")
    convert.add_argument("--voices", metavar="NAMES", help="take only these, comma between (all)")
    add_precision(convert, ("float32", "float16", "bfloat16", "int8"), "as it is")

    info = commands.add_parser("info", parents=[source], help="show what a checkpoint holds")
    info.set_defaults(run=run_info)
    info.add_argument("model", metavar="MODEL", help="hub repository, directory or 'tiny'")
    return parser
