"""Reading what may be hostile and writing so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .config import CheckpointError

_MAX_JSON_BYTES = 1 << 27  # the largest real one, a tokenizer.json, has 2 MB


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary place beside `path` that becomes `path` once the block has succeeded.

    The block makes a file there, or a directory; a directory replaces nothing but an empty one.
    After an error or Ctrl-C the temporary place is gone and whatever was at `path` is untouched.
    Links are followed. Devices and pipes are written in place.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    part = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        yield part
        if part.is_dir() and target.is_dir():
            target.rmdir()
        os.replace(part, target)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    return " ".join(str(error).split())[:1000] or type(error).__name__


@contextlib.contextmanager
def naming(where: object, kind: type[ValueError] = CheckpointError) -> Iterator[None]:
    """Make any error of the block one of `kind` whose text begins with where the trouble is."""
    try:
        yield
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise kind(f"{where}: {reason(error)}" if where else reason(error)) from error


def inside(name: object, where: str) -> str:
    """`name` if it is a relative path that stays in its folder.

    Raises:
        CheckpointError: absolute, with `..`, a drive or a backslash, or not a string.
    """
    if isinstance(name, str) and name and not set(name) & {"\\", "\0", ":"}:
        path = PurePosixPath(name)
        if not path.is_absolute() and ".." not in path.parts:
            return name
    raise CheckpointError(
        f"{where} names a file outside its folder, which is refused: {name!r:.80}"
    )


def read_json(path: Path) -> Any:
    """The parsed file.

    Raises:
        CheckpointError: not UTF-8 JSON; the text names the file.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB: not a checkpoint's"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({reason(error)}); fetch it again"
        ) from error
