"""`minibark say`: a text to an audio file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio import FORMATS, check_suffix, encode_audio, save_audio
from ..bark import Bark
from ..checkpoint.hub import RANDOM
from ..precision import BACKENDS, PRECISIONS
from .bars import Bars
from .shared import (
    add_model,
    add_options,
    add_precision,
    check_writable,
    checkpoint_options,
    options_of,
    tell,
    whole_number,
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
    add_model(say)
    add("--voice", metavar="NAME|FILE", help="a voice of the model, or an .npz file")
    add("--save-voice", metavar="FILE", help="keep what was said as an .npz voice to go on with")
    add("--device", help="cpu, cuda, mps ... (default: cuda where there is one, else cpu)")
    note = "float32 on a CPU, bfloat16 on CUDA; int8 is for both, int4 for CPUs"
    add_precision(say, PRECISIONS, note)
    add(
        "--backend",
        choices=BACKENDS,
        help="what decodes; triton's fused kernels need an NVIDIA GPU (default: the fastest here)",
    )
    add("--threads", type=whole_number(1, 1024), metavar="N", help="on a CPU (default: its cores)")
    add("--offload", action="store_true", help="keep only the running stage on the device")
    add_options(say)


def _run(args: argparse.Namespace) -> None:
    try:
        _check_places(args)
        options = options_of(args)
    except ValueError as error:
        args.parser.error(str(error))
    for place in filter(None, (args.output if args.output != "-" else None, args.save_voice)):
        check_writable(Path(place))
    text = _text(args)
    bark = _bark(args)
    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        made = bark.generate_voice(text, args.voice, on_step=bars.step, **vars(options))
        audio = bark.decode(made.fine)
    wall_s = time.perf_counter() - start
    if not len(audio):
        raise ValueError("no audio was made, so nothing was written")
    if args.save_voice:
        made.save(args.save_voice)
    if args.output == "-":
        sys.stdout.buffer.write(encode_audio(audio, bark.sample_rate))
        sys.stdout.buffer.flush()
    else:
        save_audio(args.output, audio, bark.sample_rate)
    if not args.quiet:
        audio_s = len(audio) / bark.sample_rate
        place = "stdout" if args.output == "-" else args.output
        print(
            f"{place}: {audio_s:.1f} s of audio in {wall_s:.1f} s, RTF {wall_s / audio_s:.2f}",
            file=sys.stderr,
        )


def _check_places(args: argparse.Namespace) -> None:
    if args.text is not None and args.input is not None:
        raise ValueError("TEXT and -i FILE are two texts; give one")
    if args.text is None and args.input is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("there is no text: give TEXT, -i FILE, or a pipe on standard input")
    if args.output in _STDOUT:
        args.output = "-"
    if args.output != "-":
        check_suffix(args.output)
    elif sys.stdout.isatty():
        raise ValueError("-o - writes audio; send it to a file or a pipe, not a terminal")
    if args.save_voice and Path(args.save_voice).suffix.lower() != ".npz":
        raise ValueError(f"--save-voice must end in .npz, got {args.save_voice!r}")


def _bark(args: argparse.Namespace) -> Bark:
    """The Bark that the options describe."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    if args.model == RANDOM and not args.quiet:
        tell("'random' has seeded random weights: the sound is noise")
    return Bark.from_pretrained(
        args.model,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        offload=args.offload,
        **checkpoint_options(args),
    )


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
