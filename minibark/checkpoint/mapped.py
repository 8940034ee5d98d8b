"""Tensors that lie in a mapped file, found by where the system says that it is mapped."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MAPS = Path("/proc/self/maps")  # Linux


def mapped_alone(tensor: Tensor) -> Tensor | None:
    """The same numbers in a mapping of their own, which takes memory for what is read of it alone.

    So a large table, of which few rows are ever read, can stay in its file when everything else
    of that has been converted and let go. The file may be removed or replaced meanwhile, but not
    written to.

    Args:
        tensor: on the CPU, and not changed since it was mapped.

    Returns:
        None if it lies in no file as it is, or if the system does not tell.
    """
    is_plain = tensor.device.type == "cpu" and tensor.is_contiguous()
    if not is_plain or not tensor.numel() or not tensor.ndim:
        return None
    found = _place(tensor.data_ptr(), tensor.nbytes)
    if found is None:
        return None
    # A private mapping, which torch takes without a warning that it must not be written to.
    with contextlib.suppress(OSError, ValueError):
        content = np.memmap(found[0], np.uint8, "c", found[1], (tensor.nbytes,))
        again = torch.from_numpy(content).view(tensor.dtype).view(tensor.shape)
        # Another file may have taken its name.
        if all(_bits(again[end]).equal(_bits(tensor[end])) for end in (0, -1)):
            return again
    return None


def _bits(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1).clone().view(torch.uint8)


def _place(address: int, n_bytes: int) -> tuple[str, int] | None:
    """The file that is mapped there, and where in it that is."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = _MAPS.read_bytes().split(b"\n")[:-1]  # names may have other ends of lines
    for line in lines:
        span, _, begin, _, inode, *name = line.split(None, 5)
        first, last = (int(end, 16) for end in span.split(b"-"))
        if first <= address and address + n_bytes <= last:
            if inode == b"0" or not name:
                return None
            return os.fsdecode(name[0]), int(begin, 16) + address - first
    return None
