"""transformers' Bark over minibark: a script for it runs after a change of its import line.

    from transformers import AutoProcessor, BarkModel, pipeline, set_seed

    from minibark.hf import AutoProcessor, BarkModel, pipeline, set_seed

As there, a model is on the CPU in float32 until it is moved, and without a seed random numbers are
torch's own (`set_seed`, `torch.manual_seed`). What keywords mean is what they mean there; one that
has no meaning here is refused by its name. `docs/parity.md` lists what differs.
"""

from .model import BarkModel, ModelConfig
from .pipeline import Speech, TextToAudioPipeline, pipeline, set_seed
from .processor import BarkProcessor, BatchFeature

AutoModel = AutoModelForTextToWaveform = BarkModel
AutoProcessor = BarkProcessor

__all__ = [
    "AutoModel",
    "AutoModelForTextToWaveform",
    "AutoProcessor",
    "BarkModel",
    "BarkProcessor",
    "BatchFeature",
    "ModelConfig",
    "Speech",
    "TextToAudioPipeline",
    "pipeline",
    "set_seed",
]
