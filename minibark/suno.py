"""suno/bark's own functions over `Bark`: a script for it runs after a change of its import line.

    from bark import SAMPLE_RATE, generate_audio, preload_models
    from minibark.suno import SAMPLE_RATE, generate_audio, preload_models

As there, the models are module-wide and load at first use, random numbers are torch's own
(`torch.manual_seed`), and arrays are NumPy's.

Source: suno-ai/bark, bark/api.py and bark/generation.py.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import SAMPLE_RATE as SAMPLE_RATE
from .bark import Bark
from .commands.bars import Bars
from .options import Options
from .voice import Voice, VoiceError

Array = np.ndarray[Any, Any]
_bark: Bark | None = None


def use(bark: Bark) -> None:
    """Take this Bark for all functions below, in place of the released checkpoints."""
    global _bark
    _bark = bark


def preload_models(
    text_use_gpu: bool = True,
    text_use_small: bool = False,
    coarse_use_gpu: bool = True,
    coarse_use_small: bool = False,
    fine_use_gpu: bool = True,
    fine_use_small: bool = False,
    codec_use_gpu: bool = True,
    force_reload: bool = False,
) -> None:
    """Fetch and load the released checkpoints, each stage large unless asked for small.

    minibark runs all stages on one device: the GPU only if all four may use it.

    Raises:
        FileNotFoundError: not cached and no network.
    """
    if _bark is not None and not force_reload:
        return
    gpu = text_use_gpu and coarse_use_gpu and fine_use_gpu and codec_use_gpu
    sizes = {"semantic": text_use_small, "coarse": coarse_use_small, "fine": fine_use_small}
    main = "suno/bark-small" if all(sizes.values()) else "suno/bark"
    stages = {stage: "suno/bark-small" for stage, small in sizes.items() if small}
    use(
        Bark.from_pretrained(
            main, stages=stages if main == "suno/bark" else None, device=None if gpu else "cpu"
        )
    )


def text_to_semantic(
    text: str,
    history_prompt: dict[str, Array] | str | None = None,
    temp: float | None = Options.temperature,
    silent: bool = False,
) -> Array:
    """Semantic tokens (S,) int64 of a text, for `semantic_to_waveform`."""
    with Bars(silent) as bars:
        semantic = _loaded().text_to_semantic(
            text, history_prompt, temperature=temp, on_step=bars.step
        )
    return semantic.numpy()


def semantic_to_waveform(
    semantic_tokens: Array,
    history_prompt: dict[str, Array] | str | None = None,
    temp: float | None = Options.waveform_temperature,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (N,) float32 of semantic tokens; with `output_full`, the voice dictionary before it."""
    bark = _loaded()
    voice = bark.load_voice(history_prompt)
    with Bars(silent) as bars:
        coarse = bark.semantic_to_coarse(
            semantic_tokens, voice, temperature=temp, on_step=bars.step
        )
        fine = bark.coarse_to_fine(coarse, voice, on_step=bars.step)
    audio = bark.decode(fine)
    full = {
        "semantic_prompt": semantic_tokens,
        "coarse_prompt": coarse.numpy(),
        "fine_prompt": fine.numpy(),
    }
    return (full, audio) if output_full else audio


def generate_audio(
    text: str,
    history_prompt: dict[str, Array] | str | None = None,
    text_temp: float | None = Options.temperature,
    waveform_temp: float | None = Options.waveform_temperature,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (N,) float32 of a text; with `output_full`, the voice dictionary before it."""
    semantic = text_to_semantic(text, history_prompt, text_temp, silent)
    return semantic_to_waveform(semantic, history_prompt, waveform_temp, silent, output_full)


def save_as_prompt(filepath: str | os.PathLike[str], full_generation: dict[str, Array]) -> None:
    """Write a voice dictionary as an `.npz` voice.

    Raises:
        ValueError: the name does not end in `.npz`.
        VoiceError: not a dictionary with the three arrays.
    """
    if not isinstance(full_generation, dict):
        raise VoiceError(f"expected a dictionary of three arrays, got {type(full_generation)}")
    Voice.from_arrays(full_generation).save(filepath)


def _loaded() -> Bark:
    preload_models()
    assert _bark is not None
    return _bark
