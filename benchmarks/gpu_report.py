"""Everything there is to know on a machine with a GPU, in one call of under ten minutes.

    python benchmarks/gpu_report.py --out report
    python benchmarks/gpu_report.py --quick --device cpu --out report    # a try: times mean nothing

A list of commands, the most important first, each in a process group of its own with a time limit
of its own, so that one that fails, hangs or leaves the GPU in error costs no other. What a command
prints is in its `.txt`, its figures in its `.json`; `report.json` says how each ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import add_options, close, machine_card, parse, print_card, write_random

import minibark
from minibark.checkpoint.presets import preset

HERE = Path(__file__).parent
LIMITS_S = {
    "tests": 150, "large": 170, "decode": 90, "kernels": 80,
    "batch": 70, "small": 100, "sanitizer": 60, "tilings": 120,
}  # fmt: skip


def commands(args: argparse.Namespace, models: dict[str, str], voice: str) -> dict[str, list[str]]:
    """What is run, by name, without its closing `--json FILE`."""
    on_cpu, large = args.device == "cpu", models["large"]
    precision = "float32" if on_cpu else "bfloat16"
    n_tokens = 2 if on_cpu else 20 if args.quick else 250
    spoken = f"--precision {precision} --voice {voice} --semantic-tokens {n_tokens}"
    sides = "minibark,transformers,suno" + ("" if on_cpu else ",minibark-compile")
    backends = "torch" if on_cpu else "triton torch"
    few = "--repeats 1 --warmup 0" if args.quick else "--repeats 3"
    speed = f"speed {spoken} --sides {sides} --backend {backends} --warmup-tokens 60 {few}"
    decode = f"--precision {precision} {'' if on_cpu else 'int8'} --ways {backends} {few} "
    decode += "--steps 2 --rows 1" if on_cpu else "compile --rows 1 16"
    one = "--kernel norm_linear" if on_cpu else ""
    lines = {
        "large": f"{speed} --model {models['large']} --limit-s {0.6 * LIMITS_S['large']}",
        "decode": f"decode --model {large} {decode}",
        "kernels": f"kernels --quick {one}",
        "batch": f"batch --model {large} {spoken} {few} --rows 1 {2 if on_cpu else 16}",
        "small": f"{speed} --model {models['small']} --limit-s {0.6 * LIMITS_S['small']}",
        "sanitizer": "kernels --quick --errors-only --kernel decode_layer decode_attention",
        "tilings": f"kernels --quick --tilings --repeats 10 {one}",
    }
    tests = f"-m pytest -m gpu -q --tb=short --maxfail=10 -n 8 {HERE.parent / 'tests'}"
    found = {"tests": [sys.executable, *tests.split()]}
    for name, line in lines.items():
        script, *options = line.split()
        script = str(HERE / f"bench_{script}.py")
        found[name] = [sys.executable, script, "--device", args.device, *options]
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    found["sanitizer"] = [*sanitizer, *found["sanitizer"]]
    if on_cpu:  # where every test is skipped and there is nothing to sanitize
        del found["tests"], found["sanitizer"], found["small"]
    elif shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not installed: its part is left out")
        del found["sanitizer"]
    return found


def run(name: str, words: list[str], limit_s: float, out: Path, on_cpu: bool) -> dict[str, Any]:
    """Run a command; how it ended, and the figures that it kept."""
    figures, log = out / f"{name}.json", out / f"{name}.txt"
    if "pytest" not in words:
        words = [*words, "--json", str(figures)]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if on_cpu and any("bench_kernels" in word for word in words):
        env["TRITON_INTERPRET"] = "1"
    if name == "sanitizer":  # blocks of their own, so that what is read beyond one is seen
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    start, failed = time.perf_counter(), None
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            if child.wait(limit_s):
                failed = f"exit status {child.returncode}"
        except subprocess.TimeoutExpired:
            failed = f"not done after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    took_s = round(time.perf_counter() - start, 1)
    return {"failed": failed, "took_s": took_s, "command": words, "figures": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Check and time minibark on a GPU, all in one call of under ten minutes.",
        epilog=f"Parts: {', '.join(LIMITS_S)}. The last line is JSON.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu_report"), metavar="DIR",
        help="folder for what is found, made if missing (default: %(default)s)")  # fmt: skip
    device = {"default": "cuda", "help": "or cpu, to try this script out"}
    add_options(parser, "device json", device=device)
    add("--only", nargs="+", choices=LIMITS_S, default=list(LIMITS_S), metavar="PART", help="these")
    add("--voice", type=Path, metavar="FILE", help=".npz voice (default: an output of the model)")
    add("--quick", action="store_true", help="a narrow random model and few tokens, to try it out")
    add("--limit-s", type=float, default=570, metavar="S", help="for all parts (%(default)s)")
    args = parse(parser)
    if args.voice and not args.voice.is_file():
        parser.error(f"--voice: there is no {args.voice}")
    means_something = args.device != "cpu" and not args.quick
    if not means_something:
        print("TIMES MEAN NOTHING: this is a try")
    args.out.mkdir(exist_ok=True)
    start = time.perf_counter()
    card = machine_card(torch.device(args.device))
    print_card(card)
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="minibark-report-") as scratch:
        sizes = {"large": "random", "small": "random"} if args.quick else {"large": "large"}
        models = {
            size: str(write_random(kind, Path(scratch, size), 0)) for size, kind in sizes.items()
        }
        if not args.quick and "small" in args.only:
            models["small"] = str(write_random("small", Path(scratch, "small"), 0))
        models.setdefault("small", models["large"])
        voice = str(args.voice.resolve()) if args.voice else str(Path(scratch, "voice.npz"))
        if not args.voice:
            random = minibark.Bark(preset("random"), device="cpu")
            options = {"max_duration_s": 8.0, "allow_early_stop": False, "seed": 0}
            random.generate_voice("A voice.", **options).save(voice)
        for name, words in commands(args, models, voice).items():
            if name not in args.only:
                continue
            left_s = args.limit_s - (time.perf_counter() - start)
            print(f"==== {name}: {' '.join(words[1:3])} ...", flush=True)
            if left_s < 5:
                parts[name] = {"failed": "no time left"}
            else:
                limit_s = min(LIMITS_S[name], left_s)
                parts[name] = run(name, words, limit_s, args.out, args.device == "cpu")
            why = parts[name]["failed"]
            print(f"{'**** FAILED: ' + why if why else '---- done'}, see {args.out / name}.txt")
            report = {"card": card, "times_mean_something": means_something, "parts": parts}
            (args.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = {name: part["failed"] for name, part in parts.items() if part["failed"]}
    report_file = str(args.out / "report.json")
    means = {"times_mean_something": means_something}
    close("gpu_report", args, **means, failed=failed, report=report_file)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
