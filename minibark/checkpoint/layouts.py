"""Which layout a checkpoint has, and the way into each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..config import STAGES, BarkConfig, CheckpointError, GenerationConfig
from ..files import naming, read_json, warn
from ..text import LEVELS
from ..tokenizer import Tokenizer
from ..voice import VoiceError
from .hub import RANDOM, Source, fixed
from .names import codec_state, hf_state
from .opened import Checkpoint
from .presets import preset
from .reading import WEIGHTS, read_hf
from .schema import config_from_dict, config_from_hf
from .shapes import RandomStates, checked, some
from .single import is_single, open_single
from .suno_files import find_encodec, is_suno, open_suno_file, suno_file
from .tensors import State, read_safetensors
from .vocabulary import find_tokenizer
from .voices import Voices

CODEC_REPO = "facebook/encodec_24khz"

_HF_PREFIXES = {
    "semantic": "semantic.",
    "coarse": "coarse_acoustics.",
    "fine": "fine_acoustics.",
    "codec": "codec_model.",
}


def opener(
    name: str | os.PathLike[str],
    *,
    stages: Mapping[str, str | os.PathLike[str]] | None = None,
    voices_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Callable[[], Checkpoint]:
    """What opens a checkpoint, the same one whatever the current folder is by then.

    Arguments are those of `open_checkpoint`.
    """
    return partial(
        open_checkpoint,
        fixed(name),
        stages={stage: fixed(place) for stage, place in (stages or {}).items()},
        voices_dir=voices_dir and os.path.abspath(os.path.expanduser(voices_dir)),
        **options,
    )


def open_checkpoint(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
    stages: Mapping[str, str | os.PathLike[str]] | None = None,
    voices_dir: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Find and check a checkpoint in any of the three layouts.

    Args:
        name: hub repository, directory, `"tiny"` or `"random"`.
        cache_dir: the hub's cache and ours; None is the usual place of each.
        revision: branch, tag or commit on the hub.
        offline: never ask the hub, use what is cached.
        stages: other places to take single stages from: a repository, a directory or, in Suno's
            layout, the `.pt` (codec: `.th`) file itself.
        voices_dir: directory of `.npz` voices to use in place of the checkpoint's own.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        CheckpointError: files that are damaged or do not fit together.
    """
    unknown = set(stages or {}) - set(STAGES)
    if unknown:
        raise ValueError(f"unknown stage {unknown.pop()!r}; expected one of {', '.join(STAGES)}")
    source = Source.of(name, cache_dir, revision, offline).pinned()
    others = stages or {}
    kept = [stage for stage in STAGES if stage not in others]
    config, states, level = _open_states(source, kept)
    for stage, place in others.items():
        part, states[stage] = _open_stage(source.elsewhere(place).pinned(), stage, config)
        with naming(f"{source.name} with the {stage} model of {os.fspath(place)}"):
            config = dataclasses.replace(config, **{stage: part})
    tokenizer = find_tokenizer(source)
    try:
        voices = _open_voices(source, voices_dir)
    except (CheckpointError, VoiceError) as error:
        warn(f"{source.name} is opened without its voices: {error}")
        voices = Voices({}, Path)
    if len(tokenizer) + config.generation.text_encoding_offset > config.semantic.input_vocab_size:
        raise CheckpointError(
            f"{source.name}: the vocabulary has {len(tokenizer)} tokens, the text model "
            f"{config.semantic.input_vocab_size} ids, text_encoding_offset included"
        )
    return Checkpoint(source.name, config, states, tokenizer, voices, level)


def _open_states(
    source: Source, stages: Collection[str]
) -> tuple[BarkConfig, dict[str, State], str]:
    """Of one source, whatever its layout: configuration, states of some stages, `normalize`."""
    if source.is_random:
        config = preset(RANDOM)
        random = RandomStates(config)
        return config, {stage: random[stage] for stage in stages}, "off"
    if os.path.isfile(source.path):
        raise CheckpointError(
            f"{source.path} is a file; a model is the directory it lies in, or a hub repository"
        )
    if is_suno(source):
        opened = {stage: _open_suno_stage(source, stage) for stage in stages}
        with naming(source.path):
            config = BarkConfig(**{stage: part for stage, (part, _) in opened.items()})
        return config, {stage: state for stage, (_, state) in opened.items()}, "off"
    config, level = _open_config(source)
    is_ours = level is not None
    if is_ours:
        path = source.need("model.safetensors")
        flat, prefixes = read_safetensors(path)[0], {stage: f"{stage}." for stage in STAGES}
    else:
        path, flat = read_hf(source)
        prefixes = _HF_PREFIXES
    extra = [key for key in flat if not key.startswith(tuple(prefixes.values()))]
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {some(extra)}")
    states = {}
    for stage in stages:
        state, part = _strip(flat, prefixes[stage]), getattr(config, stage)
        if is_ours:
            states[stage] = checked(stage, state, part, path, may_be_int8=stage != "codec")
        elif stage == "codec":
            states[stage] = codec_state(state, part, os.fspath(path))
        else:
            states[stage] = checked(stage, hf_state(stage, state, os.fspath(path)), part, path)
    return config, states, level or "off"


