"""Checkpoints: recognise their layout, rename, check, convert.

Three layouts are read: ours (`config.json` with `"format": "minibark"`), Hugging Face's
(`suno/bark`, `suno/bark-small`) and Suno's (`text.pt`, `coarse.pt`, `fine.pt`, or the large
`text_2.pt` ... beside them). Whatever the layout, every stage becomes one state dict in the names
of `minibark.model` and `minibark.codec`, checked against the shapes that its configuration implies.
Pickles are read once, without running anything in them, and kept as safetensors from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .codec import CodecDecoder, codec_state_dict
from .config import (
    STAGES,
    BarkConfig,
    CheckpointError,
    CodecConfig,
    FineGPTConfig,
    GenerationConfig,
    GPTConfig,
    from_fields,
    released_fields,
)
from .cpu import give_memory_back
from .files import (
    State,
    inside,
    naming,
    read_json,
    read_pickle,
    read_safetensors,
    replacing,
    save_safetensors,
)
from .hub import Source
from .int8 import dequantize_rows, quantize_rows
from .model import GPT, FineGPT
from .precision import FLOATS, SCALE, parse_precision, reduce
from .sampling import OnStep
from .tokenizer import Tokenizer
from .voice import Voices

CODEC_REPO = "facebook/encodec_24khz"
VOCAB_REPO = "google-bert/bert-base-multilingual-cased"

_HF_PREFIXES = {"semantic": "semantic.", "coarse": "coarse_acoustics."}
_HF_PREFIXES |= {"fine": "fine_acoustics.", "codec": "codec_model."}
_HF_WORDS = {
    "layers": "h",
    "layernorm_final": "ln_f",
    "input_embeds_layers": "wtes",
    "input_embeds_layer": "wte",
    "position_embeds_layer": "wpe",
    "layernorm_1": "ln_1",
    "layernorm_2": "ln_2",
    "att_proj": "c_attn",
    "in_proj": "c_fc",
    "out_proj": "c_proj",
}
_SUNO_NAMES = {"semantic": "text", "coarse": "coarse", "fine": "fine"}
# Facts of suno-ai/bark as of 2023, from its published checkpoints.
_SUNO_MD5 = {
    "text.pt": "b3e42bcbab23b688355cd44128c4cdd3",
    "coarse.pt": "5fe964825e3b0321f9d5f3857b89194d",
    "fine.pt": "5428d1befe05be2ba32195496e58dc90",
    "text_2.pt": "54afa89d65e318d4f5f80e8e8799026a",
    "coarse_2.pt": "8a98094e5e3a255a5c9c0ab7efe8fd28",
    "fine_2.pt": "59d184ed44e3650774a2f0503a48a97b",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found and checked; tensors are memory-mapped where possible.

    Attributes:
        name: what it was opened as.
        config: shapes and constants.
        states: stage -> parameter name -> tensor, in the names of our modules; a transformer's
            matrix NAME may be int8, with NAME_scale beside it.
        tokenizer: its vocabulary.
        voices: its voices.
    """

    name: str
    config: BarkConfig
    states: Mapping[str, State]
    tokenizer: Tokenizer
    voices: Voices

    def build(self, stage: str, dtype: torch.dtype) -> nn.Module:
        """One stage as a module on the CPU, in evaluation mode; the codec is always float32."""
        module = _shape_of(stage, getattr(self.config, stage))
        module.load_state_dict(self.parameters(stage, dtype), strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def build_reduced(
        self, stage: str, precision: str, device: torch.device | None = None
    ) -> nn.Module:
        """One stage in a precision other than float32, as `minibark.precision` has it on a device.

        A matrix is read and converted after the other: no float32 copy of all is made.
        """
        if stage == "codec":
            codec = self.build(stage, torch.float32)
            # Nothing is left in the mapped file, so that it can go.
            own = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
            codec.load_state_dict(own, strict=True, assign=True)
            return codec.requires_grad_(False)
        module = _shape_of(stage, getattr(self.config, stage))
        assert isinstance(module, (GPT, FineGPT))
        reduce(module, self.states[stage], precision, device)
        give_memory_back()
        return module.eval().requires_grad_(False)

    def parameters(self, stage: str, dtype: torch.dtype) -> State:
        """One stage's state dict in a floating-point dtype; the codec's is always float32."""
        return _floats(self.states[stage], torch.float32 if stage == "codec" else dtype)

    def n_parameters(self, stage: str) -> int:
        """How many numbers a stage has, scales of int8 rows not counted."""
        state = self.states[stage]
        return sum(tensor.numel() for name, tensor in state.items() if not name.endswith(SCALE))


def new_module(stage: str, config: BarkConfig) -> nn.Module:
    """The untrained module of a stage."""
    return _module(stage, getattr(config, stage))


def _module(stage: str, part: Any) -> nn.Module:
    if stage == "codec":
        return CodecDecoder(part)
    return FineGPT(part) if stage == "fine" else GPT(part)


class _NoDraws(TorchFunctionMode):
    """Leaves out the random values of new modules.

    On the meta device torch makes them in Python, for which it imports 900 modules in a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def _shape_of(stage: str, part: Any) -> nn.Module:
    """The module of a stage on the meta device: shapes without values."""
    with torch.device("meta"), _NoDraws():
        return _module(stage, part)


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
        name: hub repository, directory or `"tiny"` (`minibark.hub.BUILT_IN`).
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
    source = Source(os.fspath(name), cache_dir, revision, offline).pinned()
    others = stages or {}
    config, states = _open_states(source, [stage for stage in STAGES if stage not in others])
    for stage, place in others.items():
        part, states[stage] = _open_stage(source.elsewhere(place).pinned(), stage, config)
        with naming(f"{source.name} with the {stage} model of {os.fspath(place)}"):
            config = dataclasses.replace(config, **{stage: part})
    tokenizer, voices = _open_tokenizer(source), _open_voices(source, voices_dir)
    if len(tokenizer) + config.generation.text_encoding_offset > config.semantic.input_vocab_size:
        raise CheckpointError(
            f"{source.name}: the vocabulary has {len(tokenizer)} tokens, the text model "
            f"{config.semantic.input_vocab_size} ids, text_encoding_offset included"
        )
    return Checkpoint(source.name, config, states, tokenizer, voices)


def _open_states(source: Source, wanted: Collection[str]) -> tuple[BarkConfig, dict[str, State]]:
    """Configuration and states of the wanted stages of one source, whatever its layout."""
    if os.path.isfile(source.path):
        raise CheckpointError(
            f"{source.path} is a file; a model is the directory it lies in, or a hub repository"
        )
    if _is_suno(source):
        opened = {stage: _open_suno_stage(source, stage) for stage in wanted}
        with naming(source.path):
            config = BarkConfig(**{stage: part for stage, (part, _) in opened.items()})
        return config, {stage: state for stage, (_, state) in opened.items()}
    config, is_ours = _open_config(source)
    if is_ours:
        path = source.need("model.safetensors")
        flat, prefixes = read_safetensors(path)[0], {stage: f"{stage}." for stage in STAGES}
    else:
        path, flat = _read_hf(source)
        prefixes = _HF_PREFIXES
    extra = [key for key in flat if not key.startswith(tuple(prefixes.values()))]
    if extra:
        raise CheckpointError(f"{path}: unknown tensors {_some(extra)}")
    states = {}
    for stage in wanted:
        state = _strip(flat, prefixes[stage])
        if not is_ours:
            state = _hf_state(stage, state, config.codec, os.fspath(path))
        may_be_int8 = is_ours and stage != "codec"
        states[stage] = _checked(stage, state, getattr(config, stage), path, may_be_int8)
    return config, states


def _is_suno(source: Source) -> bool:
    if not source.is_local or (source.path / "config.json").is_file():
        return False
    return any((source.path / name).is_file() for name in _SUNO_MD5)


def _open_config(source: Source) -> tuple[BarkConfig, bool]:
    """The configuration of a directory or repository in our layout (True) or Hugging Face's."""
    path = source.need("config.json")
    document = read_json(path)
    if isinstance(document, dict) and document.get("format") == "minibark":
        with naming(path):
            if document.get("version") != 1:
                raise CheckpointError("written by a newer minibark; update this one")
            return BarkConfig.from_dict(document.get("config")), True
    generation = source.find("generation_config.json")
    constants = generation and read_json(generation)
    with naming(path):
        return BarkConfig.from_hf(document, constants), False


def _open_voices(source: Source, voices_dir: str | os.PathLike[str] | None) -> Voices:
    if voices_dir is not None:
        voices = Voices.from_directory(voices_dir)
        if not len(voices):
            raise FileNotFoundError(f"no .npz voices under {os.fspath(voices_dir)}")
        return voices
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
    source = Source(os.fspath(name), cache_dir, revision, offline).pinned()
    generation = GenerationConfig() if _is_suno(source) else _open_config(source)[0].generation
    return _open_voices(source, voices_dir), generation


def _open_stage(source: Source, stage: str, base: BarkConfig) -> tuple[Any, State]:
    """Configuration and state of one stage, from any layout."""
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
        path, flat = _read_hf(source)
        state = _codec_state(flat, codec, os.fspath(path))
        return codec, _checked(stage, state, codec, path)
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
    state, metadata = _read_any(path, cache_dir)
    if stage == "codec":
        config: Any = CodecConfig()
        state = _codec_state(state, config, os.fspath(path))
    elif "model_args" not in metadata:
        raise CheckpointError(f"{path} has no model_args: not one of Suno's text, coarse or fine")
    else:
        kind = FineGPTConfig if stage == "fine" else GPTConfig
        with naming(path):
            args = dict(json.loads(metadata["model_args"]))
            if "vocab_size" in args:
                size = args["vocab_size"]
                args = {"input_vocab_size": size, "output_vocab_size": size} | args
            config = from_fields(kind, released_fields(stage, args), "model_args", partial=True)
        state = {key.removeprefix("_orig_mod."): tensor for key, tensor in state.items()}
        state = _gpt_state(stage, state, os.fspath(path))
    return config, _checked(stage, state, config, path)


def _read_hf(source: Source) -> tuple[Path, State]:
    """All tensors of a Hugging Face checkpoint under their own names, and the file that has them.

    Of a checkpoint in parts, the file is the index.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path := source.find(name)) is not None:
            return path, _read_any(path, source.cache_dir)[0]
        if (path := source.find(f"{name}.index.json")) is not None:
            return path, _read_parts(path, source)
    raise FileNotFoundError(
        f"{source.name} has neither model.safetensors nor pytorch_model.bin (nor an index of parts)"
    )


def _read_parts(index: Path, source: Source) -> State:
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map")
    state: State = {}
    for part in sorted({inside(name, os.fspath(index)) for name in weight_map.values()}):
        state |= _read_any(source.need(part), source.cache_dir)[0]
    missing = set(weight_map) - set(state)
    if missing:
        raise CheckpointError(f"{index} lists tensors that no part has: {_some(missing)}")
    return state


def _read_any(path: Path, cache_dir: str | os.PathLike[str] | None) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a safetensors or pickle file, of the latter through the cache."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    base = Path(cache_dir or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    real, stat = path.resolve(), path.stat()
    key = hashlib.sha256(f"{real}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = base / "minibark" / f"{path.stem}-{key}.safetensors"
    with contextlib.suppress(CheckpointError):  # a damaged copy is made anew
        if copy.is_file():
            return read_safetensors(copy)
    _warn_unless_published(path)
    state, metadata = read_pickle(path)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as part:
            save_safetensors(state, part, metadata)
    except OSError as error:
        warnings.warn(f"no faster copy of {path} can be kept: {error}", stacklevel=2)
        return state, metadata
    log.info("keeping %s as %s", path, copy)
    return read_safetensors(copy)


def _warn_unless_published(path: Path) -> None:
    expected = _SUNO_MD5.get(path.name)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        warnings.warn(
            f"{path.name} is not the file that Suno published in 2023 (md5 {found}, expected "
            f"{expected}); it is read all the same",
            stacklevel=2,
        )


def _hf_state(stage: str, state: State, codec: CodecConfig, where: str) -> State:
    if stage == "codec":
        return _codec_state(state, codec, where)
    renamed = {}
    for key, tensor in state.items():
        words = [_HF_WORDS.get(word, word) for word in key.split(".")]
        is_head = words[0] in ("lm_head", "lm_heads")
        renamed[".".join(words if is_head else ["transformer", *words])] = tensor
    return _gpt_state(stage, renamed, where)


def _gpt_state(stage: str, state: State, where: str) -> State:
    """A state in our names, without causal masks and without the fine model's tied heads."""
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(".attn.bias")}
    if stage != "fine":
        return kept
    for key in [key for key in kept if re.fullmatch(r"lm_heads\.[0-9]{1,2}\.weight", key)]:
        table = f"transformer.wtes.{int(key.split('.')[1]) + 1}.weight"
        head = kept.pop(key)
        tied = kept.setdefault(table, head)
        if head.dtype != tied.dtype or not torch.equal(head, tied):
            raise CheckpointError(
                f"{where}: {key} differs from {table}; in Bark's fine model they are one table"
            )
    return kept


