"""Reading what may be hostile and writing so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from .config import CheckpointError

_PACKAGE = __name__.partition(".")[0] + "."
MAX_ARRAY_BYTES = 1 << 24  # a voice of 40 minutes; Bark's have some seconds
_MAX_ELEMENTS = 1 << 22  # of an array
MAX_TEXT_BYTES = 1 << 24  # of JSON and vocabularies; the largest, a tokenizer.json, has 2 MB


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary place beside `path` that becomes `path` once the block has succeeded.

    The block makes a file there, or a directory; a directory replaces nothing but an empty one.
    After an error or Ctrl-C the temporary place is gone and whatever was at `path` is untouched.
    Links are followed. Devices and pipes are written in place.
    """
    target = Path(os.path.realpath(os.path.expanduser(path)))
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


def warn(text: str) -> None:
    """Warn each time, not once for a place; the place is the line outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame = frame.f_back
    where = (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(text, UserWarning, *where, registry=None)


def reason(error: BaseException) -> str:
    """One line that says what went wrong, unprintable characters escaped."""
    return shown(" ".join(str(error)[:9000].split()), 1000) or type(error).__name__


def shown(text: object, length: int = 200) -> str:
    """A name from a file as a message may have it: of bounded length, and printable.

    Terminal escapes, line ends, lone surrogates and characters that turn the direction of the text
    come out as Python writes them.
    """
    start = str(text)[: length + 1]
    result = "".join(char if char.isprintable() else repr(char)[1:-1] for char in start)
    return result if len(result) <= length else result[: length - 3] + "..."


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
        CheckpointError: absolute, with `..`, a drive or a backslash, not a string, or one that no
            message could show: unprintable, or of more than 200 characters.
    """
    if isinstance(name, str) and name and shown(name) == name and not set(name) & {"\\", ":"}:
        path = PurePosixPath(name)
        if not path.is_absolute() and ".." not in path.parts:
            return name
    raise CheckpointError(
        f"{where} names a file outside its folder, which is refused: {shown(name)}"
    )


def read_json(path: Path) -> Any:
    """The parsed file.

    Raises:
        CheckpointError: not UTF-8 JSON; the text names the file.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB: not a checkpoint's"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({reason(error)}); fetch it again"
        ) from error


def read_npy(file: BinaryIO) -> np.ndarray[Any, Any]:
    """The whole numbers of a `.npy` file. Nothing in it is executed (no pickles).

    Raises:
        ValueError: damaged, other than whole numbers, or too large.
    """
    version = npy_format.read_magic(file)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = read[version](file)
    if dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers, got dtype {dtype}")
    if np.prod(shape, dtype=float) > _MAX_ELEMENTS:
        raise ValueError(f"shape {shape} is too large")
    file.seek(0)
    return npy_format.read_array(file, allow_pickle=False)


def read_npz(file: BinaryIO, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Those of the named arrays that a `.npz` file has; errors as of `read_npy`, and of zip files.

    The text of a ValueError begins with the array's name.
    """
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        methods = {member.compress_type for member in archive.infolist()}
        if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:  # others inflate without end
            raise ValueError("it is compressed otherwise than NumPy does")
        members = set(archive.namelist()) & {f"{name}.npy" for name in names}
        for name in names:
            if f"{name}.npy" in members:
                with naming(name, ValueError), archive.open(f"{name}.npy") as stream:
                    arrays[name] = read_npy(io.BytesIO(stream.read(MAX_ARRAY_BYTES)))
    return arrays
