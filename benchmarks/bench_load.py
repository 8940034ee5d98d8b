"""How long minibark takes to import and to load a converted checkpoint, and in how much memory.

    python benchmarks/bench_load.py --model small --precision float32 int8

Everything is measured in fresh processes. The first one of each kind is left out, so that files
come from the page cache and not from the disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    RANDOM_MODELS,
    add_options,
    close,
    machine_card,
    parse,
    peak_rss_bytes,
    positive,
    print_card,
    rss_bytes,
    show,
    spread,
    write_random,
)

import minibark
from minibark.config import STAGES
from minibark.precision import PRECISIONS

IMPORT = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from minibark import Bark
end = time.perf_counter()
print(json.dumps({"torch_s": middle - start, "minibark_s": end - middle}))
"""


def load(folder: str, precision: str) -> dict[str, float]:
    """Load all stages of a checkpoint, then read every weight once."""
    baseline = rss_bytes()
    start = time.perf_counter()
    bark = minibark.Bark.from_pretrained(folder, device="cpu", precision=precision)
    modules = [bark.model(stage) for stage in STAGES]
    loaded = time.perf_counter()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.sum()  # a mapped file takes memory only once it has been read
    read = time.perf_counter()
    return {
        "load_s": loaded - start,
        "read_s": read - loaded,
        "baseline_rss_bytes": baseline,
        "loaded_rss_bytes": rss_bytes(),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def in_fresh_processes(words: list[str], repeats: int) -> dict[str, list[float]]:
    """Run a command that prints one line of JSON; its values by name, without the first run's."""
    runs = []
    for _ in range(1 + repeats):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_load: {words[0]} failed:\n{done.stderr}")
        runs.append(json.loads(done.stdout))
    return {name: [run[name] for run in runs[1:]] for name in runs[0]}


def measure(
    model: str, precisions: list[str], repeats: int, import_repeats: int, seed: int
) -> dict[str, Any]:
    """Figures of loading a random model of that size, by precision, and of importing."""
    results = []
    with tempfile.TemporaryDirectory(prefix="minibark-bench-") as scratch:
        source = write_random(model, Path(scratch, "source"), seed)
        for precision in precisions:
            # int4 is not stored: its weights come from int8 ones.
            stored = "int8" if precision == "int4" else precision
            converted = Path(scratch, precision)
            start = time.perf_counter()
            minibark.convert(source, converted, precision=stored)
            convert_s = time.perf_counter() - start
            file_bytes = (converted / "model.safetensors").stat().st_size
            words = [__file__, "--load", str(converted), "--precision", precision]
            loads = in_fresh_processes(words, repeats)
            shutil.rmtree(converted)
            medians = {name: spread(values)["median"] for name, values in loads.items()}
            growth = medians["loaded_rss_bytes"] - medians["baseline_rss_bytes"]
            first = results[0]["growth_bytes"] if results else growth
            figures = {"file_bytes": file_bytes, "convert_s": convert_s, "growth_bytes": growth}
            figures |= {name: spread(loads[name]) for name in ("load_s", "read_s")}
            figures |= {"precision": precision, "growth_over_first": growth / first}
            results.append(figures | {"peak_rss_bytes": medians["peak_rss_bytes"]})
    imports = in_fresh_processes(["-c", IMPORT], import_repeats)
    return {
        "results": results,
        "import_torch_s": spread(imports["torch_s"]),
        "import_minibark_s": spread(imports["minibark_s"]),
    }


def print_figures(figures: dict[str, Any]) -> None:
    """The figures, a precision a line."""
    row = "{:<9} {:>8} {:>9}  {:<21} {:<21} {:>9} {:>8} {:>8}"
    heads = (
        "precision",
        "file GB",
        "convert s",
        "load s",
        "read s",
        "held GB",
        "of first",
        "peak GB",
    )
    print(row.format(*heads))
    for result in figures["results"]:
        print(
            row.format(
                result["precision"],
                f"{result['file_bytes'] / 1e9:.3f}",
                f"{result['convert_s']:.1f}",
                show(result["load_s"]),
                show(result["read_s"]),
                f"{result['growth_bytes'] / 1e9:.3f}",
                f"{result['growth_over_first']:.2f}",
                f"{result['peak_rss_bytes'] / 1e9:.3f}",
            )
        )
    print(
        f"import minibark: {show(figures['import_minibark_s'])} s beyond "
        f"import torch, {show(figures['import_torch_s'])} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time importing minibark and loading a checkpoint converted to a precision.",
        epilog="load: until all four stages are modules. read: what it takes more to read every "
        "weight once, as the first utterance does. held: memory resident after both beyond that "
        "before, mapped file included. The checkpoint has random weights and is written to a "
        "temporary directory (twice its size there: 3.2 GB for small); set TMPDIR for another "
        "place. The last line is JSON.",
    )
    precision = {"choices": PRECISIONS, "help": "stored and loaded so; int4 is loaded from int8"}
    model = {"choices": RANDOM_MODELS}
    add_options(parser, "model precision repeats seed json", model=model, precision=precision)
    add = parser.add_argument
    add("--import-repeats", type=positive, default=10, metavar="N", help="imports (%(default)s)")
    add("--load", metavar="DIR", help=argparse.SUPPRESS)  # what the fresh processes run
    args = parse(parser)
    if args.load:
        print(json.dumps(load(args.load, args.precision[0])))
        return
    card = machine_card(torch.device("cpu"))
    print_card(card)
    figures = measure(args.model, args.precision, args.repeats, args.import_repeats, args.seed)
    print(f"{args.model}, random weights, medians of {args.repeats} fresh processes")
    print_figures(figures)
    close("load", args, card=card, **figures)


if __name__ == "__main__":
    main()
