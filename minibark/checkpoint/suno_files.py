"""Suno's layout: a `.pt` file for each transformer, facebook's `.th` for the codec."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..config import CheckpointError, CodecConfig, FineGPTConfig, GPTConfig
from ..files import naming, read_json, user_cache
from .hub import Source
from .names import codec_state, gpt_state
from .reading import SUNO_MD5, read_any
from .schema import from_fields, released_fields
from .shapes import checked
from .tensors import State

SUNO_NAMES = {"semantic": "text", "coarse": "coarse", "fine": "fine"}
_ENCODEC = "encodec_24khz-d7cc33bc.th"


def is_suno(source: Source) -> bool:
    """Whether it is a directory with Suno's files."""
    if source.is_random or not source.is_local or (source.path / "config.json").is_file():
        return False
    return any((source.path / name).is_file() for name in SUNO_MD5)


def suno_file(source: Source, stage: str) -> Path:
    """The file of a transformer, of the large one if both are there.

    Raises:
        FileNotFoundError: neither is there.
    """
    name = SUNO_NAMES[stage]
    for filename in (f"{name}_2.pt", f"{name}.pt"):
        if (source.path / filename).is_file():
            return source.path / filename
    raise FileNotFoundError(f"{source.path} has neither {name}_2.pt (large) nor {name}.pt (small)")


def find_encodec(source: Source) -> Path | None:
    """The codec's file or folder: beside the transformers, or where encodec itself keeps it."""
    found = sorted(source.path.glob("encodec_24khz*.th"))
    if found:
        return found[0]
    if (source.path / "encodec_24khz").is_dir():
        return source.path / "encodec_24khz"
    torch_home = os.environ.get("TORCH_HOME") or user_cache() / "torch"
    kept = Path(os.path.expanduser(torch_home), "hub", "checkpoints", _ENCODEC)
    return kept if kept.is_file() else None


def open_suno_file(
    path: Path, stage: str, cache_dir: str | os.PathLike[str] | None
) -> tuple[Any, State]:
    """One stage from Suno's `.pt`, a fine-tune's bare file beside its config.json, or a `.th`.

    Source: suno-ai/bark, bark/generation.py, _load_model.
    """
    state, metadata = read_any(path, cache_dir)
    if stage == "codec":
        codec = CodecConfig()
        return codec, codec_state(state, codec, os.fspath(path))
    beside = path.parent / "config.json"
    if "model_args" in metadata:
        args = json.loads(metadata["model_args"])
    elif beside.is_file():
        args = read_json(beside)
    else:
        raise CheckpointError(
            f"{path} has no model_args, and no config.json with them lies beside it: not one of "
            "Suno's text, coarse or fine"
        )
    return open_nanogpt(state, args, stage, path)


def is_nanogpt(args: object) -> bool:
    """Whether these are the arguments of one of Suno's transformers."""
    return isinstance(args, dict) and {"n_layer", "n_head", "n_embd"} <= set(args)


def open_nanogpt(state: State, args: Any, stage: str, path: Path) -> tuple[Any, State]:
    """A stage from tensors and arguments under Suno's names.

    Fine-tunes save what training wraps a model in: names that begin with `module.` or
    `_orig_mod.`, and a list of heads where there is one.
    """
    with naming(path):
        if not isinstance(args, dict):
            raise CheckpointError("its arguments are not an object")
        args = dict(args)
        if "vocab_size" in args:
            size = args["vocab_size"]
            args = {"input_vocab_size": size, "output_vocab_size": size} | args
        kind = FineGPTConfig if stage == "fine" else GPTConfig
        config = from_fields(kind, released_fields(stage, args), "model_args", partial=True)
    heads = {"lm_head": "lm_heads"} if stage == "fine" else {"lm_head.0": "lm_head"}
    named = {}
    for key, tensor in state.items():
        for wrapper in ("module.", "_orig_mod.", "model."):
            key = key.removeprefix(wrapper)
        for theirs, ours in heads.items():
            if key.startswith(f"{theirs}."):
                key = ours + key.removeprefix(theirs)
        named[key] = tensor
    return config, checked(stage, gpt_state(stage, named, os.fspath(path)), config, path)
