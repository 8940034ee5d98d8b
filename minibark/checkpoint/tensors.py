"""Tensor files: safetensors, and pickles of which nothing is executed."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import CheckpointError
from ..files import reason

State = dict[str, Tensor]
"""Tensors by name."""

_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
}


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