def _codec_state(state: State, config: CodecConfig, where: str) -> State:
    for name, tensor in state.items():
        if not tensor.is_floating_point() and not name.startswith("encoder."):
            raise CheckpointError(f"{where}: codec {name} holds {tensor.dtype}, not floats")
    with naming(where), _NoDraws():
        return codec_state_dict(state, config)


def _checked(stage: str, state: State, part: Any, where: Path, may_be_int8: bool = False) -> State:
    """The state, if it is one of the stage with this configuration, int8 matrices with scales."""
    expected = dict(_shape_of(stage, part).state_dict())
    int8 = [
        name
        for name, tensor in expected.items()
        if may_be_int8 and tensor.ndim == 2 and name in state and state[name].dtype == torch.int8
    ]
    expected |= {f"{name}{SCALE}": expected[name][:, 0] for name in int8}
    missing, extra = set(expected) - set(state), set(state) - set(expected)
    if missing or extra:
        texts = [f"lacks {_some(missing)}"] * bool(missing) + [
            f"has unknown {_some(extra)}"
        ] * bool(extra)
        raise CheckpointError(f"{where}: the {stage} model {' and '.join(texts)}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {stage} {name} has shape {tuple(tensor.shape)}, its configuration asks "
                f"for {tuple(expected[name].shape)}"
            )
        if not tensor.is_floating_point() and name not in int8:
            raise CheckpointError(f"{where}: {stage} {name} holds {tensor.dtype}, not floats")
    for name in int8:
        scale = state[f"{name}{SCALE}"]
        if scale.dtype != torch.float32 or not bool(((scale > 0) & scale.isfinite()).all()):
            raise CheckpointError(
                f"{where}: {stage} {name}{SCALE} must hold finite float32 numbers above 0"
            )
    return state


