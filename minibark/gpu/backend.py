"""Which implementation of a decode step runs where.

On an NVIDIA GPU steps are captured in CUDA graphs (`decoder.py`). A layer in them is one of two:

    torch    plain operators of torch, over all keys up to the next multiple of 256
    triton   five fused kernels (`kernels/layer.py`), over the keys that are there
"""

from __future__ import annotations

import importlib.util

import torch

from ..files import warn
from ..precision import BACKENDS, BackendError

OLDEST_GPU = (8, 0)  # compute capability that the kernels are built for


def choose_backend(name: str | None, device: torch.device) -> str:
    """The backend that will run on a device.

    Args:
        name: one of `BACKENDS`, or None for the fastest that can run; it warns where that is torch
            on an NVIDIA GPU.
        device: where.

    Raises:
        BackendError: an unknown name, or one that cannot run on that device.
    """
    if name not in (None, *BACKENDS):
        raise BackendError(f"unknown backend {name!r}; expected {', '.join(BACKENDS)}")
    if name == "torch" or (name is None and device.type != "cuda"):
        return "torch"
    reason = why_no_triton(device)
    if reason is None:
        return "triton"
    if name == "triton":
        raise BackendError(f"backend 'triton' cannot run here: {reason}")
    if torch.version.cuda is not None:
        warn(f"the fast kernels cannot run here: {reason}")
    return "torch"


def why_no_triton(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, or None if they can."""
    installed = importlib.util.find_spec("triton") is not None
    if device.type != "cuda":
        if device.type == "cpu" and installed:
            from ..kernels.launch import interpreting

            if interpreting():
                return None
        return f"it needs an NVIDIA GPU, and this is {device.type!r}; use the backend 'torch'"
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU; use the backend 'torch'"
    if not installed:
        return "triton is not installed; pip install 'minibark[gpu]' (Linux)"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        have, need = (".".join(map(str, pair)) for pair in (capability, OLDEST_GPU))
        return f"this GPU has compute capability {have}, it needs {need}; use the backend 'torch'"
    return None


def describe_backend(backend: str, device: torch.device) -> str:
    """How decoding runs, in words."""
    how = "plain torch" if backend == "torch" else "fused Triton kernels"
    if device.type == "cuda":
        return f"{how} in a CUDA graph"
    return how if backend == "torch" else f"{how}, interpreted"
