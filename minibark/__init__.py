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