def _open_tokenizer(source: Source) -> Tokenizer:
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


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    precision: str | None = None,
    voices: Iterable[str] | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> None:
    """Write a checkpoint of any layout as one directory in ours.

    Args:
        source: hub repository, directory or `"tiny"`.
        destination: directory to make; it must not exist, or be empty.
        precision: `"float32"`, `"float16"`, `"bfloat16"` or, for matrices only, `"int8"`, of all
            stages but the codec; None keeps each tensor's.
        voices: names of the voices to take along; None takes all.
        on_step: told of progress.
        **options: as for `open_checkpoint`.

    Raises:
        FileExistsError: the destination has files in it.
        CheckpointError: the source is damaged, or its values do not fit the precision.
        ValueError: a precision that is not stored.
    """
    target = Path(destination)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not empty; choose another or delete it first"
        )
    if precision is not None and parse_precision(precision) == "int4":
        raise ValueError(
            "int4 is made when a model is opened, not stored; convert to int8, or keep the "
            "checkpoint as it is, and open it with precision 'int4'"
        )
    checkpoint = open_checkpoint(source, **options)
    names = list(checkpoint.voices) if voices is None else list(voices)
    states = {stage: _narrow(stage, state, precision) for stage, state in checkpoint.states.items()}
    save_checkpoint(dataclasses.replace(checkpoint, states=states), target, names, on_step)


