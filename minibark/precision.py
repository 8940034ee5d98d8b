"""Names of precisions and backends, and which device has which precision."""

from __future__ import annotations

import torch

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

PRECISIONS = (*FLOATS, "int8", "int4")
BACKENDS = ("torch", "triton")


class BackendError(ValueError):
    """A backend that cannot run here, or that gives wrong results here."""


def parse_precision(name: str) -> str:
    """The name, if it is one of `PRECISIONS`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; expected {', '.join(PRECISIONS)}")
    return name


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        ValueError: an unknown name, or one that does not run there.
    """
    parse_precision(name)
    places = {"int8": ("cpu", "cuda"), "int4": ("cpu",)}.get(name)
    if places and device.type not in places:
        raise ValueError(
            f"precision {name!r} runs on {' and '.join(places)}, not on {device.type!r}; "
            "take bfloat16 there"
        )


def is_reduced(name: str, device: torch.device) -> bool:
    """Whether a precision on a device asks for `reduce`, not just for another type."""
    return name == "int8" or (device.type == "cpu" and name != "float32")
