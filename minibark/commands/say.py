"""`minibark say`: a text to an audio file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio import check_suffix, encode_audio, save_audio
from ..bark import Bark
from ..checkpoint.hub import RANDOM
from ..precision import BACKENDS, PRECISIONS
from .bars import Bars
from .shared import (
    add_model,
    add_options,
    add_precision,
    checkpoint_options,
    options_of,
    tell,
    whole_number,
)

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    say = commands.add_parser("say", parents=[parent], help="speak a text to an audio file")
    say.set_defaults(run=_run, parser=say)
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
        _check_writable(Path(place))
    text = _read_stdin() if args.text == "-" else args.text
    if not text.strip():
        raise ValueError("the text is empty; give at least one word")
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
    if args.output != "-":
        check_suffix(args.output)
    elif sys.stdout.isatty():
        raise ValueError("-o - writes audio; send it to a file or a pipe, not a terminal")
    if args.save_voice and Path(args.save_voice).suffix != ".npz":
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


def _check_writable(path: Path) -> None:
    """Refuse an output place now rather than after minutes of work."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written; choose another place")


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error})") from error