def save_checkpoint(
    checkpoint: Checkpoint,
    directory: str | os.PathLike[str],
    voices: Sequence[str] = (),
    on_step: OnStep | None = None,
) -> None:
    """Write a checkpoint as a directory in our layout, whole or not at all.

    Args:
        checkpoint: what to write.
        directory: where; it must not exist, or be empty.
        voices: names of the voices to take along.
        on_step: told of progress.
    """
    with replacing(directory) as part:
        part.mkdir()
        flat = {
            f"{stage}.{name}": tensor.contiguous()
            for stage, state in checkpoint.states.items()
            for name, tensor in state.items()
        }
        save_safetensors(flat, part / "model.safetensors", {"format": "pt"})
        document = {"format": "minibark", "version": 1, "config": checkpoint.config.to_dict()}
        (part / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        checkpoint.tokenizer.save(part / "vocab.txt")
        for done, name in enumerate(voices, start=1):
            path = part / "voices" / f"{inside(name, 'the voice index')}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.voices.load(name).save(path)
            if on_step:
                on_step("voices", done, len(voices))


def _narrow(stage: str, state: State, precision: str | None) -> State:
    if precision is None or stage == "codec":
        return state
    narrowed = _int8(state) if precision == "int8" else _floats(state, FLOATS[precision])
    for name, tensor in narrowed.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            name = name.removesuffix(SCALE)
            raise CheckpointError(
                f"{stage} {name} does not fit {precision}; use bfloat16 or float32"
            )
    return narrowed


def _floats(state: State, dtype: torch.dtype) -> State:
    """A state without int8."""
    floats = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.int8:
            tensor = dequantize_rows(tensor, state[f"{name}{SCALE}"])
        if not name.endswith(SCALE):
            floats[name] = tensor.to(dtype)
    return floats


def _int8(state: State) -> State:
    """A state whose matrices are all int8, with scales beside them."""
    quantized = {}
    for name, tensor in state.items():
        quantized[name] = tensor
        if tensor.ndim == 2 and tensor.dtype != torch.int8:
            quantized[name], quantized[f"{name}{SCALE}"] = quantize_rows(tensor)
    return quantized


def _strip(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" * (len(ordered) > 5))
