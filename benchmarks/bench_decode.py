"""One decode step, one prompt and one fine pass: their time, and how near they are to a limit.

    python benchmarks/bench_decode.py --model large --precision bfloat16 int8 --device cuda
    python benchmarks/bench_decode.py --model small --precision float32 int8

A step must read its weights: its limit is the bandwidth of the memory, and each row's cache comes
on top. A prompt and a fine pass are products of many rows: theirs is the rate of torch's own
product of two large matrices. Both limits are measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from common import (
    add_options,
    checkpoint,
    close,
    machine_card,
    memory_bandwidth,
    one_line,
    parse,
    positive,
    print_card,
    product_rate,
    seconds_per_call,
    show,
    spread,
    timed,
)
from peers import CompiledDecoder
from torch import Tensor

import minibark
from minibark import fast
from minibark.config import GenerationConfig
from minibark.cpu.cache import new_cache
from minibark.cpu.scripted import ScriptedDecoder
from minibark.decoding import Decoder, RandomStreams
from minibark.model import GPT, FineGPT, KVCache
from minibark.precision import BACKENDS, PRECISIONS, is_reduced
from minibark.sampling import Sampling

WINDOW = 887  # positions that a coarse window with a full voice starts with
TEXT = 382  # positions of the semantic stage halfway through a clip of 5 s
WAYS = (*BACKENDS, "undrafted", "compile")


def decoder_of(way: str, bark: minibark.Bark, stage: str) -> Decoder:
    """What takes a stage's steps.

    Raises:
        BackendError: that way cannot run here.
    """
    model, g = bark.model(stage), bark.config.generation
    assert isinstance(model, GPT)
    n_merged = g.max_input_semantic_length if stage == "semantic" else 0
    if way == "compile":
        if is_reduced(bark.precision, bark.device):
            raise minibark.BackendError("torch.compile does not know packed weights")
        on_gpu = bark.device.type == "cuda"
        return CompiledDecoder(model, n_merged, mode="reduce-overhead" if on_gpu else "default")
    if way == "undrafted":
        return ScriptedDecoder(model, n_merged, partial(new_cache, precision=bark.precision))
    return fast.decoder(model, n_merged, fast.choose(bark.device, bark.precision, way))


def window_of(stage: str, g: GenerationConfig, n: int) -> tuple[int, list[slice]]:
    """Positions in front of n steps, and the ids that each chooses from."""
    if stage == "semantic":
        return TEXT, [slice(0, g.semantic_vocab_size)] * n
    start, size, k = g.semantic_vocab_size, g.codebook_size, g.n_coarse_codebooks
    return WINDOW, [slice(x, x + size) for x in (start + i % k * size for i in range(n))]


@torch.inference_mode()
def time_step(
    decoder: Decoder, bark: minibark.Bark, stage: str, n_rows: int, args: argparse.Namespace
) -> dict[str, Any]:
    """A step's seconds, the choice of the tokens included, and the bytes of its weights."""
    g, device = bark.config.generation, bark.device
    model = bark.model(stage)
    assert isinstance(model, GPT)
    n = min(args.steps, 16) if stage == "semantic" else args.steps
    length, ids = window_of(stage, g, n)
    length = min(length, model.config.block_size - n)
    n_merged = g.max_input_semantic_length if stage == "semantic" else 0
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 10_000, (length + n_merged,), generator=generator)] * n_rows
    streams = RandomStreams([torch.Generator(device).manual_seed(b) for b in range(n_rows)], device)

    def start() -> Callable[[], object]:
        first = decoder.prefill(prompts, ids[0]).argmax(-1) + ids[0].start
        return partial(decoder.take_steps, first, ids, Sampling(), streams, [[True] * n_rows] * n)

    def window() -> float:
        return timed(start(), device)[0] / n

    for _ in range(args.warmup + 128 // n):  # the first steps on a CPU are plain
        window()
    seconds = spread([window() for _ in range(args.repeats)])
    n_bytes = step_bytes(model, ids[0])
    return {"n_rows": n_rows, "seconds": seconds, "positions": length, "n_bytes": n_bytes}


def step_bytes(model: GPT, ids: slice) -> int:
    """Weights of the layers and of the head's rows.

    Packed weights are no tensors of a module: there it is the bits that they were made of.
    """
    config, bits = model.config, {"Int4": 4.6, "Int8": 8.0}
    products = [block.mlp.c_fc for block in model.transformer.blocks]
    sizes = [
        8.0 * weight.element_size()
        if isinstance(weight := getattr(product, "weight", None), Tensor)
        else bits[type(product).__name__[:4]]
        for product in products
    ]
    layers = 12 * config.n_embd**2 * sum(sizes)
    head = (ids.stop - ids.start) * config.n_embd * max(sizes)
    return int((layers + head) / 8)


@torch.inference_mode()
def time_passes(bark: minibark.Bark, n_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one window's prompt and of one fine pass, by each attention there is."""
    coarse, fine, device = bark.model("coarse"), bark.model("fine"), bark.device
    assert isinstance(coarse, GPT) and isinstance(fine, FineGPT)
    length = min(WINDOW, coarse.config.block_size)
    frames = bark.config.generation.max_fine_input_length
    cache = KVCache(coarse, n_rows)
    ids = torch.randint(1000, (n_rows, length), device=device)
    codes = torch.randint(1000, (n_rows, frames, 8), device=device)
    calls: dict[str, tuple[Callable[[], Tensor], float]] = {
        "prompt": (
            lambda: coarse.prefill(ids, cache, 0, ids=slice(0, 1024)),
            n_rows * flop(coarse, length, 1, causal=True),
        ),
        "fine pass": (
            lambda: fine(codes, 7, frames // 2),
            n_rows * flop(fine, frames, frames - frames // 2, causal=False),
        ),
    }
    found: dict[str, Any] = {}
    for name, (call, n_flop) in calls.items():
        seconds = {}
        for by in ("torch", "triton") if "triton" in args.ways else ("torch",):
            with attention_by(by, coarse, fine):
                taken = seconds_per_call([call], device, args.repeats, 2)
            seconds[by] = statistics.median(taken)
        found[name] = {"n_rows": n_rows, "seconds": seconds, "n_flop": n_flop}
    return found


@contextlib.contextmanager
def attention_by(by: str, *models: GPT | FineGPT) -> Iterator[None]:
    """Have every pass use torch's attention or ours."""
    if by == "torch":
        yield
        return
    from minibark.gpu import fused

    for model in models:
        fused.use_attention(model)
    with patch.dict(fused.LEAST_QUERIES, {True: 2, False: 2}):
        yield


def flop(model: GPT | FineGPT, n: int, n_requested: int, *, causal: bool) -> float:
    """Of the blocks over n positions of one row; the last is computed where it is requested."""
    width, n_layer = model.config.n_embd, model.config.n_layer
    pairs = n * n - (n * (n - 1) / 2 if causal else 0)
    whole = 24 * width**2 * n + 4 * width * pairs
    return (n_layer - 1) * whole + width**2 * (6 * n + 18 * n_requested)


def measure(model: str, args: argparse.Namespace, memory: float) -> list[dict[str, Any]]:
    """All figures, printed as they come."""
    results: list[dict[str, Any]] = []
    row = "{:<10} {:<9} {:<9} {:>4} {:<24} {:>9} {:>8} {:>8}"
    heads = ("precision", "what", "way", "rows", "ms (min-max)", "x first", "MB", "of limit")
    print(row.format(*heads))
    for precision in args.precision:
        rate = product_rate(torch.device(args.device), precision)
        bark = minibark.Bark.from_pretrained(model, device=args.device, precision=precision)
        for stage, way in itertools.product(("coarse", "semantic"), args.ways):
            try:
                decoder = decoder_of(way, bark, stage)
            except minibark.BackendError as error:
                print(f"absent: {way}: {error}")
                continue
            first = 0.0
            for n_rows in args.rows:
                found = time_step(decoder, bark, stage, n_rows, args)
                median = found["seconds"]["median"]
                first = first or median
                share = found["n_bytes"] / median / memory
                found |= {"precision": precision, "what": stage, "way": way}
                found |= {"share_of_limit": share, "times_first": median / first}
                results.append(found)
                ms = {name: 1e3 * value for name, value in found["seconds"].items()}
                words = show(ms), f"{median / first:.2f}", f"{found['n_bytes'] / 1e6:.1f}"
                print(row.format(precision, stage, way, n_rows, *words, f"{share:.0%}"), flush=True)
        for n_rows in args.rows:
            for name, one in time_passes(bark, n_rows, args).items():
                for by, seconds in one["seconds"].items():
                    share = one["n_flop"] / seconds / rate
                    kept = {"precision": precision, "what": name, "way": f"attention by {by}"}
                    kept |= {"n_rows": n_rows, "seconds": seconds, "share_of_limit": share}
                    results.append(kept | {"product_flop_per_s": rate})
                    words = f"{1e3 * seconds:.3f}", "", "", f"{share:.0%}"
                    print(row.format(precision, name, by, n_rows, *words), flush=True)
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time a decode step, a prompt and a fine pass against the machine's limits.",
        epilog="of limit: bytes of weights over time and the memory's bandwidth, or operations "
        "over time and the rate of torch's own product; x first: over the first number of rows.",
    )
    options = "model precision device threads repeats warmup seed json"
    add_options(parser, options, precision={"choices": PRECISIONS})
    add = parser.add_argument
    add("--ways", nargs="+", choices=WAYS, default=["torch"], metavar="WAY",
        help="what takes the steps: torch, triton; undrafted: one a pass in float32 on a CPU too; "
        "compile: torch.compile of the plain step over a static cache (torch)")  # fmt: skip
    add("--steps", type=positive, default=60, metavar="N", help="at a time (%(default)s)")
    add("--rows", type=positive, nargs="*", default=[1], metavar="B", help="at once (1)")
    return parse(parser)


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    card = machine_card(device)
    print_card(card)
    memory, kind = memory_bandwidth(device), "copied" if device.type == "cuda" else "read"
    print(f"memory, {kind}: {memory / 1e9:.1f} GB/s")
    with one_line("bench_decode"), checkpoint(args.model, args.seed) as model:
        results = measure(model, args, memory)
    close("decode", args, card=card, results=results, memory_bytes_per_s=memory)


if __name__ == "__main__":
    main()
