"""`minibark say`: a text to an audio file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from .bars import Bars
from .shared import checkpoint_options, tell


def run_say(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Speak a text to a file."""
    from ..audio import check_suffix, encode_audio, save_audio
    from ..sampling import Sampling

    to_stdout = args.output == "-"
    try:
        for temperature in (args.temperature, args.waveform_temperature, args.fine_temperature):
            Sampling(temperature, args.top_k, args.top_p)
        if not to_stdout:
            check_suffix(args.output)
        if args.save_voice and Path(args.save_voice).suffix != ".npz":
            raise ValueError(f"--save-voice must end in .npz, got {args.save_voice!r}")
        if to_stdout and sys.stdout.isatty():
            raise ValueError("-o - writes audio; send it to a file or a pipe, not a terminal")
    except ValueError as error:
        parser.error(str(error))
    for place in filter(None, (None if to_stdout else args.output, args.save_voice)):
        _check_writable(Path(place))
    text = _read_stdin() if args.text == "-" else args.text
    if not text.strip():
        raise ValueError("the text is empty; give at least one word")
    bark = _bark(args)
    bars = Bars(args.quiet)
    start = time.perf_counter()
    with bars:
        made = bark.generate_voice(
            text,
            args.voice,
            temperature=args.temperature,
            waveform_temperature=args.waveform_temperature,
            fine_temperature=args.fine_temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_eos_p=args.min_eos_p,
            max_duration_s=args.max_duration,
            seed=args.seed,
            on_step=bars.step,
        )
        audio = bark.decode(made.fine)
    wall_s = time.perf_counter() - start
    if not len(audio):
        raise ValueError("no audio was made, so nothing was written")
    sample_rate = bark.config.codec.sampling_rate
    if args.save_voice:
        made.save(args.save_voice)
    if to_stdout:
        sys.stdout.buffer.write(encode_audio(audio, sample_rate))
        sys.stdout.buffer.flush()
    else:
        save_audio(args.output, audio, sample_rate)
    if not args.quiet:
        audio_s = len(audio) / sample_rate
        place = "stdout" if to_stdout else args.output
        print(
            f"{place}: {audio_s:.1f} s of audio in {wall_s:.1f} s, RTF {wall_s / audio_s:.2f}",
            file=sys.stderr,
        )


def _bark(args: argparse.Namespace) -> Any:
    """The Bark that the options of `say` describe."""
    import torch

    from ..bark import Bark
    from ..checkpoint.voices import Voices
    from ..config import preset

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    running = {
        "device": args.device,
        "precision": args.precision,
        "backend": args.backend,
        "offload": args.offload,
    }
    if args.model == "random":
        if not args.quiet:
            tell("'random' has seeded random weights: the sound is noise")
        voices = Voices.from_directory(args.voices_dir) if args.voices_dir else None
        return Bark(preset("random"), voices=voices, **running)
    return Bark.from_pretrained(args.model, **running, **checkpoint_options(args))


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
