"""Tensors of a file or of many parts, pickles by way of a kept copy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

from ..config import CheckpointError
from ..files import inside, naming, read_json, replacing, warn
from .hub import Source
from .shapes import some
from .tensors import State, read_pickle, read_safetensors, save_safetensors

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

_SAME = "same"  # in a copy's metadata: further names -> the name that the tensor is stored under

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
    base = Path(os.path.expanduser(cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    real, stat = path.resolve(), path.stat()
    key = hashlib.sha256(f"{real}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = base / "minibark" / f"{path.stem}-{key}.safetensors"
    with contextlib.suppress(CheckpointError):  # a damaged copy is made anew
        if copy.is_file():
            return _read_copy(copy)
    state, metadata = read_pickle(path)
    if "model_args" in metadata:  # else it is none of Suno's, and will be refused
        _warn_unless_published(path)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as part:
            _write_copy(state, metadata, part)
    except OSError as error:
        warn(f"no faster copy of {path} can be kept: {error}")
        return state, metadata
    log.info("keeping %s as %s", path, copy)
    return _read_copy(copy)


def _write_copy(state: State, metadata: dict[str, str], path: Path) -> None:
    """Write each tensor once, and which other names it has."""
    firsts: dict[int, str] = {}
    same = {name: firsts.setdefault(id(tensor), name) for name, tensor in state.items()}
    once = {name: tensor for name, tensor in state.items() if same[name] == name}
    others = json.dumps({name: first for name, first in same.items() if first != name})
    save_safetensors(once, path, metadata | {_SAME: others})


def _read_copy(path: Path) -> tuple[State, dict[str, str]]:
    state, metadata = read_safetensors(path)
    with naming(path):
        same = json.loads(metadata.pop(_SAME, "{}"))
        return state | {name: state[first] for name, first in same.items()}, metadata


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
