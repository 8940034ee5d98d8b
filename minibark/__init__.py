"""Bark in pure PyTorch: text to speech, music and sounds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .audio import save_audio
    from .bark import Bark
    from .checkpoint.saving import convert
    from .config import (
        BarkConfig,
        CheckpointError,
        CodecConfig,
        FineGPTConfig,
        GenerationConfig,
        GPTConfig,
    )
    from .options import Options
    from .precision import BackendError
    from .speech.dialog import DialogError
    from .speech.plan import LongOptions
    from .speech.split import MissingExtraError
    from .tokenizer import Tokenizer
    from .voice import Voice, VoiceError

SAMPLE_RATE = 24_000
"""Samples per second of every released Bark, Hz; `Bark.sample_rate` is that of a loaded one."""

__all__ = [
    "SAMPLE_RATE",
    "BackendError",
    "Bark",
    "BarkConfig",
    "CheckpointError",
    "CodecConfig",
    "DialogError",
    "FineGPTConfig",
    "GPTConfig",
    "GenerationConfig",
    "LongOptions",
    "MissingExtraError",
    "Options",
    "Tokenizer",
    "Voice",
    "VoiceError",
    "__version__",
    "convert",
    "save_audio",
]

# Where each name is. It is fetched when it is first asked for: the command line has to be there
# before torch is, and this file is imported before it.
_HOMES = {
    "BackendError": "precision",
    "Bark": "bark",
    "BarkConfig": "config",
    "CheckpointError": "config",
    "CodecConfig": "config",
    "DialogError": "speech.dialog",
    "FineGPTConfig": "config",
    "GPTConfig": "config",
    "GenerationConfig": "config",
    "LongOptions": "speech.plan",
    "MissingExtraError": "speech.split",
    "Options": "options",
    "Tokenizer": "tokenizer",
    "Voice": "voice",
    "VoiceError": "voice",
    "convert": "checkpoint.saving",
    "save_audio": "audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
