"""`minibark batch`: a manifest of texts to a folder of clips."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..audio import FORMATS
from ..bark import Bark
from ..checkpoint.hub import fixed
from ..options import Options
from ..speech.batch import MOST_ROWS
from ..speech.bulk import Job, Summary, counted
from ..speech.cluster import connected, crew
from ..speech.cluster_job import ClusterJob
from ..speech.folder import ERRORS
from ..speech.manifest import BadLine, Line, read_manifest
from ..speech.plan import LongOptions
from .ends import complain, hush
from .shared import (
    add_model,
    add_options,
    add_running,
    checkpoint_options,
    is_same,
    open_bark,
    options_of,
    tell_of_idle,
    whole_number,
)

if TYPE_CHECKING:
    from .shared import Commands

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_REDRAW_S = 0.5
_ABOUT = """A line of the manifest is a JSON object:

  {"id": "hello", "text": "Hello.", "voice": "female", "seed": 7, "temperature": 0.6}

id and text are needed. voice and the options have the names that Python gives them (min_eos_p,
max_duration_s, ...); those given here hold for lines without their own. A line without a seed has
one made of its id and --seed. OUT/ID.json says how a clip was made and is written last: a clip is
done once it is there, and the same command makes what is not. Lines of which no clip can be made
are told in OUT/errors.jsonl, and the exit status is 1."""
_OF_RAY = """Ray hands the lines out to workers, which write their clips themselves. So OUT is a
folder that all machines see under the same path, and --model a name or a directory that all of
them can open."""


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    batch = commands.add_parser(
        "batch",
        parents=[parent],
        help="speak a manifest of texts to a folder of clips",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    batch.set_defaults(run=_run, parser=batch)
    add = batch.add_argument
    add("manifest", metavar="MANIFEST", help="JSON lines, in UTF-8; - reads standard input")
    add("out", metavar="OUT", help="the folder of the clips; it is made if it is not there")
    formats = [suffix[1:] for suffix in FORMATS]
    add("--format", choices=formats, default=formats[0], help="of the sound (default: %(default)s)")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only part I of N of the lines")
    add(
        "--rows",
        type=whole_number(1, 1024),
        default=MOST_ROWS,
        metavar="N",
        help="clips that are made together (default: %(default)s)",
    )
    add("--one-piece", action="store_true", help="cut long texts off, as suno/bark does")
    add(
        "--again",
        action="store_true",
        help="make clips again whose line, options or model have changed, and let clips be that "
        "the manifest does not name",
    )
    _add_ray(batch)
    add_model(batch)
    add("--voice", metavar="NAME|FILE", help="of lines without: one of the model, or an .npz file")
    add_running(batch)
    add_options(batch)
    add_options(batch, LongOptions, "how to say what does not fit one piece")


def _add_ray(batch: argparse.ArgumentParser) -> None:
    add = batch.add_argument_group("on a Ray cluster", _OF_RAY).add_argument
    add(
        "--ray",
        metavar="ADDRESS",
        help="HOST:PORT of its head; auto: the one that this machine is part of; local: one of "
        "this machine, for this run",
    )
    of_one = "(default: a GPU each, or as many as there are cores for)"
    add("--workers", type=whole_number(1, 4096), metavar="N", help=f"how many {of_one}")
    add(
        "--cores-per-worker",
        type=whole_number(1, 1024),
        metavar="K",
        help="of each (default: 1 beside a GPU, else 4 or what a machine has)",
    )


def _shard(text: str) -> tuple[int, int]:
    part, _, n = text.partition("/")
    try:
        found = int(part), int(n)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got {text!r}")
    return found


def _run(args: argparse.Namespace) -> None:
    try:
        options, plan = options_of(args, Options), options_of(args, LongOptions)
    except ValueError as error:
        args.parser.error(str(error))
    if args.one_piece:
        tell_of_idle(args, LongOptions)
    own = {ERRORS, os.path.basename(args.manifest)} if args.manifest != "-" else set()
    for name in (name for name in own if name == ERRORS or name.endswith(".json")):
        if is_same(args.manifest, os.path.join(args.out, name)):
            args.parser.error(
                f"{args.manifest} is what a record or the list of errors may be written to; give "
                "the manifest another place"
            )
    if args.ray is None and (args.workers or args.cores_per_worker):
        args.parser.error("--workers and --cores-per-worker go with --ray")
    if args.ray is not None and args.threads:
        args.parser.error("the threads of a worker are --cores-per-worker; leave --threads out")
    job: Job | None = None
    settings: dict[str, Any] = {
        # Before a model is fetched, and once: it may be a pipe.
        "manifest": _lines(args, options, plan),
        "folder": args.out,
        "audio_format": args.format,
        "model": args.model,
        "shard": args.shard,
        "rows": args.rows,
        "one_piece": args.one_piece,
        "again": args.again,
    }
    try:
        with _begun(args, settings) as job:
            _make(job, args.quiet)
    except KeyboardInterrupt:
        n_made = job.summary.n_made if job else 0
        raise ValueError(
            f"interrupted; {counted(n_made, 'clip')} made and kept, the same command goes on"
        ) from None
    if not args.quiet:
        complain(f"{args.out}: {_told(job.summary)}")
    if job.bad:
        first = min(job.bad, key=lambda bad: bad.number)
        raise ValueError(
            f"{counted(len(job.bad), 'line')} without a clip, as {args.out}/{ERRORS} says; line "
            f"{first.number}: {first.reason}"
        )


def _lines(args: argparse.Namespace, options: Options, plan: LongOptions) -> list[Line | BadLine]:
    """The lines of the manifest."""
    if args.manifest != "-":
        return list(read_manifest(args.manifest, args.voice, options, plan))
    if sys.stdin is None:
        raise ValueError("- reads standard input, which is closed; give a file")
    return list(read_manifest(sys.stdin.buffer, args.voice, options, plan))


@contextlib.contextmanager
def _begun(args: argparse.Namespace, settings: dict[str, Any]) -> Iterator[Job]:
    """The job, with those who work for it."""
    if args.ray is None:
        with Job(open_bark(args), **settings) as job:
            yield job
        return
    with connected(args.ray, args.workers, args.cores_per_worker):
        workers = crew(args.device, args.workers, args.cores_per_worker)
        args.precision = args.precision or ("bfloat16" if workers.on_gpu else "float32")
        places = checkpoint_options(args)
        for name in ("cache_dir", "voices_dir"):
            places[name] = places[name] and os.path.abspath(os.path.expanduser(places[name]))
        places["stages"] = {stage: fixed(place) for stage, place in places["stages"].items()}
        opened = partial(
            Bark.from_pretrained,
            fixed(args.model),
            device=args.device or ("cuda" if workers.on_gpu else "cpu"),
            precision=args.precision,
            backend=args.backend,
            offload=args.offload,
            **places,
        )
        # What is here checks lines, and generates nothing.
        args.device, args.backend, args.offload = "cpu", None, False
        cluster: dict[str, Any] = {"crew": workers, "opened": opened}
        with ClusterJob(open_bark(args), **cluster, **settings) as job:
            yield job


def _make(job: Job, quiet: bool) -> None:
    """Run the job under a bar of clips."""
    from tqdm import tqdm

    with tqdm(
        total=job.n_todo,
        unit="clips",
        bar_format=_BAR,
        disable=quiet or not job.n_todo or sys.stderr is None,
        file=_Lasting(sys.stderr),
        dynamic_ncols=True,
    ) as bar:
        with contextlib.closing(job.run(_Postfix(bar))) as made:
            for _ in made:
                bar.update()


class _Lasting:
    """A stream whose reader may leave, or whose disk may be full: then it is hushed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write and flush it, if there is anybody to read it."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            hush(self._stream)

    def flush(self) -> None:
        """Nothing is left to be flushed."""


class _Postfix:
    """Shows, beside the bar, how far the clips in work are."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.drawn = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self.drawn > _REDRAW_S:
            self.drawn = time.monotonic()
            self.bar.set_postfix_str(f"{stage} {done}/{total}")


def _told(summary: Summary) -> str:
    """What became of a job, in one line."""
    parts = [f"{counted(summary.n_made, 'clip')} made"]
    if summary.n_made:
        rtf = summary.wall_s / summary.audio_s
        rate = summary.n_made / summary.wall_s
        parts[0] += (
            f", {summary.audio_s:.1f} s of audio in {summary.wall_s:.1f} s, RTF {rtf:.2f}, "
            f"{rate:.2f} clips/s"
        )
    if summary.n_kept:
        parts.append(f"{summary.n_kept} done before")
    if summary.n_doubtful:
        parts.append(f"{summary.n_doubtful} that may be wrong (see 'fault' in the records)")
    return "; ".join(parts)
