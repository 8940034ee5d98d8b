"""Tensor files: safetensors, and pickles of which nothing is executed."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import CheckpointError
from ..files import raise_machine_s, reason
from .torch_files import read_torch_file

State = dict[str, Tensor]
"""Tensors by name."""

_MAX_HEADER_BYTES = 1 << 22  # of safetensors; that of the large Bark has 130 kB


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a file, memory-mapped, and its metadata.

    Raises:
        CheckpointError: truncated, damaged or not safetensors; the text names the file.
        MemoryError: this machine cannot map or copy it. OSError: it may not be read.
    """
    try:
        with path.open("rb") as start:
            if int.from_bytes(start.read(8), "little") > _MAX_HEADER_BYTES:
                raise ValueError(f"its header is larger than {_MAX_HEADER_BYTES >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise_machine_s(error, path)
        if isinstance(error, OSError):
            raise
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

    Nothing in the file is executed: only tensors and plain values are allowed. Tensors are views of
    the mapped file where they can be, and those that are one in the file are one object.

    Raises:
        CheckpointError: truncated, damaged, or asking for any other class.
        MemoryError, OSError: as of `read_safetensors`.
    """
    try:
        return read_torch_file(path)
    except Exception as error:  # parsers of hostile bytes raise nearly anything
        raise_machine_s(error, path)
        if isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({reason(error)}); fetch it again"
        ) from error
