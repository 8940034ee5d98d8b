"""The Triton kernels against their plain-torch references and against torch's own operators.

    python benchmarks/bench_kernels.py --plot kernels.png
    TRITON_INTERPRET=1 python benchmarks/bench_kernels.py --device cpu --quick     # errors only

For each: the error, the time of a call, and what share of the copy bandwidth, measured in the same
run, its bytes make of it. How times are taken is in `replays.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from card import machine_card, print_card
from measure import add_json_option, check_device, check_output, check_plot, emit, positive
from replays import copy_bandwidth, quantiles, seconds_per_call

if TYPE_CHECKING:
    from kernel_cases import Case

KERNELS = (
    *("decode_layer", "decode_attention", "attention"),
    *("norm_qkv", "combine_residual", "norm_linear", "linear_residual"),
    *("embed_tokens", "choose_tokens"),
)
ROW = "{:<16} {:<30} {:>8} {:>9} {:>15} {:>7} {:>7} {:>7} {:>7}  {}"


def measure(case: Case, device: torch.device, repeats: int, copy_bytes_per_s: float | None) -> Any:
    """The figures of one case; without a copy bandwidth only the error."""
    from kernel_cases import plain_launches, prepare

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
    others = {"ref": work.ref, "torch": work.torch}
    for name, calls in others.items():
        taken = quantiles(seconds_per_call(calls, device, repeats)) if calls else None
        found[f"{name}_seconds"] = taken
        found[f"times_{name}"] = taken["median"] / seconds["median"] if taken else None
    found["plain_launch_seconds"] = None
    if work.dependent:
        with plain_launches():
            taken = quantiles(seconds_per_call(work.ours, device, repeats))
        found["plain_launch_seconds"] = taken
    return found


def try_tilings(case: Case, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """The times of a case with its work cut up in other ways; none if there are none."""
    from kernel_cases import prepare, tiled, tilings

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
    """What stands above the table."""
    print(
        ROW.format(
            *("kernel", "case", "error", "us", "(20-80 %)", "GB/s", "of copy"),
            *("x ref", "x torch", ""),
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
        words += [_times(found["times_ref"]), _times(found["times_torch"])]
        if found["flop_per_s"]:
            notes.append(f"{found['flop_per_s'] / 1e12:.1f} TFLOP/s")
        if found["plain_launch_seconds"]:
            plain = found["plain_launch_seconds"]["median"] * 1e6
            notes.append(f"{plain:.2f} us without dependent launch")
    print(ROW.format(*words, *[""] * (9 - len(words)), ", ".join(notes)).rstrip(), flush=True)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def plot(results: list[dict[str, Any]], title: str, file: Path) -> None:
    """Bars: the share of the copy bandwidth, and how many times faster than torch's operators."""
    from matplotlib.figure import Figure

    results = results[::-1]  # the first on top
    labels = [f"{found['kernel']}  {found['case']}" for found in results]
    kernels = [KERNELS.index(found["kernel"]) for found in results]
    figure = Figure(figsize=(11, 1.2 + 0.22 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bars = left.barh(
        labels,
        [100 * found["share_of_copy"] for found in results],
        color=[f"C{kernel}" for kernel in kernels],
    )
    left.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    left.set_xlabel("share of the copy bandwidth in % (higher is better)")
    left.tick_params(axis="y", labelsize=7)
    ratios = [found["times_torch"] or 0 for found in results]
    bars = right.barh(labels, ratios, color=[f"C{kernel}" for kernel in kernels])
    right.bar_label(
        bars, [f"{ratio:.2g}" if ratio else "-" for ratio in ratios], padding=2, fontsize=7
    )
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xlabel("times faster than torch's own operators")
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the Triton kernels: error, time, share of the copy bandwidth.",
        epilog="us: microseconds of a call in a CUDA graph, weights not in the L2 cache. x ref, "
        "x torch: how many times faster than the plain-torch reference and than torch's own "
        "operators. Exits with 1 if an error is over its tolerance. The last line is JSON.",
    )
    add = parser.add_argument
    add("--device", default="cuda", help="cuda; or cpu, under TRITON_INTERPRET=1, for the errors")
    add("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), metavar="NAME",
        help=f"which ones, of {', '.join(KERNELS)} (default: all)")  # fmt: skip
    add("--quick", action="store_true", help="few sizes")
    add("--errors-only", action="store_true", help="time nothing")
    add("--tilings", action="store_true",
        help="instead, time the kernels for one row cut up in other ways")  # fmt: skip
    add("--repeats", type=positive, default=30, metavar="N", help="timed replays (%(default)s)")
    add("--plot", type=Path, metavar="PNG", help="draw the result (needs matplotlib)")
    add_json_option(parser)
    args = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        sys.exit("bench_kernels: triton is not installed; pip install 'minibark[gpu]' (Linux)")
    check_device(parser, args.device)
    check_output(parser, args.json, args.plot)
    check_plot(args.plot)
    on_cpu = torch.device(args.device).type == "cpu"
    if on_cpu != (os.environ.get("TRITON_INTERPRET", "0") == "1"):
        sys.exit("bench_kernels: --device cpu and TRITON_INTERPRET=1 need each other")
    if args.tilings and (args.errors_only or args.plot):
        parser.error("--tilings has times alone, and no plot")
    if on_cpu:
        args.repeats = 1
    return args


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    on_cpu = device.type == "cpu"
    from kernel_cases import cases, launches_early

    card = machine_card(device)
    print_card(card)
    copy_bytes_per_s = None if args.errors_only else copy_bandwidth(device)
    if on_cpu:
        print("TRITON'S INTERPRETER ON A CPU: errors count, times mean nothing")
    else:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        early = "" if launches_early(device) else "no "
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
    if args.plot and copy_bytes_per_s and not args.tilings:
        name = "Triton's interpreter: times mean nothing" if on_cpu else card["gpu"]
        plot(results, f"{name}, medians of {args.repeats} replays", args.plot)
    wrong = [found for found in results if not found["right"]]
    if wrong:
        print(f"WRONG RESULTS in {len(wrong)} of {len(results)} cases")
    document = {
        "benchmark": "kernels",
        "card": card,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "times_mean_something": not on_cpu and not args.errors_only,
        "dependent_launch": launches_early(device),
        "copy_bytes_per_s": copy_bytes_per_s,
        "results": results,
    }
    emit(document, args.json)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