def _open_config(source: Source) -> tuple[BarkConfig, str | None]:
    """The configuration of a directory or repository, and what our layout, alone, says of texts.

    That is how far they are made plain (`minibark.text.LEVELS`); None is Hugging Face's layout.
    """
    path = source.need("config.json")
    document = read_json(path)
    if isinstance(document, dict) and document.get("format") == "minibark":
        with naming(path):
            if document.get("version") != 1:
                raise CheckpointError("written by a newer minibark; update this one")
            level = document.get("normalize", "off")
            if level not in LEVELS:
                raise CheckpointError(f"normalize must be one of {', '.join(LEVELS)}")
            return config_from_dict(document.get("config")), level
    if is_single(document):
        raise CheckpointError(
            f"{path} is that of one stage, not of a Bark; use it as --stage STAGE={path.parent}"
        )
    generation = source.find("generation_config.json")
    constants = generation and read_json(generation)
    with naming(path):
        return config_from_hf(document, constants), None


def _open_voices(source: Source, voices_dir: str | os.PathLike[str] | None) -> Voices:
    if voices_dir is not None:
        voices = Voices.from_directory(voices_dir)
        if not len(voices):
            raise FileNotFoundError(f"no .npz voices under {os.fspath(voices_dir)}")
        return voices
    if source.is_random:
        return Voices({}, Path)
    index = source.find("speaker_embeddings_path.json")
    if index is not None:
        again = dataclasses.replace(source, unreachable="")
        cached = dataclasses.replace(source, offline=True)
        return Voices.from_index(
            index, lambda name: dataclasses.replace(again).need(name), cached.need
        )
    if is_suno(source):
        return Voices.from_directory(source.path)
    return Voices.from_directory(source.need("config.json").parent / "voices")


def open_voices(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
    voices_dir: str | os.PathLike[str] | None = None,
) -> tuple[Voices, GenerationConfig]:
    """The voices of a checkpoint, and what they are checked against, without its weights.

    Arguments and errors are those of `open_checkpoint`.
    """
    source = Source.of(name, cache_dir, revision, offline).pinned()
    if source.is_random or is_suno(source):
        generation = GenerationConfig()
    else:
        generation = _open_config(source)[0].generation
    return _open_voices(source, voices_dir), generation


def open_tokenizer(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Tokenizer:
    """The tokenizer of a checkpoint, without its weights.

    Arguments and errors are those of `open_checkpoint`.
    """
    return find_tokenizer(Source.of(name, cache_dir, revision, offline).pinned())


def _open_stage(source: Source, stage: str, base: BarkConfig) -> tuple[Any, State]:
    """Configuration and state of one stage, from any layout."""
    if not source.is_random:
        if source.path.name in WEIGHTS and (source.path.parent / "config.json").is_file():
            source = source.elsewhere(source.path.parent).pinned()
        if os.path.isfile(source.path):
            return open_suno_file(source.path, stage, source.cache_dir)
        config_path = source.find("config.json")
        if config_path is None:
            return _open_suno_stage(source, stage)
        document = read_json(config_path)
        if is_single(document):
            return open_single(source, config_path, document, stage, base)
    config, states, _ = _open_states(source, [stage])
    return getattr(config, stage), states[stage]


def _open_suno_stage(source: Source, stage: str) -> tuple[Any, State]:
    if stage != "codec":
        return open_suno_file(suno_file(source, stage), stage, source.cache_dir)
    path = find_encodec(source)
    if path is not None and path.is_file():
        return open_suno_file(path, stage, source.cache_dir)
    return _open_stage(source.elsewhere(path or CODEC_REPO).pinned(), stage, BarkConfig())


def _strip(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
