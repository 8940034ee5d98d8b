"""What several commands share: the options that name a checkpoint, and what they say."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..bark import Bark
from ..checkpoint.hub import BUILT_IN, RANDOM
from ..config import STAGES
from ..files import shown, warn
from ..options import Knobs, Options, flag_of, knobs
from ..precision import BACKENDS, PRECISIONS
from .ends import complain, hush

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

K = TypeVar("K", bound=Knobs)


class Parser(argparse.ArgumentParser):
    """A parser whose errors tell what to do with a text that begins with a dash."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class; the words are kept for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message."""
        words = self._words
        words = words[: words.index("--")] if "--" in words else words
        stray = message.partition("unrecognized arguments: ")[2].split()
        if stray and not any(word.startswith("-") for word in stray):
            message += "; put a text of several words in quotes"
        elif stray or any(word.startswith("-") and " " in word for word in words):
            message += (
                "; a text that begins with a dash goes after --, as the last word, or in "
                "by standard input (-)"
            )
        super().error(message)


def show(line: str) -> None:
    """Print a line on stdout, what its encoding lacks in escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with naming_stdout():
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def tell(line: str) -> None:
    """Say one line on stderr."""
    complain(f"minibark: {shown(' '.join(line.split()), 4000)}")


@contextlib.contextmanager
def naming_stdout() -> Iterator[None]:
    """Let an error of writing to standard output, such as a full disk, say where it was."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = "standard output"
            hush(sys.stdout)
        raise


def general_parser() -> argparse.ArgumentParser:
    """Options that every command has."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--cache-dir", metavar="DIR", help="for downloads and converted pickles")
    parent.add_argument("-q", "--quiet", action="store_true", help="no bars, no closing line")
    parent.add_argument("--debug", action="store_true", help="show where in the code it failed")
    return parent


def checkpoint_parser() -> argparse.ArgumentParser:
    """Options of every command that opens a checkpoint."""
    parent = general_parser()
    group = parent.add_argument_group("where the checkpoint comes from")
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
    return parent


def checkpoint_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `open_checkpoint` that come from these."""
    return {
        "cache_dir": args.cache_dir,
        "revision": args.revision,
        "offline": args.offline,
        "stages": dict(args.stage),
        "voices_dir": args.voices_dir,
    }


def _stage_option(text: str) -> tuple[str, str]:
    stage, separator, place = text.partition("=")
    if not separator or not place:
        raise argparse.ArgumentTypeError(f"expected STAGE=PLACE, got {text!r}")
    if stage not in STAGES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(STAGES)}, got {stage!r}")
    return stage, place


DEFAULT_MODEL = "suno/bark-small"


def add_model(parser: argparse.ArgumentParser, default: str | None = DEFAULT_MODEL) -> None:
    """Add `--model`."""
    parser.add_argument(
        "--model",
        default=default,
        help=f"hub repository or directory; {BUILT_IN!r} ships with minibark, {RANDOM!r} makes "
        f"noise to try the pipeline out; a directory of such a name is ./{BUILT_IN} "
        f"(default: {DEFAULT_MODEL})",
    )


def add_precision(parser: argparse.ArgumentParser, choices: tuple[str, ...], default: str) -> None:
    """Add `--precision`."""
    parser.add_argument("--precision", choices=choices, help=f"default: {default}")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options of `open_bark`, but for the model's."""
    add = parser.add_argument
    add("--device", help="cpu, cuda, mps ... (default: cuda where there is one, else cpu)")
    note = "float32 on a CPU, bfloat16 on CUDA; int8 is for both, int4 for CPUs"
    add_precision(parser, PRECISIONS, note)
    add(
        "--backend",
        choices=BACKENDS,
        help="what decodes; triton's fused kernels need an NVIDIA GPU (default: the fastest here)",
    )
    add("--threads", type=whole_number(1, 1024), metavar="N", help="on a CPU (default: its cores)")
    add("--offload", action="store_true", help="keep only the running stage on the device")


def open_bark(args: argparse.Namespace) -> Bark:
    """The Bark that the options describe; errors are those of `Bark.from_pretrained`."""
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


def add_options(
    parser: argparse.ArgumentParser,
    kind: type[Knobs] = Options,
    title: str = "how to generate",
) -> argparse._ArgumentGroup:
    """Add an option for every field of `Options`, or of other knobs; the group that has them."""
    group = parser.add_argument_group(title)
    for name, knob in knobs(kind):
        flag = flag_of(name, knob)
        default = getattr(kind, name)
        if knob.kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, dest=name, action=action, default=default, help=knob.help)
            continue
        note = "" if default is None else f" ({default})"
        if knob.bare:
            note = f" (alone: {knob.bare}; else the model's own)"
        group.add_argument(
            flag,
            dest=name,
            type=_number_or_none(knob.kind),
            default=default,
            metavar=knob.metavar,
            help=knob.help + note,
        )
    return group


def options_of(args: argparse.Namespace, kind: type[K]) -> K:
    """The `Options`, or other knobs, that were given.

    Raises:
        ValueError: a bad value; the text names the option as the command line does.
    """
    try:
        return kind(**{name: getattr(args, name) for name, _ in knobs(kind)})
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ValueError(f"{flag_of(name, dict(knobs(kind))[name])} {rest}") from error


def tell_of_idle(args: argparse.Namespace, kind: type[Knobs]) -> None:
    """Warn of what was given of these knobs, which are for what `--one-piece` cuts off."""
    usual = vars(kind())
    idle = [flag_of(name, knob) for name, knob in knobs(kind) if getattr(args, name) != usual[name]]
    if idle:
        warn(f"--one-piece makes one piece, for which {', '.join(idle)} means nothing")


def _number_or_none(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in "invalid float value"
    return parse


def check_writable(path: Path) -> None:
    """Refuse an output place now rather than after minutes of work."""
    path = Path(os.path.realpath(path.expanduser()))
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written; choose another place")


def check_distinct(
    outputs: Mapping[str, str | None], inputs: Mapping[str, str | None] | None = None
) -> None:
    """Refuse an output that is another output too, or an input: it would be written over.

    Both map what the command line calls a place to the place; None is none.

    Raises:
        ValueError: two are the same file.
    """
    made = [(flag, place) for flag, place in outputs.items() if place is not None]
    read = [(flag, place) for flag, place in (inputs or {}).items() if place is not None]
    for (flag, one), (other_flag, other) in (
        *itertools.combinations(made, 2),
        *itertools.product(made, read),
    ):
        if is_same(one, other):
            raise ValueError(f"{flag} and {other_flag} are the same file, {other}; give two")


def is_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two places are one file, whether or not it is there yet."""
    one, other = (os.path.realpath(os.path.expanduser(place)) for place in (one, other))
    with contextlib.suppress(OSError, ValueError):  # it is not there yet
        return os.path.samefile(one, other)
    return os.path.normcase(one) == os.path.normcase(other)


def whole_number(least: int, most: int) -> Any:
    """A converter for argparse that refuses what is out of range."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in [{least}, {most}]")
        return value

    parse.__name__ = "int"
    return parse
