"""Checkpoints: find, download, read safely, rename, convert.

Three layouts are read: ours (`config.json` with `"format": "minibark"`), Hugging Face's
(`suno/bark`, `suno/bark-small`) and Suno's (`text.pt`, `coarse.pt`, `fine.pt`, or the large
`text_2.pt` ... beside them). Whatever the layout, every stage becomes one state dict in the names
of `minibark.model` and `minibark.codec`, checked against the shapes that its configuration implies.
Pickles are read once, without running anything in them, and kept as safetensors from then on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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
)
from .files import inside, read_json, replacing
from .model import GPT, FineGPT
from .sampling import OnStep
from .tokenizer import Tokenizer
from .voice import Voices

PRECISIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
KNOWN_MODELS = ("suno/bark-small", "suno/bark")
CODEC_REPO = "facebook/encodec_24khz"
VOCAB_REPO = "google-bert/bert-base-multilingual-cased"

State = dict[str, Tensor]


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
        states: stage -> parameter name -> tensor, in the names of our modules.
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
        with torch.device("meta"):
            module = new_module(stage, self.config)
        dtype = torch.float32 if stage == "codec" else dtype
        state = {name: tensor.to(dtype) for name, tensor in self.states[stage].items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)


def new_module(stage: str, config: BarkConfig) -> nn.Module:
    """The untrained module of a stage."""
    if stage == "codec":
        return CodecDecoder(config.codec)
    return FineGPT(config.fine) if stage == "fine" else GPT(getattr(config, stage))


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint's files come from: a directory or a hub repository."""

    name: str
    cache_dir: Path | None
    revision: str | None
    offline: bool

    @property
    def is_local(self) -> bool:
        return Path(self.name).expanduser().is_dir()

    def find(self, filename: str) -> Path | None:
        """The local path of one file, downloaded if need be; None if the source has no such file.

        Raises:
            FileNotFoundError: no such repository or directory, or no network.
        """
        if self.is_local:
            path = Path(self.name).expanduser() / filename
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            return Path(
                hf_hub_download(
                    self.name,
                    filename,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=self.offline,
                )
            )
        except LocalEntryNotFoundError as error:
            if self.offline and self._is_cached():
                return None
            raise FileNotFoundError(
                f"{filename} of {self.name!r} is not in the local cache and the hub cannot be "
                f"reached. Fetch it on a machine with network ('minibark convert {self.name} DIR') "
                "and give its directory as the model"
            ) from error
        except EntryNotFoundError:
            return None
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            gated = isinstance(error, GatedRepoError)
            raise FileNotFoundError(
                f"access to {self.name!r} on the hub is restricted: log in with 'hf auth login'"
                if gated
                else f"no model {self.name!r}: neither a directory here nor a repository on the hub"
                + (f" at revision {self.revision!r}" if self.revision else "")
                + f". Known models: {', '.join(KNOWN_MODELS)}"
            ) from error
        except OSError as error:
            raise FileNotFoundError(
                f"{filename} of {self.name!r} could not be fetched: {error}"
            ) from error

    def need(self, filename: str) -> Path:
        """As `find`, for a file that must be there."""
        path = self.find(filename)
        if path is None:
            raise FileNotFoundError(f"{self.name} has no {filename}; the checkpoint is incomplete")
        return path

    def _is_cached(self) -> bool:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.name, "config.json", cache_dir=self.cache_dir, revision=self.revision
        )
        return isinstance(found, str)


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
        name: hub repository or directory.
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
    cache = None if cache_dir is None else Path(cache_dir)
    source = _Source(os.fspath(name), cache, revision, offline)
    elsewhere = stages or {}
    config, states = _open_states(source, [stage for stage in STAGES if stage not in elsewhere])
    for stage, place in elsewhere.items():
        other = dataclasses.replace(source, name=os.fspath(place), revision=None)
        part, states[stage] = _open_stage(other, stage, config)
        config = dataclasses.replace(config, **{stage: part})
    for stage in STAGES:
        _check_state(stage, states[stage], config, source.name)
    tokenizer = _open_tokenizer(source)
    voices = _voices_in(voices_dir) if voices_dir else _open_voices(source)
    if len(tokenizer) + config.generation.text_encoding_offset > config.semantic.input_vocab_size:
        raise CheckpointError(
            f"{source.name}: the vocabulary has {len(tokenizer)} tokens, the text model "
            f"{config.semantic.input_vocab_size} ids, text_encoding_offset included"
        )
    return Checkpoint(source.name, config, states, tokenizer, voices)


