"""Reading what may be hostile and writing so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from .config import CheckpointError
from .leftovers import sweep, temporary_name

_PACKAGE = __name__.partition(".")[0] + "."
MAX_ARRAY_BYTES = 1 << 24  # a voice of 40 minutes; Bark's have some seconds
_MAX_ELEMENTS = 1 << 22  # of an array
MAX_TEXT_BYTES = 1 << 24  # of JSON and vocabularies; the largest, a tokenizer.json, has 2 MB


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, sweeps: bool = True) -> Iterator[Path]:
    """A temporary place that becomes `path`, on the disk, once the block has succeeded.

    The block makes a file there, or a directory; a directory replaces nothing but an empty one.
    After an error or Ctrl-C the temporary place is gone and whatever was at `path` is untouched.
    What a killed process left, the next one that writes to the same place takes away, unless
    `sweeps` is False, since its folder is read for that. Links are followed. Devices and pipes are
    written in place, and so is, with a warning, a file that may be written where its folder may
    not, or that is mounted by itself. An OSError names `path`.
    """
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.exists() and not (target.is_file() or target.is_dir()):
        with _naming_target(target, target):
            yield target
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    folder = Path(tempfile.gettempdir()) if only_in_place(target) else target.parent
    if sweeps:
        sweep(folder, target.name)
    # A folder of its own, so that what a library puts beside its file is in there too.
    scratch = folder / temporary_name(target.name)
    part = scratch / target.name
    try:
        with _naming_target(part, target):
            scratch.mkdir(mode=0o700)
            yield part
            if target.is_dir() and not part.is_dir():
                raise IsADirectoryError(f"{target} is a folder; name a file in it")
            sync(part)
            if part.is_dir() and target.is_dir():
                target.rmdir()
            if folder == target.parent and _is_renamed(part, target):
                with contextlib.suppress(OSError):  # the file is there, whatever the folder allows
                    _sync_one(folder)
            else:
                warn(f"{target} is written in place, since it cannot be replaced")
                shutil.copyfile(part, target)
                _sync_one(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there; raises PermissionError where that may not be known."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False


def only_in_place(target: Path) -> bool:
    """Whether a file may be written where nothing may be put beside it."""
    is_shut = target.is_file() and not os.access(target.parent, os.W_OK)
    return is_shut and os.access(target, os.W_OK)


def _is_renamed(part: Path, target: Path) -> bool:
    """Give `part` its name; False where `target` is a file that is mounted by itself."""
    try:
        os.replace(part, target)
    except OSError as error:
        if error.errno != errno.EBUSY or not target.is_file():
            raise
        return False
    return True


def sync(path: Path) -> None:
    """Wait until a file, or a directory with all in it, is on the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync_one(Path(folder, name))
        _sync_one(Path(folder))
    if not path.is_dir():
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # there are file systems that cannot
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming_target(part: Path, target: Path) -> Iterator[None]:
    """Let an OSError of the block name the target: writes name nothing, and `part` is soon gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            error.args = tuple(str(arg).replace(str(part), str(target)) for arg in error.args)
        elif error.filename is None:
            error.filename = str(target)
        elif error.filename2 is None:
            error.filename = str(error.filename).replace(str(part), str(target))
        raise


def user_cache() -> Path:
    """The user's folder of caches, by the XDG Base Directory Specification."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))


_overheard: ContextVar[list[str] | None] = ContextVar("overheard", default=None)


@contextlib.contextmanager
def overhearing() -> Iterator[list[str]]:
    """What this thread is warned of in the block, beside what `warnings` does with it."""
    heard: list[str] = []
    token = _overheard.set(heard)
    try:
        yield heard
    finally:
        _overheard.reset(token)


def warn(text: str) -> None:
    """Warn each time, not once for a place; the place is the line outside this package."""
    if (heard := _overheard.get()) is not None:
        heard.append(text)
    frame = sys._getframe(1)
    ours = (_PACKAGE, "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
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
    """Make any error of the block one of `kind` whose text begins with where the trouble is.

    What is no fault of what is read stays what it is: too little memory, a missing permission.
    """
    try:
        yield
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise_machine_s(error, where)
        raise kind(f"{where}: {reason(error)}" if where else reason(error)) from error


def raise_machine_s(error: Exception, where: object) -> None:
    """Raise what tells of this machine and not of the file that was read there.

    Raises:
        MemoryError: that is what was wrong, whatever the error's type.
        OSError: the error, unless it is one that a parser raises of damaged bytes.
    """
    if is_out_of_memory(error):
        raise MemoryError(f"out of memory while reading {where}: {reason(error)}") from error
    machine_s = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
    if isinstance(error, OSError) and error.errno in machine_s:
        raise error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what an operating system's refusal of memory became on its way here."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return bool(
        re.search(
            r"(allocate|out of|not enough) .{0,20}memory|\b(ENOMEM|os error 12)\b",
            str(error)[:9000],
            re.I,
        )
    )


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


def repeated(pairs: Iterable[tuple[str, object]]) -> str | None:
    """The first name of a JSON object's pairs that was there before; None if each is once."""
    seen = set[str]()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


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
