"""Tensors of a file or of many parts, pickles by way of a kept copy."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from ..config import CheckpointError
from ..files import inside, read_json, warn
from ..leftovers import sweep
from .hub import Source
from .kept import copy_place, read_copy, write_copy
from .shapes import some
from .tensors import State, read_pickle, read_safetensors

# Facts of suno-ai/bark as of 2023, from its published checkpoints.
SUNO_MD5 = {
    "text.pt": "b3e42bcbab23b688355cd44128c4cdd3",
    "coarse.pt": "5fe964825e3b0321f9d5f3857b89194d",
    "fine.pt": "5428d1befe05be2ba32195496e58dc90",
    "text_2.pt": "54afa89d65e318d4f5f80e8e8799026a",
    "coarse_2.pt": "8a98094e5e3a255a5c9c0ab7efe8fd28",
    "fine_2.pt": "59d184ed44e3650774a2f0503a48a97b",
}

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face's layout calls the file of tensors."""

log = logging.getLogger(__name__)


def read_hf(source: Source) -> tuple[Path, State]:
    """All tensors of a Hugging Face checkpoint under their own names, and the file that has them.

    Of a checkpoint in parts, the file is the index.
    """
    for name in WEIGHTS:
        if (path := source.find(name)) is not None:
            return path, read_any(path, source.cache_dir)[0]
        if (path := source.find(f"{name}.index.json")) is not None:
            return path, _read_parts(path, source)
    raise FileNotFoundError(
        f"{source.name} has neither model.safetensors nor pytorch_model.bin (nor an index of parts)"
    )


def _read_parts(index: Path, source: Source) -> State:
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map")
    state: State = {}
    for part in sorted({inside(name, os.fspath(index)) for name in weight_map.values()}):
        state |= read_any(source.need(part), source.cache_dir)[0]
    missing = set(weight_map) - set(state)
    if missing:
        raise CheckpointError(f"{index} lists tensors that no part has: {some(missing)}")
    return state


def read_any(path: Path, cache_dir: str | os.PathLike[str] | None) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a safetensors or pickle file, of the latter through the cache."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    copy = copy_place(path, cache_dir)
    sweep(copy.parent)
    if (kept := read_copy(copy)) is not None:
        return kept
    state, metadata = read_pickle(path)
    if "model_args" in metadata:  # else it is none of Suno's, and will be refused
        _warn_unless_published(path)
    try:
        write_copy(state, metadata, path, copy)
    except OSError as error:
        warn(f"no faster copy of {path} can be kept: {error}")
    else:
        log.info("keeping %s as %s", path, copy)
        kept = read_copy(copy)
    return kept or (state, metadata)


def _warn_unless_published(path: Path) -> None:
    expected = SUNO_MD5.get(path.name)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        warn(
            f"{path.name} is not the file that Suno published in 2023 (md5 {found}, expected "
            f"{expected}); it is read all the same"
        )