def _open_states(source: _Source, wanted: Collection[str]) -> tuple[BarkConfig, dict[str, State]]:
    """Configuration and states of the wanted stages of one source, whatever its layout."""
    path = Path(source.name).expanduser()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; a model is the directory it lies in, or a hub repository"
        )
    if _is_suno(source):
        opened = {stage: _open_suno_stage(source, stage) for stage in wanted}
        config = BarkConfig(**{stage: part for stage, (part, _) in opened.items()})
        return config, {stage: state for stage, (_, state) in opened.items()}
    config, is_ours = _open_config(source)
    if not is_ours:
        flat = _read_hf(source)
        return config, {
            stage: _hf_state(stage, _strip(flat, _HF_PREFIXES[stage]), config.codec, source.name)
            for stage in wanted
        }
    flat = read_safetensors(source.need("model.safetensors"))[0]
    extra = [key for key in flat if key.partition(".")[0] not in STAGES]
    if extra:
        raise CheckpointError(f"{source.name}: unknown tensors {_some(extra)}")
    return config, {stage: _strip(flat, f"{stage}.") for stage in wanted}


def _is_suno(source: _Source) -> bool:
    path = Path(source.name).expanduser()
    return source.is_local and any((path / name).is_file() for name in _SUNO_MD5)


def _open_config(source: _Source) -> tuple[BarkConfig, bool]:
    """The configuration of a directory or repository in our layout (True) or Hugging Face's."""
    document = read_json(source.need("config.json"))
    if isinstance(document, dict) and document.get("format") == "minibark":
        return BarkConfig.from_dict(document.get("config")), True
    generation = source.find("generation_config.json")
    return BarkConfig.from_hf(document, generation and read_json(generation)), False


def _open_voices(source: _Source) -> Voices:
    index = source.find("speaker_embeddings_path.json")
    if index is not None:
        return Voices.from_index(index, source.need)
    path = Path(source.name).expanduser()
    return Voices.from_directory(path if _is_suno(source) else path / "voices")


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
    cache = None if cache_dir is None else Path(cache_dir)
    source = _Source(os.fspath(name), cache, revision, offline)
    generation = GenerationConfig() if _is_suno(source) else _open_config(source)[0].generation
    return _voices_in(voices_dir) if voices_dir else _open_voices(source), generation


def _voices_in(folder: str | os.PathLike[str]) -> Voices:
    voices = Voices.from_directory(folder)
    if not len(voices):
        raise FileNotFoundError(f"no .npz voices under {os.fspath(folder)}")
    return voices


def _open_stage(source: _Source, stage: str, base: BarkConfig) -> tuple[Any, State]:
    """Configuration and state of one stage, from any layout."""
    path = Path(source.name).expanduser()
    if path.is_file():
        return _open_suno_file(path, stage, source.cache_dir)
    if source.is_local and not (path / "config.json").is_file():
        return _open_suno_stage(source, stage)
    config_json = read_json(source.need("config.json"))
    if stage == "codec" and isinstance(config_json, dict) and "num_filters" in config_json:
        codec = from_fields(CodecConfig, config_json, "config.json", partial=True)
        codec = dataclasses.replace(codec, n_codebooks=base.generation.n_fine_codebooks)
        return codec, _hf_state(stage, _read_hf(source), codec, source.name)
    config, states = _open_states(source, [stage])
    return getattr(config, stage), states[stage]


