"""Sizes that have names."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import BarkConfig, CodecConfig

_SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "random": {"n_layer": 2, "n_head": 2, "n_embd": 32},
}


def preset(name: str) -> BarkConfig:
    """The configuration of a released size, or of the small random model used for trials.

    Args:
        name: `"small"` (suno/bark-small), `"large"` (suno/bark) or `"random"`: the released
            vocabularies and windows in two narrow layers.
    """
    if name not in _SIZES:
        raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(_SIZES)}")
    bark, size = BarkConfig(), _SIZES[name]
    codec = CodecConfig(num_filters=4, hidden_size=32) if name == "random" else bark.codec
    return BarkConfig(
        semantic=dataclasses.replace(bark.semantic, **size),
        coarse=dataclasses.replace(bark.coarse, **size),
        fine=dataclasses.replace(bark.fine, **size),
        codec=codec,
    )
