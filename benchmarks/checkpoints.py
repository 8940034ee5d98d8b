"""Checkpoints to measure with: trained ones by name, random ones of the released sizes."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from minibark.checkpoint.presets import preset
from minibark.checkpoint.shapes import new_module
from minibark.config import STAGES, BarkConfig
from minibark.tokenizer import Tokenizer

RANDOM_MODELS = ("small", "large", "random")
"""Presets; random weights cost a model the same work as trained ones."""


@contextlib.contextmanager
def checkpoint(model: str, seed: int) -> Iterator[str]:
    """What to give to `Bark.from_pretrained`.

    Args:
        model: one of `RANDOM_MODELS`, which is written to a temporary directory with random weights
            and deleted at the end of the block; or a directory or hub name, which is passed on.
        seed: of the random weights.
    """
    if model not in RANDOM_MODELS:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="minibark-bench-") as folder:
        write_random(preset(model), Path(folder), seed)
        yield folder


def write_random(config: BarkConfig, folder: Path, seed: int) -> None:
    """Write a float32 checkpoint with random weights, in minibark's layout, to a directory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        states = {stage: new_module(stage, config).state_dict() for stage in STAGES}
    flat = {
        f"{stage}.{name}": tensor.contiguous()
        for stage, state in states.items()
        for name, tensor in state.items()
    }
    save_file(flat, folder / "model.safetensors", {"format": "pt"})
    document = {"format": "minibark", "version": 1, "config": config.to_dict()}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    Tokenizer.characters().save(folder / "vocab.txt")