def _open_suno_stage(source: _Source, stage: str) -> tuple[Any, State]:
    path = Path(source.name).expanduser()
    if stage == "codec":
        found = sorted(path.glob("encodec_24khz*.th"))
        if found:
            return _open_suno_file(found[0], stage, source.cache_dir)
        inner = path / "encodec_24khz"
        place = os.fspath(inner) if inner.is_dir() else CODEC_REPO
        return _open_stage(dataclasses.replace(source, name=place), stage, BarkConfig())
    name = _SUNO_NAMES[stage]
    for filename in (f"{name}_2.pt", f"{name}.pt"):
        if (path / filename).is_file():
            return _open_suno_file(path / filename, stage, source.cache_dir)
    raise FileNotFoundError(f"{path} has neither {name}_2.pt (large) nor {name}.pt (small)")


def _open_suno_file(
    path: Path, stage: str, cache_dir: str | os.PathLike[str] | None
) -> tuple[Any, State]:
    """One stage from Suno's `.pt`, or the codec from facebook's `.th`.

    Source: suno-ai/bark, bark/generation.py, _load_model.
    """
    state, metadata = read_safetensors(_as_safetensors(path, cache_dir))
    if stage == "codec":
        return CodecConfig(), _named(path, lambda: codec_state_dict(state, CodecConfig()))
    if "model_args" not in metadata:
        raise CheckpointError(f"{path} has no model_args: not one of Suno's text, coarse or fine")
    args = dict(json.loads(metadata["model_args"]))
    if "vocab_size" in args:
        vocab_size = args.pop("vocab_size")
        args.setdefault("input_vocab_size", vocab_size)
        args.setdefault("output_vocab_size", vocab_size)
    kind = FineGPTConfig if stage == "fine" else GPTConfig
    config = from_fields(kind, {"bias": True} | args, f"{path} model_args", partial=True)
    state = {key.removeprefix("_orig_mod."): tensor for key, tensor in state.items()}
    return config, _gpt_state(stage, state, os.fspath(path))


def _read_hf(source: _Source) -> State:
    """All tensors of a Hugging Face checkpoint, under their own names."""
    for filename, is_index in (
        ("model.safetensors", False),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", False),
        ("pytorch_model.bin.index.json", True),
    ):
        path = source.find(filename)
        if path is None:
            continue
        if not is_index:
            return _read_any(path, source.cache_dir)
        index = read_json(path)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{path} has no weight_map")
        shards = sorted({inside(name, os.fspath(path)) for name in weight_map.values()})
        state: State = {}
        for shard in shards:
            state |= _read_any(source.need(shard), source.cache_dir)
        missing = set(weight_map) - set(state)
        if missing:
            raise CheckpointError(f"{path} lists tensors that no shard has: {_some(missing)}")
        return state
    raise FileNotFoundError(
        f"{source.name} has neither model.safetensors nor pytorch_model.bin (nor an index of parts)"
    )


def _read_any(path: Path, cache_dir: str | os.PathLike[str] | None) -> State:
    mapped = path if path.suffix == ".safetensors" else _as_safetensors(path, cache_dir)
    return read_safetensors(mapped)[0]


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a file, memory-mapped, and its metadata.

    Raises:
        CheckpointError: truncated, damaged or not safetensors; the text names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from error


