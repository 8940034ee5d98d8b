"""The Triton kernels against their plain-torch references and against torch's own operators.

    python benchmarks/bench_kernels.py
    TRITON_INTERPRET=1 python benchmarks/bench_kernels.py --device cpu --quick     # errors only

For each: the error, the time of a call, and what share of the copy bandwidth, measured in the same
run, its bytes make of it. How times are taken is in `common.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

if importlib.util.find_spec("triton") is None:
    sys.exit("bench_kernels: triton is not installed; pip install 'minibark[gpu]' (Linux)")

import torch
from common import (
    add_options,
    close,
    copy_bandwidth,
    machine_card,
    parse,
    print_card,
    quantiles,
    seconds_per_call,
)
from kernel_cases import MAKERS, Case, cases, prepare, tiled, tilings

from minibark.kernels.launch import dependent_launch

KERNELS = list(MAKERS)
ROW = "{:<16} {:<30} {:>8} {:>9} {:>15} {:>7} {:>7} {:>7}  {}"


def measure(case: Case, device: torch.device, repeats: int, copy_bytes_per_s: float | None) -> Any:
    """The figures of one case; without a copy bandwidth only the error."""
    work = prepare(case, device)
    found: dict[str, Any] = {
        "kernel": case.kernel,
        "case": case.label,
        **{name: getattr(case, name) for name in ("size", "precision", "n_rows", "n_keys")},
        "causal": case.causal,
        "error": work.error,
        "tolerance": work.tolerance,
        "right": work.error <= work.tolerance,  # False for NaN too
        "n_bytes": work.n_bytes,
    }
    if copy_bytes_per_s is None:
        return found
    seconds = quantiles(seconds_per_call(work.ours, device, repeats))
    bytes_per_s = work.n_bytes / seconds["median"]
    found |= {
        "seconds": seconds,
        "bytes_per_s": bytes_per_s,
        "share_of_copy": bytes_per_s / copy_bytes_per_s,
        "flop_per_s": work.n_flop / seconds["median"] or None,
    }
    taken = quantiles(seconds_per_call(work.torch, device, repeats)) if work.torch else None
    found["torch_seconds"] = taken
    found["times_torch"] = taken["median"] / seconds["median"] if taken else None
    return found


def try_tilings(case: Case, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """The times of a case with its work cut up in other ways; none if there are none."""
    found: list[dict[str, Any]] = []
    for tiling in tilings(case, device):
        with tiled(case, tiling):
            work = prepare(case, device)
            seconds = quantiles(seconds_per_call(work.ours, device, repeats))
        found.append(
            {
                "kernel": case.kernel,
                "case": case.label,
                "tiling": str(tiling),
                "used": not found,
                "right": work.error <= work.tolerance,
                "seconds": seconds,
            }
        )
    best = min((f for f in found if f["right"]), key=lambda f: f["seconds"]["median"], default=None)
    for one in found:
        one["fastest"] = one is best
        us = {name: f"{value * 1e6:.2f}" for name, value in one["seconds"].items()}
        notes = [word for word in ("used", "fastest") if one[word]]
        notes += [] if one["right"] else ["WRONG"]
        print(
            f"{case.kernel:<16} {case.label:<30} {one['tiling']:<16} {us['median']:>9} "
            f"{'(' + us['p20'] + '-' + us['p80'] + ')':>15}  {', '.join(notes)}".rstrip(),
            flush=True,
        )
    return found


def print_heading() -> None:
    print(
        ROW.format(
            *("kernel", "case", "error", "us", "(20-80 %)", "GB/s", "of copy"),
            *("x torch", ""),
        ).rstrip()
    )


def print_result(found: dict[str, Any]) -> None:
    """One line of the table."""
    words = [found["kernel"], found["case"], f"{found['error']:.1e}"]
    notes = [] if found["right"] else [f"WRONG: over {found['tolerance']:.0e}"]
    if "seconds" in found:
        us = {name: f"{value * 1e6:.2f}" for name, value in found["seconds"].items()}
        words += [us["median"], f"({us['p20']}-{us['p80']})", f"{found['bytes_per_s'] / 1e9:.0f}"]
        words += [f"{found['share_of_copy']:.0%}"]
        words.append("-" if found["times_torch"] is None else f"{found['times_torch']:.2f}")
        if found["flop_per_s"]:
            notes.append(f"{found['flop_per_s'] / 1e12:.1f} TFLOP/s")
    print(ROW.format(*words, *[""] * (8 - len(words)), ", ".join(notes)).rstrip(), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the Triton kernels: error, time, share of the copy bandwidth.",
        epilog="us: microseconds of a call in a CUDA graph, weights not in the L2 cache. x torch: "
        "how many times faster than torch's own operator. Exits with 1 if an error is over its "
        "tolerance. The last line is JSON.",
    )
    add = parser.add_argument
    device = {"default": "cuda", "help": "or cpu, under TRITON_INTERPRET=1, for the errors"}
    add_options(parser, "device repeats json", device=device, repeats=30)
    add("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), metavar="NAME",
        help=f"which ones, of {', '.join(KERNELS)} (default: all)")  # fmt: skip
    add("--quick", action="store_true", help="few sizes")
    add("--errors-only", action="store_true", help="time nothing")
    add("--tilings", action="store_true",
        help="instead, time the kernels for one row cut up in other ways")  # fmt: skip
    args = parse(parser)
    on_cpu = torch.device(args.device).type == "cpu"
    if on_cpu != (os.environ.get("TRITON_INTERPRET", "0") == "1"):
        sys.exit("bench_kernels: --device cpu and TRITON_INTERPRET=1 need each other")
    if args.tilings and args.errors_only:
        parser.error("--tilings has times alone")
    if on_cpu:
        args.repeats = 1
    return args


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    on_cpu = device.type == "cpu"
    card = machine_card(device)
    print_card(card)
    copy_bytes_per_s = None if args.errors_only else copy_bandwidth(device)
    if on_cpu:
        print("TRITON'S INTERPRETER ON A CPU: errors count, times mean nothing")
    else:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        early = "" if dependent_launch(device)["PDL"] else "no "
        print(f"compute capability {capability}, {early}programmatic dependent launch")
    if copy_bytes_per_s:
        print(f"copy bandwidth, read and written: {copy_bytes_per_s / 1e9:.0f} GB/s")
    if not args.tilings:
        print_heading()
    results = []
    with torch.inference_mode():
        for case in cases(quick=args.quick, on_cpu=on_cpu):
            if case.kernel in args.kernel:
                if args.tilings:
                    results += try_tilings(case, device, args.repeats)
                else:
                    results.append(measure(case, device, args.repeats, copy_bytes_per_s))
                    print_result(results[-1])
                if not on_cpu:
                    torch.cuda.empty_cache()
    wrong = [found for found in results if not found["right"]]
    if wrong:
        print(f"WRONG RESULTS in {len(wrong)} of {len(results)} cases")
    close(
        "kernels",
        args,
        card=card,
        times_mean_something=not on_cpu and not args.errors_only,
        dependent_launch=dependent_launch(device)["PDL"],
        copy_bytes_per_s=copy_bytes_per_s,
        results=results,
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
