"""Configurations from untrusted documents: ours, Hugging Face's and Suno's."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any, TypeVar, get_type_hints

from ..config import STAGES, BarkConfig, CheckpointError, GenerationConfig

HF_SECTIONS = {
    "semantic": "semantic_config",
    "coarse": "coarse_acoustics_config",
    "fine": "fine_acoustics_config",
    "codec": "codec_config",
}
"""The sections of Hugging Face's configuration files, by stage."""

# How EnCodec can be built, and the only way that `codec.py` knows: the 24 kHz model's.
_HF_CODEC = {
    "use_causal_conv": True,
    "use_conv_shortcut": True,
    "norm_type": "weight_norm",
    "pad_mode": "reflect",
    "trim_right_ratio": 1.0,
    "audio_channels": 1,
}

_C = TypeVar("_C")


def released_fields(stage: str, section: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section of Hugging Face's config.json, or Suno's model_args, under our names.

    Raises:
        CheckpointError: an EnCodec that is built otherwise than Bark's.
    """
    if stage == "codec":
        for name, value in _HF_CODEC.items():
            if section.get(name, value) != value:
                raise CheckpointError(
                    f"only an EnCodec whose {name} is {value!r} can be used, this one's is "
                    f"{brief(section[name])}"
                )
        return section
    names = {"num_layers": "n_layer", "num_heads": "n_head", "hidden_size": "n_embd"}
    # What Suno's and transformers' classes, all of them, have where a file is silent.
    silent = {"bias": True, "input_vocab_size": 10_048, "output_vocab_size": 10_048}
    return silent | {names.get(key, key): value for key, value in section.items()}


def from_fields(cls: type[_C], data: object, where: str, partial: bool = False) -> _C:
    """A config dataclass from untrusted key-value pairs, types checked.

    Args:
        cls: the dataclass to make.
        data: its fields by name.
        where: what to call this section in an error.
        partial: True lets missing fields keep their defaults and drops unknown ones.

    Raises:
        CheckpointError: a field is missing, unknown or of a wrong type, or a value is out of range.
    """
    given, hints = dict(_expect_mapping(data, where)), get_type_hints(cls)
    if partial:
        given = {name: value for name, value in given.items() if name in hints}
    elif set(given) != set(hints):
        odd = sorted(map(str, set(given) ^ set(hints)))
        raise CheckpointError(f"{where}: missing or unknown fields: {brief(odd)}")
    for name, value in given.items():
        hint = hints[name]
        if hint == tuple[int, ...]:
            ok = isinstance(value, (list, tuple)) and all(type(v) is int for v in value)
            given[name] = tuple(value) if ok else value
        elif hint is float:
            ok = type(value) in (int, float)
        else:
            ok = type(value) is hint
        if not ok:
            kind = getattr(hint, "__name__", hint)
            raise CheckpointError(f"{where}: {name} must be {kind}, got {brief(value)}")
    try:
        return cls(**given)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _expect_mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} must be a JSON object, got {type(data).__name__}")
    return data


def config_from_dict(data: object) -> BarkConfig:
    """A config from `BarkConfig.to_dict`'s output.

    Raises:
        CheckpointError: a section or field is missing, unknown, of a wrong type or range.
    """
    parts = _expect_mapping(data, "config")
    sections = get_type_hints(BarkConfig)
    if set(parts) != set(sections):
        raise CheckpointError(
            f"config must have the sections {sorted(sections)}, got {brief(sorted(parts))}"
        )
    return BarkConfig(**{name: from_fields(sections[name], parts[name], name) for name in sections})


def config_from_hf(config: object, generation: object) -> BarkConfig:
    """A config from the released Hugging Face `config.json` and `generation_config.json`.

    Args:
        config: parsed `config.json` with `semantic_config`, `coarse_acoustics_config`,
            `fine_acoustics_config` and `codec_config`.
        generation: parsed `generation_config.json`; fields that it lacks keep the released
            value, and None stands for a file that is not there.

    Raises:
        CheckpointError: not a Bark configuration, or one that does not fit together.
    """
    top = _expect_mapping(config, "config.json")
    missing = [part for part in HF_SECTIONS.values() if part not in top]
    if missing:
        kind = top.get("model_type", "unknown")
        raise CheckpointError(
            f"config.json (model_type {brief(kind)}) is not a Bark's: it lacks {', '.join(missing)}"
        )
    sections = {stage: _expect_mapping(top[part], part) for stage, part in HF_SECTIONS.items()}
    file = "generation_config.json"
    whole = _expect_mapping({} if generation is None else generation, file)
    numbers: dict[str, Any] = {}
    # Every section has every field of transformers' class, most of them null; max_new_tokens
    # and eos_token_id are the semantic one's, so it comes last.
    for section in (whole, *(whole.get(part) or {} for part in reversed(HF_SECTIONS.values()))):
        fields = _expect_mapping(section, file).items()
        numbers |= {key: value for key, value in fields if value is not None}
    if "eos_token_id" in numbers:
        numbers.setdefault("semantic_pad_token", numbers["eos_token_id"])
    n_codebooks = numbers.get("n_fine_codebooks", GenerationConfig.n_fine_codebooks)
    sections["codec"] = {**sections["codec"], "n_codebooks": n_codebooks}
    parts = {
        stage: from_fields(
            kind, released_fields(stage, sections[stage]), HF_SECTIONS[stage], partial=True
        )
        for stage, kind in get_type_hints(BarkConfig).items()
        if stage in STAGES
    }
    return BarkConfig(
        **parts, generation=from_fields(GenerationConfig, numbers, file, partial=True)
    )
