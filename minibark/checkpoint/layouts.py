"""Which layout a checkpoint has, and the way into each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..config import (
    STAGES,
    BarkConfig,
    CheckpointError,
    CodecConfig,
    FineGPTConfig,
    GenerationConfig,
    GPTConfig,
)
from ..files import naming, read_json, warn
from ..tokenizer import Tokenizer
from ..voice import VoiceError
from .hub import RANDOM, Source, fixed
from .names import codec_state, gpt_state, hf_state
from .opened import Checkpoint
from .presets import preset
from .reading import SUNO_MD5, read_any, read_hf
from .schema import config_from_dict, config_from_hf, from_fields, released_fields
from .shapes import RandomStates, checked, some
from .tensors import State, read_safetensors
from .voices import Voices

CODEC_REPO = "facebook/encodec_24khz"

VOCAB_REPO = "google-bert/bert-base-multilingual-cased"

_HF_PREFIXES = {
    "semantic": "semantic.",
    "coarse": "coarse_acoustics.",
    "fine": "fine_acoustics.",
    "codec": "codec_model.",
}

_SUNO_NAMES = {"semantic": "text", "coarse": "coarse", "fine": "fine"}


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
    config, states = _open_states(source, [stage for stage in STAGES if stage not in others])
    for stage, place in others.items():
        part, states[stage] = _open_stage(source.elsewhere(place).pinned(), stage, config)
        with naming(f"{source.name} with the {stage} model of {os.fspath(place)}"):
            config = dataclasses.replace(config, **{stage: part})
    tokenizer = _open_tokenizer(source)
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
    return Checkpoint(source.name, config, states, tokenizer, voices)


def _open_states(source: Source, stages: Collection[str]) -> tuple[BarkConfig, dict[str, State]]:
    """Configuration and states of some stages of one source, whatever its layout."""
    if source.is_random:
        config = preset(RANDOM)
        random = RandomStates(config)
        return config, {stage: random[stage] for stage in stages}
    if os.path.isfile(source.path):
        raise CheckpointError(
            f"{source.path} is a file; a model is the directory it lies in, or a hub repository"
        )
    if _is_suno(source):
        opened = {stage: _open_suno_stage(source, stage) for stage in stages}
        with naming(source.path):
            config = BarkConfig(**{stage: part for stage, (part, _) in opened.items()})
        return config, {stage: state for stage, (_, state) in opened.items()}
    config, is_ours = _open_config(source)
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
    return config, states


def _is_suno(source: Source) -> bool:
    if source.is_random or not source.is_local or (source.path / "config.json").is_file():
        return False
    return any((source.path / name).is_file() for name in SUNO_MD5)


def _open_config(source: Source) -> tuple[BarkConfig, bool]:
    """The configuration of a directory or repository in our layout (True) or Hugging Face's."""
    path = source.need("config.json")
    document = read_json(path)
    if isinstance(document, dict) and document.get("format") == "minibark":
        with naming(path):
            if document.get("version") != 1:
                raise CheckpointError("written by a newer minibark; update this one")
            return config_from_dict(document.get("config")), True
    generation = source.find("generation_config.json")
    constants = generation and read_json(generation)
    with naming(path):
        return config_from_hf(document, constants), False


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
        again = dataclasses.replace(source, unreachable=False)
        return Voices.from_index(index, lambda name: dataclasses.replace(again).need(name))
    if _is_suno(source):
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
    if source.is_random or _is_suno(source):
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
    return _open_tokenizer(Source.of(name, cache_dir, revision, offline).pinned())


def _open_stage(source: Source, stage: str, base: BarkConfig) -> tuple[Any, State]:
    """Configuration and state of one stage, from any layout."""
    if source.is_random:
        config, states = _open_states(source, [stage])
        return getattr(config, stage), states[stage]
    if os.path.isfile(source.path):
        return _open_suno_file(source.path, stage, source.cache_dir)
    config_path = source.find("config.json")
    if config_path is None:
        return _open_suno_stage(source, stage)
    document = read_json(config_path)
    if stage == "codec" and isinstance(document, dict) and "num_filters" in document:
        with naming(config_path):
            fields = {**released_fields(stage, document), "n_codebooks": base.codec.n_codebooks}
            codec = from_fields(CodecConfig, fields, "codec", partial=True)
        path, flat = read_hf(source)
        return codec, codec_state(flat, codec, os.fspath(path))
    config, states = _open_states(source, [stage])
    return getattr(config, stage), states[stage]


def _open_suno_stage(source: Source, stage: str) -> tuple[Any, State]:
    if stage == "codec":
        found = sorted(source.path.glob("encodec_24khz*.th"))
        if found:
            return _open_suno_file(found[0], stage, source.cache_dir)
        inner = source.path / "encodec_24khz"
        other = source.elsewhere(inner if inner.is_dir() else CODEC_REPO)
        return _open_stage(other.pinned(), stage, BarkConfig())
    name = _SUNO_NAMES[stage]
    for filename in (f"{name}_2.pt", f"{name}.pt"):
        if (source.path / filename).is_file():
            return _open_suno_file(source.path / filename, stage, source.cache_dir)
    raise FileNotFoundError(f"{source.path} has neither {name}_2.pt (large) nor {name}.pt (small)")


def _open_suno_file(
    path: Path, stage: str, cache_dir: str | os.PathLike[str] | None
) -> tuple[Any, State]:
    """One stage from Suno's `.pt`, or the codec from facebook's `.th`.

    Source: suno-ai/bark, bark/generation.py, _load_model.
    """
    state, metadata = read_any(path, cache_dir)
    if stage == "codec":
        codec = CodecConfig()
        return codec, codec_state(state, codec, os.fspath(path))
    if "model_args" not in metadata:
        raise CheckpointError(f"{path} has no model_args: not one of Suno's text, coarse or fine")
    kind = FineGPTConfig if stage == "fine" else GPTConfig
    with naming(path):
        args = dict(json.loads(metadata["model_args"]))
        if "vocab_size" in args:
            size = args["vocab_size"]
            args = {"input_vocab_size": size, "output_vocab_size": size} | args
        config = from_fields(kind, released_fields(stage, args), "model_args", partial=True)
    state = {key.removeprefix("_orig_mod."): tensor for key, tensor in state.items()}
    return config, checked(stage, gpt_state(stage, state, os.fspath(path)), config, path)


def _open_tokenizer(source: Source) -> Tokenizer:
    if source.is_random:
        return Tokenizer.characters()
    vocab = source.find("vocab.txt")
    if vocab is None and (packed := source.find("tokenizer.json")) is not None:
        content = read_json(packed)
        model = content.get("model") if isinstance(content, dict) else None
        ids = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
            raise CheckpointError(f"{packed} has no WordPiece vocabulary")
        if sorted(ids.values()) != list(range(len(ids))):
            raise CheckpointError(f"{packed}: the ids of its vocabulary are not 0, 1, 2 ...")
        with naming(packed):
            return Tokenizer(sorted(ids, key=ids.__getitem__))
    if vocab is None:
        try:
            vocab = source.elsewhere(VOCAB_REPO).need("vocab.txt")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{source.name} has no vocab.txt; put the one of {VOCAB_REPO} there ({error})"
            ) from error
    return Tokenizer.from_file(vocab)


def _strip(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
