"""Reading what may be hostile and writing so that nothing is lost or half written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import CheckpointError

State = dict[str, Tensor]
"""Tensors by name."""

_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
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


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a file, memory-mapped, and its metadata.

    Raises:
        CheckpointError: truncated, damaged or not safetensors; the text names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except OSError:
        raise
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({reason(error)}); fetch it again"
        ) from error


def save_safetensors(state: State, path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and metadata; raises OSError where the place cannot be written."""
    path.touch()
    mode = path.stat().st_mode  # of the user's umask; the library would make the file private
    try:
        save_file(state, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_pickle(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a `torch.save` file, and its `model_args` (as JSON) if it has any.

    Nothing in the file is executed: only tensors and plain values are allowed.

    Raises:
        CheckpointError: truncated, damaged, or asking for any other class.
    """
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
    allowed: list[Any] = [(_Ignored, name) for name in names]
    with path.open("rb"):
        pass  # so that what is raised below is about the content
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type for member in archive.infolist()):
                    raise ValueError("it is compressed, as no checkpoint is")
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        return _plain_tensors(content)
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        text = reason(error)
        if isinstance(error, pickle.UnpicklingError):
            # torch's own text also tells how to run what is in the file
            text = re.split(r"WeightsUnpickler error: |trusted source\. ", text)[-1]
            text = re.split(r" Check the doc| whose module| Please use", text)[0]
            text = f"it holds more than tensors and plain values, which is refused: {text}"
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({text}); fetch it again"
        ) from error


class _Ignored:
    """What a NumPy scalar becomes, such as `best_val_loss` in Suno's files.

    NumPy's own functions would crash on damaged arguments, or do worse.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_tensors(content: object) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of an unpickled checkpoint, each tensor in a place of its own."""
    metadata = {}
    if isinstance(content, dict) and "model" in content:
        if "model_args" in content:
            if not isinstance(content["model_args"], dict):
                raise ValueError("model_args is not a dictionary")
            metadata["model_args"] = json.dumps(content["model_args"], default=str)
        content = content["model"]
    if not isinstance(content, dict) or {isinstance(v, Tensor) for v in content.values()} != {True}:
        raise ValueError("it is not a dictionary of tensors")
    state: State = {}
    places: set[int] = set()
    for name, tensor in content.items():
        tensor = tensor.detach()
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_dense or tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} is no plain tensor: {tensor.layout}, {tensor.dtype}")
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} repeats few values")
        state[str(name)] = tensor.clone() if storage.data_ptr() in places else tensor.contiguous()
        places.add(storage.data_ptr())
    return state, metadata
