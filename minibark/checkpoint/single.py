"""A place that holds one stage, as transformers, EnCodec and fine-tunes save it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config import BarkConfig, CheckpointError, CodecConfig, FineGPTConfig, GPTConfig
from ..files import naming
from .hub import Source
from .names import codec_state, hf_state
from .reading import read_hf
from .schema import from_fields, released_fields
from .shapes import checked
from .suno_files import is_nanogpt, open_nanogpt
from .tensors import State

MODEL_TYPES = {
    "semantic": "semantic",
    "coarse_acoustics": "coarse",
    "fine_acoustics": "fine",
    "encodec": "codec",
}
"""Stages by the `model_type` of their own config.json."""


def is_single(document: object) -> bool:
    """Whether a config.json is that of one stage."""
    if not isinstance(document, dict) or "semantic_config" in document:
        return False
    return "num_filters" in document or _model_type(document) in MODEL_TYPES or _has_args(document)


def open_single(
    source: Source, config_path: Path, document: dict[str, Any], stage: str, base: BarkConfig
) -> tuple[Any, State]:
    """Configuration and state of the stage.

    Args:
        source: where it lies.
        config_path: its config.json.
        document: which is this.
        stage: what it is to be.
        base: of the Bark that it goes into.

    Raises:
        CheckpointError: it is another stage, or damaged.
    """
    found = "codec" if "num_filters" in document else MODEL_TYPES.get(_model_type(document), stage)
    if found != stage:
        raise CheckpointError(f"{config_path}: this is a {found} model, not a {stage} model")
    path, flat = read_hf(source)
    if stage == "codec":
        with naming(config_path):
            fields = {**released_fields(stage, document), "n_codebooks": base.codec.n_codebooks}
            codec = from_fields(CodecConfig, fields, "codec", partial=True)
        return codec, codec_state(flat, codec, os.fspath(path))
    if _has_args(document):
        return open_nanogpt(flat, document.get("model_args", document), stage, path)
    with naming(config_path):
        kind = FineGPTConfig if stage == "fine" else GPTConfig
        config = from_fields(kind, released_fields(stage, document), stage, partial=True)
    return config, checked(stage, hf_state(stage, flat, os.fspath(path)), config, path)


def _model_type(document: dict[str, Any]) -> str:
    return str(document.get("model_type", ""))


def _has_args(document: dict[str, Any]) -> bool:
    return is_nanogpt(document) or is_nanogpt(document.get("model_args"))
