"""`pipeline`: texts to audio in one call.

Source: transformers, pipelines/text_to_audio.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import numpy as np
import torch

from ..pipeline import Audio
from .keywords import Place, refuse_unknown
from .model import BarkModel
from .processor import BarkProcessor


class Speech(TypedDict):
    """What a pipeline gives: audio (N,) in about [-1, 1], and its rate in Hz."""

    audio: Audio
    sampling_rate: int


class TextToAudioPipeline:
    """Texts to audio in one call."""

    def __init__(
        self, model: BarkModel, processor: BarkProcessor, batch_size: int, keywords: dict[str, Any]
    ) -> None:
        self.model = model
        self.processor = processor
        self.sampling_rate = model.generation_config.sample_rate
        self._batch_size = batch_size
        self._keywords = keywords

    def __call__(
        self,
        text_inputs: str | Iterable[str],
        *,
        forward_params: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        preprocess_params: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> Speech | list[Speech]:
        """Audio of a text, or a list of them for several.

        Args:
            text_inputs: one or several.
            forward_params: keywords for `BarkModel.generate`.
            generate_kwargs: more of them, which win.
            preprocess_params: keywords for the processor, such as `voice_preset`.
            batch_size: how many texts run together.
        """
        texts = [text_inputs] if isinstance(text_inputs, str) else list(text_inputs)
        keywords = self._keywords | dict(forward_params or {}) | dict(generate_kwargs or {})
        n = batch_size or self._batch_size
        speeches: list[Speech] = []
        for first in range(0, len(texts), n):
            inputs = self.processor(texts[first : first + n], **(preprocess_params or {}))
            audio, lengths = self.model.generate(
                **inputs, **keywords | {"return_output_lengths": True}
            )
            for row, length in zip(audio.cpu().numpy(), lengths, strict=True):
                speeches.append(Speech(audio=row[:length], sampling_rate=self.sampling_rate))
        return speeches[0] if isinstance(text_inputs, str) else speeches


def pipeline(
    task: str | None = None,
    model: str | os.PathLike[str] | BarkModel | None = None,
    *,
    processor: BarkProcessor | None = None,
    device: Place = None,
    device_map: Place | Mapping[str, Place] = None,
    batch_size: int = 1,
    forward_params: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> TextToAudioPipeline:
    """A function of texts, on CUDA where there is one.

    Args:
        task: `"text-to-speech"` or `"text-to-audio"`.
        model: a model, or what names one; None is `"suno/bark-small"`.
        processor: None is the model's own.
        device: where; -1 is the CPU, other numbers are GPUs.
        device_map: another word for it.
        batch_size: how many texts of a list run together.
        forward_params: keywords for every `BarkModel.generate`.
        generate_kwargs: more of them, which win.
        model_kwargs: keywords for `BarkModel.from_pretrained`.
        **keywords: more of them; a model that is there takes none.

    Raises:
        ValueError: another task. Else as `BarkModel.from_pretrained`.
    """
    if task not in (None, "text-to-speech", "text-to-audio"):
        raise ValueError(f"expected the task 'text-to-speech' or 'text-to-audio', got {task!r}")
    place = device_map if device is None else device
    place = "auto" if place is None else place
    keywords = dict(model_kwargs or {}) | keywords
    if not isinstance(model, BarkModel):
        name = "suno/bark-small" if model is None else model
        model = BarkModel.from_pretrained(name, device_map=place, **keywords)
    else:
        refuse_unknown(keywords, ["device", "processor", "batch_size"])
        model.to(model.device if device is None else device)
    params = dict(forward_params or {}) | dict(generate_kwargs or {})
    return TextToAudioPipeline(model, processor or model.processor, batch_size, params)


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Start the random streams of Python, NumPy and torch over."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
