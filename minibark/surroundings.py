"""What is set for a while around a call: torch while a stage runs, variables of the process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_SETTING = threading.RLock()


@contextlib.contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """Neither autocast nor a default device while the block runs on `device`."""
    with contextlib.ExitStack() as settings:
        if torch.is_autocast_enabled(device.type):
            settings.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            settings.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def running(device: torch.device) -> Iterator[None]:
    """The same, and no TF32."""
    with contextlib.ExitStack() as settings:
        settings.enter_context(plainly(device))
        if device.type == "cuda":
            settings.enter_context(_SETTING)  # the two below are the process's, not the thread's
            # cuDNN would first plan its attention for every length, and round sums to TF32.
            kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
            settings.enter_context(sdpa_kernel(kinds))
            settings.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
        yield


@contextlib.contextmanager
def variables(settings: dict[str, str]) -> Iterator[None]:
    """Variables of the process for the block, where nobody else has set them."""
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
