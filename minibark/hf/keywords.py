"""What transformers' keywords mean here, and which are refused."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from reprlib import repr as brief
from typing import Any

import torch

from ..config import GenerationConfig
from ..options import Options
from ..precision import FLOATS

Place = str | int | torch.device | None
"""A device: as for `torch.device`, or the number of a GPU; -1 is the CPU."""

# What each stage can be told, by a keyword with its prefix or without one.
_KNOBS = {
    "semantic": ("do_sample", "temperature", "top_k", "top_p", "min_eos_p", "max_new_tokens"),
    "coarse": ("do_sample", "temperature", "top_k", "top_p"),
    "fine": ("do_sample", "temperature"),
}
# Accepted with the value that changes nothing, and with None.
_NEUTRAL = dict.fromkeys(
    "num_beams num_return_sequences repetition_penalty length_penalty typical_p "
    "guidance_scale".split(),
    1,
) | dict.fromkeys(
    "min_new_tokens min_length no_repeat_ngram_size early_stopping min_p penalty_alpha max_time "
    "logits_processor stopping_criteria streamer".split(),
    0,
)
# These change no audio of transformers' Bark either. Its pads are not needed here.
_IGNORED = (
    "use_cache cache_implementation pad_token_id renormalize_logits synced_gpus generation_config "
    "output_scores output_logits output_attentions output_hidden_states return_dict_in_generate"
).split()
_IGNORED_AT_LOADING = (
    "attn_implementation force_download framework low_cpu_mem_usage max_memory offload_folder "
    "proxies token trust_remote_code use_fast use_flash_attention_2 use_safetensors weights_only"
).split()
_QUANTIZING = ("quantization_config", "load_in_8bit", "load_in_4bit")


def stage_options(keywords: Mapping[str, Any], generation: GenerationConfig) -> dict[str, Options]:
    """The options of each stage.

    A keyword with a stage's prefix is for that stage and wins over the one without, which is for
    all that know it. None is the default, but for `min_eos_p`, where it is off.

    Raises:
        ValueError: a keyword that is unknown, has no meaning here or is out of its range.
    """
    knobs: dict[str, dict[str, Any]] = {stage: {} for stage in _KNOBS}
    for key in sorted(keywords, key=lambda key: key.startswith(tuple(f"{s}_" for s in _KNOBS))):
        prefix, _, rest = key.partition("_")
        stages, name = ([prefix], rest) if prefix in _KNOBS else (list(_KNOBS), key)
        known = [stage for stage in stages if name in _KNOBS[stage]]
        if not known:
            _refuse(key, name, stages, keywords[key], generation)
        for stage in known:
            if keywords[key] is not None or name == "min_eos_p":
                knobs[stage][name] = keywords[key]
    return {
        "semantic": _options("semantic", knobs["semantic"], "temperature", generation),
        "coarse": _options("coarse", knobs["coarse"], "waveform_temperature", generation),
        "fine": _options("fine", knobs["fine"], "fine_temperature", generation),
    }


def _options(
    stage: str, knobs: dict[str, Any], temperature: str, generation: GenerationConfig
) -> Options:
    """One stage's options, in which its temperature has a name of its own."""
    do_sample = knobs.pop("do_sample", True)
    if not isinstance(do_sample, bool):
        raise ValueError(f"do_sample must be True or False, got {brief(do_sample)}")
    if "max_new_tokens" in knobs:
        n = knobs.pop("max_new_tokens")
        try:
            n = operator.index(n)
        except TypeError:
            n = 0
        if n < 1:
            raise ValueError("semantic_max_new_tokens must be a positive whole number")
        # The last token that is kept is the first to pass the limit.
        knobs["max_duration_s"] = (n - 0.5) / generation.semantic_rate_hz
    try:
        if "temperature" in knobs:
            Options(temperature=knobs["temperature"])  # an error by the name that the caller knows
            knobs[temperature] = knobs.pop("temperature")
        # At 1.0 the fine stage of transformers takes the likeliest code.
        if not do_sample or (stage == "fine" and knobs.get(temperature) == 1.0):
            knobs[temperature] = 0.0
        return Options(**knobs)
    except ValueError as error:
        raise ValueError(f"{stage} stage: {error}") from error


def _refuse(
    key: str, name: str, stages: list[str], value: Any, generation: GenerationConfig
) -> None:
    """Raise, unless what no stage knows changes nothing."""
    neutral = _NEUTRAL | {"eos_token_id": generation.semantic_pad_token}
    if name in _IGNORED:
        return
    if name in neutral:
        if value is not None and not (isinstance(value, (int, float)) and value == neutral[name]):
            raise ValueError(
                f"{key}={brief(value)} has no meaning in minibark, which draws one token after the "
                "other; leave it out"
            )
        return
    if any(name in names for names in _KNOBS.values()):
        have = ", ".join(f"{stages[0]}_{each}" for each in _KNOBS[stages[0]])
        raise ValueError(f"the {stages[0]} stage has no {name}; it has {have}")
    known = [f"{stage}_{each}" for stage, names in _KNOBS.items() for each in names]
    known += [*_KNOBS["semantic"], "attention_mask", "history_prompt", "return_output_lengths"]
    _unknown(key, [*known, "input_ids", "seed"])


def refuse_unknown(keywords: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse what `from_pretrained` can neither use nor ignore; `known` are its own keywords.

    Raises:
        ValueError: a keyword that transformers does not have, or that would be without effect.
    """
    for key in keywords:
        if key in _QUANTIZING:
            if keywords[key]:
                raise ValueError(f"{key} is not used here; precision='int8' (or 'int4') quantizes")
        elif key not in _IGNORED_AT_LOADING:
            _unknown(key, [*set(known) - {"ignored", "return"}, *_IGNORED_AT_LOADING])


def _unknown(key: str, known: list[str]) -> None:
    near = difflib.get_close_matches(key[:80], known, n=3)
    hint = f"near ones: {', '.join(near)}" if near else f"known: {', '.join(sorted(known))}"
    raise ValueError(f"unknown keyword {brief(key)}; {hint}")


def precision_of(dtype: str | torch.dtype | None) -> str:
    """The precision that a `torch.dtype`, or its name, asks for; None and `"auto"` are float32.

    Raises:
        ValueError: another dtype.
    """
    name = "float32" if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise ValueError(f"dtype must be one of torch.{', torch.'.join(FLOATS)}, got {dtype!r}")
    return name


def device_of(place: Place | Mapping[str, Place]) -> str | torch.device | None:
    """The device for a `device` or a `device_map`; None, which chooses, for `"auto"`.

    Raises:
        ValueError: a map with several devices.
    """
    if isinstance(place, Mapping):
        places = set(place.values())
        if len(places) != 1:
            raise ValueError(f"a device_map must name one device for the whole model, got {place}")
        place = places.pop()
    if place in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    if isinstance(place, int):
        return "cpu" if place < 0 else f"cuda:{place}"
    return "cpu" if place is None else place
