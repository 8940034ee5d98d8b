"""Bark in pure PyTorch: text to speech, music and sounds."""

from ._version import __version__
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
from .tokenizer import Tokenizer
from .voice import Voice, VoiceError

SAMPLE_RATE = 24_000
"""Samples per second of every released Bark, Hz."""

__all__ = [
    "SAMPLE_RATE",
    "Bark",
    "BarkConfig",
    "CheckpointError",
    "CodecConfig",
    "FineGPTConfig",
    "GPTConfig",
    "GenerationConfig",
    "Tokenizer",
    "Voice",
    "VoiceError",
    "__version__",
    "convert",
    "save_audio",
]
