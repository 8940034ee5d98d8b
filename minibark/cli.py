"""The command line, the only place that prints."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._version import __version__
from .progress import Bars

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
        warnings.showwarning = lambda message, *_: _tell(f"warning: {message}")
        warnings.simplefilter("always", UserWarning)
        try:
            args.run(args, parser)
        except KeyboardInterrupt:
            _tell("interrupted; nothing was written")
            return 1
        except BrokenPipeError:
            # The reader has gone; keep the interpreter from telling so again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            _tell(str(error) or type(error).__name__)
            return 1
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            _tell("out of memory; try --precision bfloat16, --offload or a smaller model")
            return 1
    return 0


def _say(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from .audio import check_suffix, encode_audio, save_audio
    from .sampling import Sampling

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


def _voices(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from .config import GenerationConfig
    from .voice import Voice
    from .weights import open_voices

    name = args.name
    if name is not None and name.endswith(".npz"):
        voice, config = Voice.load(name), GenerationConfig()
    else:
        voices, config = open_voices(
            args.model,
            cache_dir=args.cache_dir,
            revision=args.revision,
            offline=args.offline,
            voices_dir=args.voices_dir,
        )
        if name is None:
            print("\n".join(voices) if len(voices) else f"{args.model} comes with no voices")
            return
        voice = voices.load(name)
    voice.check(config)
    n_semantic, n_frames = len(voice.semantic), voice.fine.shape[1]
    print(
        f"{name}: a sound voice of {n_frames / config.coarse_rate_hz:.1f} s: "
        f"{n_semantic} semantic tokens, {n_frames} frames of {len(voice.fine)} codes"
    )


def _convert(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from .weights import convert

    start = time.perf_counter()
    with Bars(args.quiet) as bars:
        convert(
            args.source,
            args.destination,
            precision=args.precision,
            voices=args.voices.split(",") if args.voices else None,
            on_step=bars.step,
            **_checkpoint_options(args),
        )
    if not args.quiet:
        folder = Path(args.destination)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seconds = time.perf_counter() - start
        print(f"{folder}: {size / 1e6:,.1f} MB in {seconds:.1f} s", file=sys.stderr)


def _info(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from .bark import describe_running
    from .config import STAGES
    from .weights import open_checkpoint

    checkpoint = open_checkpoint(args.model, **_checkpoint_options(args))
    columns = "{:<9} {:>13} {:>6} {:>6} {:>6} {:>17} {:>14}  {}"
    print(
        columns.format(
            "stage", "parameters", "layers", "heads", "width", "vocabulary", "bytes", "precision"
        )
    )
    totals = [0, 0]
    for stage in STAGES:
        parameters, kinds = checkpoint.n_parameters(stage), Counter[str]()
        for tensor in checkpoint.states[stage].values():
            kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
        n_bytes = kinds.total()
        totals = [totals[0] + parameters, totals[1] + n_bytes]
        config = getattr(checkpoint.config, stage)
        shape = (
            ("-", "-", config.num_filters, config.codebook_size)
            if stage == "codec"
            else (
                config.n_layer,
                config.n_head,
                config.n_embd,
                f"{config.input_vocab_size}/{config.output_vocab_size}",
            )
        )
        largest_first = ", ".join(kind for kind, _ in kinds.most_common())
        print(columns.format(stage, f"{parameters:,}", *shape, f"{n_bytes:,}", largest_first))
    print(columns.format("total", f"{totals[0]:,}", "", "", "", "", f"{totals[1]:,}", "").rstrip())
    print(
        f"text vocabulary {len(checkpoint.tokenizer):,}, voices {len(checkpoint.voices)}, "
        f"{checkpoint.config.codec.sampling_rate:,} Hz"
    )
    print(f"runs here {describe_running()}")


def _bark(args: argparse.Namespace) -> Any:
    """The Bark that the options of `say` describe."""
    import torch

    from .bark import Bark
    from .config import preset
    from .voice import Voices

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
            _tell("'random' has seeded random weights: the sound is noise")
        voices = Voices.from_directory(args.voices_dir) if args.voices_dir else None
        return Bark(preset("random"), voices=voices, **running)
    return Bark.from_pretrained(args.model, **running, **_checkpoint_options(args))


def _checkpoint_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "cache_dir": args.cache_dir,
        "revision": args.revision,
        "offline": args.offline,
        "stages": dict(args.stage),
        "voices_dir": args.voices_dir,
    }


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


def _tell(line: str) -> None:
    print("minibark:", " ".join(line.split()), file=sys.stderr)


def _stage_option(text: str) -> tuple[str, str]:
    stage, separator, place = text.partition("=")
    if not separator or not place:
        raise argparse.ArgumentTypeError(f"expected STAGE=PLACE, got {text!r}")
    return stage, place


def _number(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in [{least:g}, {most:g}]")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid float value"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minibark",
        description="Bark: text to speech, music and sounds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minibark {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    source = _checkpoint_parser()

    say = commands.add_parser("say", parents=[source], help="speak a text to an audio file")
    say.set_defaults(run=_say)
    say.add_argument("text", metavar="TEXT", help="what to say; - reads standard input")
    add = say.add_argument
    add(
        "-o",
        "--output",
        default="bark.wav",
        metavar="FILE",
        help="ends in .wav, .flac or .ogg; - writes WAV to standard output (default: %(default)s)",
    )
    _add_model(say)
    add("--voice", metavar="NAME|FILE", help="a voice of the model, or an .npz file")
    add("--seed", type=_number(int, 0, 2**63 - 1), help="same seed, same sound")
    add("--temperature", type=float, default=0.7, metavar="T", help="text stage; 0 is greedy (0.7)")
    add("--waveform-temperature", type=float, default=0.7, metavar="T", help="coarse stage (0.7)")
    add("--fine-temperature", type=float, default=0.5, metavar="T", help="fine stage (0.5)")
    add("--top-k", type=int, metavar="K", help="text, coarse: keep the K likeliest (0: all)")
    add("--top-p", type=float, metavar="P", help="text, coarse: keep the likeliest up to P")
    add(
        "--min-eos-p",
        type=_number(float, 0, 1),
        default=0.2,
        metavar="P",
        help="end the text when its end is this likely (0.2)",
    )
    add("--max-duration", type=_number(float, 1e-3, 1e6), metavar="SECONDS", help="stop after it")
    add("--save-voice", metavar="FILE", help="keep what was said as an .npz voice to go on with")
    add("--device", help="cpu, cuda, mps ... (default: cuda where there is one, else cpu)")
    _add_precision(
        say,
        ("float32", "float16", "bfloat16", "int8", "int4"),
        "float32 on a CPU, bfloat16 on CUDA; int8 is for both, int4 for CPUs",
    )
    add(
        "--backend",
        choices=("torch", "triton"),
        help="what decodes; triton's fused kernels need an NVIDIA GPU (default: the fastest here)",
    )
    add("--threads", type=_number(int, 1, 1024), metavar="N", help="on a CPU (default: its cores)")
    add("--offload", action="store_true", help="keep only the running stage on the device")

    voices = commands.add_parser("voices", parents=[source], help="list voices, or check one")
    voices.set_defaults(run=_voices)
    voices.add_argument("name", nargs="?", metavar="NAME|FILE", help="the voice to check")
    _add_model(voices)

    convert = commands.add_parser(
        "convert", parents=[source], help="write a checkpoint as one safe, memory-mapped directory"
    )
    convert.set_defaults(run=_convert)
    convert.add_argument("source", metavar="SRC", help="hub repository, directory or 'tiny'")
    convert.add_argument("destination", metavar="DST", help="directory to make")
    convert.add_argument("--voices", metavar="NAMES", help="take only these, comma between (all)")
    _add_precision(convert, ("float32", "float16", "bfloat16", "int8"), "as it is")

    info = commands.add_parser("info", parents=[source], help="show what a checkpoint holds")
    info.set_defaults(run=_info)
    info.add_argument("model", metavar="MODEL", help="hub repository, directory or 'tiny'")
    return parser


def _checkpoint_parser() -> argparse.ArgumentParser:
    """Options that every command has."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("where the checkpoint comes from")
    group.add_argument("--cache-dir", metavar="DIR", help="for downloads and converted pickles")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--offline", action="store_true", help="never ask the hub")
    group.add_argument("--voices-dir", metavar="DIR", help="folder of .npz voices to use instead")
    group.add_argument(
        "--stage",
        action="append",
        default=[],
        type=_stage_option,
        metavar="STAGE=PLACE",
        help="take semantic, coarse, fine or codec from another repository, folder or .pt/.th file",
    )
    parent.add_argument("-q", "--quiet", action="store_true", help="no bars, no closing line")
    return parent


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="suno/bark-small",
        help="hub repository or directory; 'tiny' ships with minibark, 'random' makes noise to try "
        "the pipeline out; a directory of such a name is ./tiny (default: %(default)s)",
    )


def _add_precision(parser: argparse.ArgumentParser, choices: tuple[str, ...], default: str) -> None:
    parser.add_argument("--precision", choices=choices, help=f"default: {default}")
