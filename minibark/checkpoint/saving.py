"""Checkpoints in our own layout: written, and converted from any other."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..config import CheckpointError
from ..files import inside, reason, replacing, warn
from ..precision import FLOATS, PRECISIONS, parse_precision
from ..sampling import OnStep
from ..voice import Voice, VoiceError
from .layouts import open_checkpoint
from .opened import Checkpoint
from .rows import SCALE, floats_state, int8_state
from .tensors import State, save_safetensors

STORED = tuple(name for name in PRECISIONS if name != "int4")
"""The precisions that a checkpoint can be stored in."""


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    precision: str | None = None,
    voices: Iterable[str] | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> None:
    """Write a checkpoint of any layout as one directory in ours.

    Args:
        source: hub repository, directory, `"tiny"` or `"random"`.
        destination: directory to make; it must not exist, or be empty.
        precision: `"float32"`, `"float16"`, `"bfloat16"` or, for matrices only, `"int8"`, of all
            stages but the codec; None keeps each tensor's.
        voices: as for `save_checkpoint`.
        on_step: told of progress.
        **options: as for `open_checkpoint`.

    Raises:
        FileExistsError: the destination has files in it.
        CheckpointError: the source is damaged, or its values do not fit the precision.
        ValueError: a precision that is not stored.
    """
    _check_new(destination)
    if precision is not None and parse_precision(precision) == "int4":
        raise ValueError(
            "int4 is made when a model is opened, not stored; convert to int8, or keep the "
            "checkpoint as it is, and open it with precision 'int4'"
        )
    checkpoint = open_checkpoint(source, **options)
    states = {stage: _narrow(stage, state, precision) for stage, state in checkpoint.states.items()}
    save_checkpoint(dataclasses.replace(checkpoint, states=states), destination, voices, on_step)


def save_checkpoint(
    checkpoint: Checkpoint,
    directory: str | os.PathLike[str],
    voices: Iterable[str] | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Write a checkpoint as a directory in our layout, whole or not at all.

    Args:
        checkpoint: what to write.
        directory: where; it must not exist, or be empty.
        voices: names of the voices to take along; None takes all that are sound, and a warning
            names the others.
        on_step: told of progress.

    Raises:
        FileExistsError: the directory has files in it.
        VoiceError, FileNotFoundError: a voice that was named is damaged or not there.
    """
    _check_new(directory)
    found = _load_voices(checkpoint, voices, on_step)
    with replacing(directory) as part:
        part.mkdir()
        flat = {
            f"{stage}.{name}": tensor.contiguous()
            for stage, state in checkpoint.states.items()
            for name, tensor in state.items()
        }
        save_safetensors(flat, part / "model.safetensors", {"format": "pt"})
        document = {"format": "minibark", "version": 1, "config": checkpoint.config.to_dict()}
        if checkpoint.normalize != "off":
            document["normalize"] = checkpoint.normalize
        (part / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        checkpoint.tokenizer.save(part / "vocab.txt")
        for done, (name, voice) in enumerate(found.items()):
            if on_step:
                on_step("writing", done, len(found))
            path = part / "voices" / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voice.save(path)
        if on_step:
            on_step("writing", len(found), len(found))


def _load_voices(
    checkpoint: Checkpoint, names: Iterable[str] | None, on_step: OnStep | None
) -> dict[str, Voice]:
    """The voices of these names, or all that are sound."""
    wanted, found = list(checkpoint.voices if names is None else names), {}
    faults: list[str] = []
    for done, name in enumerate(wanted, start=1):
        try:
            voice = checkpoint.voices.load(inside(name, "the voice index"))
            found[name] = voice.check(checkpoint.config.generation)
        except (VoiceError, CheckpointError, FileNotFoundError) as error:
            if names is not None:
                raise
            faults.append(f"{name!r:.80} ({reason(error)})")
        if on_step:
            on_step("voices", done, len(wanted))
    if faults:
        warn(f"{len(faults)} of {len(wanted)} voices are left out, being damaged: {faults[0]}")
    return found


def _check_new(directory: str | os.PathLike[str]) -> None:
    target = Path(os.path.expanduser(directory))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not empty; choose another or delete it first"
        )


def _narrow(stage: str, state: State, precision: str | None) -> State:
    if precision is None or stage == "codec":
        return state
    narrowed = int8_state(state) if precision == "int8" else floats_state(state, FLOATS[precision])
    for name, tensor in narrowed.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            name = name.removesuffix(SCALE)
            raise CheckpointError(
                f"{stage} {name} does not fit {precision}; use bfloat16 or float32"
            )
    return narrowed
