"""The kept copies of pickles: safetensors files, in the folder `minibark` of the cache.

A pickle is read slowly, its copy is mapped. A copy's name holds a digest of the pickle's path, size
and time, and its metadata the path, so that copies whose pickle has gone or changed can be told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..config import CheckpointError
from ..files import naming, replacing, user_cache
from ..leftovers import sweep
from .tensors import State, read_safetensors, save_safetensors

_SAME = "same"  # in a copy's metadata: further names -> the name that the tensor is stored under
_SOURCE = "source"  # and the pickle's path, as JSON, which has signs for names that are not UTF-8
_NAME = re.compile(r".*-([0-9a-f]{16})\.safetensors", re.DOTALL)

HERE, GONE, CHANGED, UNKNOWN = "here", "gone", "changed", "unknown"


@dataclass(frozen=True)
class Copy:
    """A kept copy.

    Attributes:
        path: where it is.
        n_bytes: its size.
        source: the pickle that it was made of; None where it does not say.
        state: whether that pickle is `HERE` as it was, `GONE` or `CHANGED`, or `UNKNOWN`.
    """

    path: Path
    n_bytes: int
    source: str | None
    state: str


def cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where copies are kept; None is in the user's cache."""
    return (Path(os.path.expanduser(cache_dir)) if cache_dir else user_cache()) / "minibark"


def copy_place(path: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the copy of a pickle, as it is now, is or would be."""
    stem = re.sub(r"[^\w.+-]", "_", path.stem)[:40]  # the library takes UTF-8, a disk 255 bytes
    return cache_folder(cache_dir) / f"{stem}-{_digest(path)}.safetensors"


def read_copy(copy: Path) -> tuple[State, dict[str, str]] | None:
    """Tensors and metadata of a copy; None where there is none that is sound."""
    with contextlib.suppress(CheckpointError, OSError):
        state, metadata = read_safetensors(copy)
        metadata.pop(_SOURCE, None)
        with naming(copy):
            same = json.loads(metadata.pop(_SAME, "{}"))
            return state | {name: state[first] for name, first in same.items()}, metadata
    return None


def write_copy(state: State, metadata: dict[str, str], source: Path, copy: Path) -> None:
    """Keep what was read of a pickle, each tensor once, and drop what is of no use any more.

    Raises:
        OSError: it cannot be written.
    """
    firsts: dict[int, str] = {}
    same = {name: firsts.setdefault(id(tensor), name) for name, tensor in state.items()}
    once = {name: tensor for name, tensor in state.items() if same[name] == name}
    others = json.dumps({name: first for name, first in same.items() if first != name})
    facts = {_SAME: others, _SOURCE: json.dumps(os.fspath(source.resolve()))}
    copy.parent.mkdir(parents=True, exist_ok=True)
    stale = [other.path for other in _copies(copy.parent) if other.state in (GONE, CHANGED)]
    for path in stale:
        _remove(path)
    with replacing(copy) as part:
        save_safetensors(once, part, metadata | facts)


def copies(cache_dir: str | os.PathLike[str] | None = None) -> list[Copy]:
    """The copies that are kept, by name."""
    return _copies(cache_folder(cache_dir))


def clear_copies(cache_dir: str | os.PathLike[str] | None = None) -> list[Copy]:
    """Remove all copies, and what killed processes left of others; returns those removed.

    A copy that is in use elsewhere stays readable there, or where it cannot be removed stays.
    """
    sweep(cache_folder(cache_dir))
    return [copy for copy in copies(cache_dir) if _remove(copy.path)]


def _copies(folder: Path) -> list[Copy]:
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        name = _NAME.fullmatch(path.name)
        if name is None or path.is_symlink():
            continue  # not of our making
        source, state = None, UNKNOWN
        with contextlib.suppress(CheckpointError, ValueError, OSError):
            text = json.loads(read_safetensors(path)[1].get(_SOURCE, "null"))
            source = text if isinstance(text, str) else None
        with contextlib.suppress(OSError, ValueError):
            if source is not None:
                state = _state_of(Path(source), name[1])
        with contextlib.suppress(FileNotFoundError):
            found.append(Copy(path, path.stat().st_size, source, state))
    return found


def _state_of(source: Path, digest: str) -> str:
    try:
        return HERE if _digest(source) == digest else CHANGED
    except (FileNotFoundError, NotADirectoryError):
        return GONE


def _digest(path: Path) -> str:
    stat = path.stat()
    facts = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _remove(path: Path) -> bool:
    """Whether a copy is no longer there."""
    with contextlib.suppress(OSError):  # on Windows a file in use cannot be removed
        path.unlink(missing_ok=True)
        return True
    return False
