"""The training loop that all steps share: resumable, logged, plotted."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minibark.checkpoint.layouts import open_checkpoint
from minibark.model import SelfAttention, causal_attention

Batch = tuple[Tensor, ...]
Losses = dict[str, Tensor]  # "loss" is what is trained; the others are only logged


def training_arguments(parser: argparse.ArgumentParser, *, steps: int, rate: float) -> None:
    """The options of every step that trains."""
    parser.add_argument("--steps", type=int, default=steps, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=rate, help="learning rate (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--start-from", type=Path, metavar="DIR", help="a checkpoint whose stage is taken further"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin again in place of going on from the last state"
    )


def train(
    name: str,
    model: nn.Module,
    batch: Callable[[int], Batch],
    losses: Callable[[nn.Module, Batch], Losses],
    work: Path,
    args: argparse.Namespace,
    *,
    validation: list[Batch],
    every: int = 250,
    average: float = 0.999,
    betas: tuple[float, float] = (0.9, 0.98),
) -> nn.Module:
    """Train a model and give the running average of its weights.

    `work/name.pt` holds the whole state, written every `every` steps by way of a temporary file;
    `work/name.jsonl` the losses, a line each time; `work/name.png` their plot.

    Args:
        name: of the files.
        model: what is trained, in place.
        batch: gives the batch of a step, from the step's number alone.
        losses: gives the losses of a batch.
        work: folder.
        args: of `training_arguments`.
        validation: batches that no step sees.
        every: steps between validations.
        average: how slowly the averaged weights follow.
        betas: Adam's.
    """
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model.to(device)
    averaged = copy.deepcopy(model)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=betas, fused=True)
    state_path, log_path = work / f"{name}.pt", work / f"{name}.jsonl"
    step, seconds = 0, 0.0
    if state_path.exists() and not args.fresh:
        state = torch.load(state_path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        print(f"{name}: going on from step {step}", flush=True)
    elif log_path.exists():
        log_path.unlink()
    sums: dict[str, float] = {}
    n_summed = 0
    began = time.perf_counter()
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * _schedule(step, args.steps)
        torch.manual_seed(step)
        found = _losses(losses, model, batch(step), device)
        found["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            slow = min(average, (step + 1) / (step + 10))
            for mine, theirs in zip(averaged.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 1 - slow)
            for mine, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
        for key, value in found.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        step, n_summed = step + 1, n_summed + 1
        if step % every == 0 or step == args.steps:
            seconds, began = seconds + time.perf_counter() - began, time.perf_counter()
            line = {"step": step, "seconds": round(seconds)}
            line |= {key: round(value / n_summed, 4) for key, value in sums.items()}
            line |= _validate(losses, averaged, validation, device)
            sums, n_summed = {}, 0
            with log_path.open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(f"{name}: {line}", flush=True)
            state = {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds,
            }
            torch.save(state, state_path.with_suffix(".part"))
            os.replace(state_path.with_suffix(".part"), state_path)
    plot(log_path)
    return averaged.eval()


def start_from(checkpoint: Path | None, stage: str, model: nn.Module) -> None:
    """Give a model the weights that a checkpoint has for its stage; without one, do nothing."""
    if checkpoint is not None:
        state = open_checkpoint(checkpoint).parameters(stage, torch.float32)
        model.load_state_dict(state)


def load_averaged(name: str, model: nn.Module, work: Path) -> nn.Module:
    """A model with the averaged weights that `train` saved last."""
    path = work / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there yet; run the step that trains {name} first")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["averaged"])
    return model.eval().requires_grad_(False)


def plot(log: Path) -> None:
    """Draw a log's losses beside it, as a .png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    keys = [key for key in lines[-1] if key not in ("step", "seconds")]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=key)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    axes.set_title(log.stem)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(log.with_suffix(".png"), dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a rise over the first 200 steps, then a cosine to 2 %."""
    rise = min(1.0, (step + 1) / 200)
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


@contextlib.contextmanager
def _attention_for(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On a CPU, attention as plain products: a sixth faster to train through than torch's own."""
    layers = [module for module in model.modules() if isinstance(module, SelfAttention)]
    usual = [layer.attend for layer in layers]
    try:
        if device.type == "cpu":
            for layer in layers:
                causal = layer.attend is causal_attention
                layer.attend = partial(_plain_attention, causal=causal)
        yield
    finally:
        for layer, attend in zip(layers, usual, strict=True):
            layer.attend = attend


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    scores = q.flatten(0, 1) @ k.flatten(0, 1).transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.full(scores.shape[1:], -1e4, dtype=scores.dtype).triu(1)
        scores = scores + hidden
    with torch.autocast("cpu", enabled=False):
        weights = scores.softmax(-1)
    return (weights @ v.flatten(0, 1)).view(q.shape)


def _losses(
    losses: Callable[[nn.Module, Batch], Losses],
    model: nn.Module,
    batch: Batch,
    device: torch.device,
) -> Losses:
    with torch.autocast(device.type, torch.bfloat16), _attention_for(model, device):
        return losses(model, tuple(part.to(device) for part in batch))


@torch.no_grad()
def _validate(
    losses: Callable[[nn.Module, Batch], Losses],
    model: nn.Module,
    batches: list[Batch],
    device: torch.device,
) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batch in batches:
        for key, value in _losses(losses, model, batch, device).items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
    return {f"dev_{key}": round(value / len(batches), 4) for key, value in sums.items()}


def top1(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of targets (N,) >= 0 that are the likeliest of logits (N, V)."""
    known = targets >= 0
    return (logits.argmax(-1)[known] == targets[known]).float().mean()


def length_batches(lengths: list[int], overhead: int, positions: int) -> Callable[[int], Any]:
    """Gives, for a step's number, utterances of like length whose positions are about so many."""
    import numpy as np

    order: Any = np.argsort(np.array(lengths), kind="stable")

    def choose(step: int) -> Any:
        middle = int(np.random.default_rng(step).integers(len(order)))
        n = max(1, positions // (lengths[order[middle]] + overhead))
        first = max(0, min(middle - n // 2, len(order) - n))
        return order[first : first + n]

    return choose
