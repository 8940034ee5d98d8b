"""How long minibark takes to import and to load a converted checkpoint, and in how much memory.

    python benchmarks/bench_load.py --model small

Everything is measured in fresh processes. The first one of each kind is left out, so that files
come from the page cache and not from the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from card import machine_card, print_card
from checkpoints import RANDOM_MODELS, write_random
from measure import add_json_option, check_output, emit, peak_rss_bytes, positive, show, spread

import minibark
from minibark.config import STAGES, preset
from minibark.weights import open_checkpoint

IMPORT = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import minibark
end = time.perf_counter()
print(json.dumps({"torch_s": middle - start, "minibark_s": end - middle}))
"""


def load(folder: str) -> dict[str, float]:
    """Load all stages of a checkpoint, then read every weight once."""
    baseline = peak_rss_bytes()
    start = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    modules = [checkpoint.build(stage, torch.float32) for stage in STAGES]
    loaded = time.perf_counter()
    for module in modules:
        for tensor in module.state_dict().values():
            tensor.sum()  # a mapped file takes memory only once it has been read
    read = time.perf_counter()
    return {
        "load_s": loaded - start,
        "read_s": read - loaded,
        "baseline_rss_bytes": baseline,
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


def measure(model: str, repeats: int, import_repeats: int, seed: int) -> dict[str, Any]:
    """Figures of loading a random model of that size, and of importing."""
    with tempfile.TemporaryDirectory(prefix="minibark-bench-") as scratch:
        source, converted = Path(scratch, "source"), Path(scratch, "converted")
        source.mkdir()
        write_random(preset(model), source, seed)
        start = time.perf_counter()
        minibark.convert(source, converted)
        convert_s = time.perf_counter() - start
        file_bytes = (converted / "model.safetensors").stat().st_size
        loads = in_fresh_processes([__file__, "--load", str(converted)], repeats)
    imports = in_fresh_processes(["-c", IMPORT], import_repeats)
    baseline, peak = (
        spread(loads[name])["median"] for name in ("baseline_rss_bytes", "peak_rss_bytes")
    )
    return {
        "file_bytes": file_bytes,
        "convert_s": convert_s,
        "load_s": spread(loads["load_s"]),
        "read_s": spread(loads["read_s"]),
        "baseline_rss_bytes": baseline,
        "peak_rss_bytes": peak,
        "peak_over_file": peak / file_bytes,
        "growth_over_file": (peak - baseline) / file_bytes,
        "import_torch_s": spread(imports["torch_s"]),
        "import_minibark_s": spread(imports["minibark_s"]),
    }


def print_figures(figures: dict[str, Any]) -> None:
    """The figures, one a line."""
    file_gb, peak_gb, baseline_gb = (
        figures[name] / 1e9 for name in ("file_bytes", "peak_rss_bytes", "baseline_rss_bytes")
    )
    print(f"file               {file_gb:.3f} GB, converted in {figures['convert_s']:.1f} s")
    print(f"load, warm         {show(figures['load_s'])} s until all four stages are modules")
    print(f"read               {show(figures['read_s'])} s more to read every weight once")
    print(
        f"peak RSS           {peak_gb:.3f} GB, {figures['peak_over_file']:.2f} x the file; "
        f"{figures['growth_over_file']:.2f} x beyond the {baseline_gb:.3f} GB before loading"
    )
    print(
        f"import minibark    {show(figures['import_minibark_s'])} s beyond "
        f"import torch, {show(figures['import_torch_s'])} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time importing minibark and loading a converted float32 checkpoint.",
        epilog="The checkpoint has random weights and is written to a temporary directory (twice "
        "its size there: 3.2 GB for small); set TMPDIR for another place. The last line is JSON.",
    )
    add = parser.add_argument
    add("--model", default="small", choices=RANDOM_MODELS, help="its size (default: %(default)s)")
    add("--repeats", type=positive, default=5, metavar="N", help="loads (default: %(default)s)")
    add("--import-repeats", type=positive, default=10, metavar="N", help="imports (%(default)s)")
    add("--seed", type=int, default=0, help="of the random weights (%(default)s)")
    add("--load", metavar="DIR", help=argparse.SUPPRESS)  # what the fresh processes run
    add_json_option(parser)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load)))
        return
    check_output(parser, args.json)
    card = machine_card(torch.device("cpu"))
    print_card(card)
    figures = measure(args.model, args.repeats, args.import_repeats, args.seed)
    print(f"{args.model}, random weights, float32, medians of {args.repeats} fresh processes")
    print_figures(figures)
    settings = {
        name: getattr(args, name) for name in ("model", "repeats", "import_repeats", "seed")
    }
    emit({"benchmark": "load", "card": card, "settings": settings, **figures}, args.json)


if __name__ == "__main__":
    main()