def _as_safetensors(path: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """A safetensors copy of a pickle checkpoint, made once and kept in the cache."""
    base = Path(cache_dir or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    real, stat = path.resolve(), path.stat()
    key = hashlib.sha256(f"{real}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = base / "minibark" / f"{path.stem}-{key}.safetensors"
    if not copy.is_file():
        state, metadata = read_pickle(path)
        log.info("keeping %s as %s", path, copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as part:
            save_file(state, part, metadata)
    return copy


def read_pickle(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a `torch.save` file, and its `model_args` (as JSON) if it has any.

    Nothing in the file is executed: only tensors and plain values are allowed.

    Raises:
        CheckpointError: truncated, damaged, or asking for any other class.
    """
    expected = _SUNO_MD5.get(path.name)
    if expected is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            warnings.warn(
                f"{path.name} is not the file that Suno published in 2023 (md5 {found}, expected "
                f"{expected}); it is read all the same",
                stacklevel=2,
            )
    # `best_val_loss` in Suno's files is a NumPy scalar.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *dtypes,
    ]
    try:
        # Parsers of hostile bytes raise nearly anything.
        with torch.serialization.safe_globals(allowed):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if "Unsupported" in reason or "GLOBAL" in reason:
            reason = "it asks for a class that a checkpoint has no use for, which is refused: " + (
                reason.partition("Unsupported ")[2] or reason
            )
        raise CheckpointError(f"{path} cannot be read: {reason[:300]}") from error
    metadata = {}
    if isinstance(content, dict) and "model" in content:
        args = content.get("model_args", {})
        if not isinstance(args, dict):
            raise CheckpointError(f"{path}: model_args is not a dictionary")
        metadata["model_args"] = json.dumps({str(k): v for k, v in args.items()}, default=str)
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    state: State = {}
    seen: set[int] = set()
    for name, tensor in content.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        state[str(name)] = tensor.clone() if shared else tensor.contiguous()
    return state, metadata


def _hf_state(stage: str, state: State, codec: CodecConfig, where: str) -> State:
    if stage == "codec":
        return _named(where, lambda: codec_state_dict(state, codec))
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
    for key in [key for key in kept if key.startswith("lm_heads.")]:
        index = key.split(".")[1]
        head, table = (
            kept.pop(key),
            f"transformer.wtes.{int(index) + 1 if index.isdigit() else 0}.weight",
        )
        if not torch.equal(head, kept.setdefault(table, head)):
            raise CheckpointError(
                f"{where}: {key} differs from {table}; in Bark's fine model they are one table"
            )
    return kept


def _check_state(stage: str, state: State, config: BarkConfig, where: str) -> None:
    with torch.device("meta"):
        expected = new_module(stage, config).state_dict()
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
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where}: {stage} {name} holds {tensor.dtype}, not floats")


def _open_tokenizer(source: _Source) -> Tokenizer:
    vocab = source.find("vocab.txt")
    if vocab is None and (packed := source.find("tokenizer.json")) is not None:
        content = read_json(packed)
        ids = content.get("model", {}).get("vocab") if isinstance(content, dict) else None
        if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
            raise CheckpointError(f"{packed} has no WordPiece vocabulary")
        return Tokenizer(sorted(ids, key=ids.__getitem__))
    if vocab is None:
        try:
            vocab = dataclasses.replace(source, name=VOCAB_REPO, revision=None).need("vocab.txt")
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
        source: hub repository or directory.
        destination: directory to make; it must not exist, or be empty.
        precision: `"float32"`, `"float16"` or `"bfloat16"`, for all stages but the codec; None
            keeps each tensor's.
        voices: names of the voices to take along; None takes all.
        on_step: told of progress.
        **options: as for `open_checkpoint`.

    Raises:
        FileExistsError: the destination has files in it.
        CheckpointError: the source is damaged, or its values do not fit the precision.
    """
    target = Path(destination)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not empty; choose another or delete it first"
        )
    dtype = None if precision is None else parse_precision(precision)
    checkpoint = open_checkpoint(source, **options)
    names = list(checkpoint.voices) if voices is None else list(voices)
    states = {stage: _narrow(stage, state, dtype) for stage, state in checkpoint.states.items()}
    if target.is_dir():
        target.rmdir()
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
        directory: where; it must not exist.
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
        save_file(flat, part / "model.safetensors", {"format": "pt"})
        document = {"format": "minibark", "version": 1, "config": checkpoint.config.to_dict()}
        (part / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        checkpoint.tokenizer.save(part / "vocab.txt")
        for done, name in enumerate(voices, start=1):
            path = part / "voices" / f"{inside(name, 'the voice index')}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.voices.load(name).save(path)
            if on_step:
                on_step("voices", done, len(voices))


def _narrow(stage: str, state: State, dtype: torch.dtype | None) -> State:
    if dtype is None or stage == "codec":
        return state
    narrowed = {name: tensor.to(dtype) for name, tensor in state.items()}
    for name, tensor in narrowed.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{stage} {name} does not fit {dtype}; use bfloat16 or float32")
    return narrowed


def parse_precision(name: str) -> torch.dtype:
    """The dtype of a precision name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _named(where: object, read: Callable[[], State]) -> State:
    try:
        return read()
    except ValueError as error:
        raise CheckpointError(f"{where}: codec: {error}") from error


def _strip(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" * (len(ordered) > 5))
