"""Finding and reading a HuBERT: its configuration, and tensors that stay mapped."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

import torch

from ..checkpoint.hub import BUILT_IN, RANDOM, Source
from ..checkpoint.reading import read_hf
from ..checkpoint.schema import from_fields
from ..checkpoint.shapes import NoDraws, some
from ..checkpoint.tensors import State
from ..config import CheckpointError
from ..files import naming, read_json, reason, shown
from .hubert import Hubert, HubertConfig

HUBERT = "facebook/hubert-base-ls960"

# How a HuBERT can be built, and the only way that `hubert.py` knows: the base model's. The large
# one's layers normalise in front of each sum, and all its convolutions.
_BASE = {
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "conv_bias": False,
    "conv_pos_batch_norm": False,
    "feat_proj_layer_norm": True,
}
_CONV = "encoder.pos_conv_embed.conv."
_PAIRS = (
    (_CONV + "weight_g", _CONV + "weight_v"),
    (_CONV + "parametrizations.weight.original0", _CONV + "parametrizations.weight.original1"),
)


def open_hubert(
    name: str | os.PathLike[str] = HUBERT,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Hubert:
    """The convolutions and first six layers of a HuBERT of base's architecture, in float32.

    Args:
        name: hub repository, or directory in Hugging Face's layout (`config.json`, and
            `model.safetensors` or `pytorch_model.bin`, also in parts).
        cache_dir: the hub's cache and ours; None is the usual place of each.
        revision: branch, tag or commit on the hub.
        offline: never ask the hub, use what is cached.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        CheckpointError: damaged, or another architecture; the text says which part of it.
    """
    if name in (BUILT_IN, RANDOM):
        raise CheckpointError(f"{name!r} is a Bark, not a HuBERT; the classifier needs {HUBERT}")
    is_path = not isinstance(name, str) or not name or re.search(r"^[./~]|[/\\]$", name)
    if is_path and not os.path.exists(os.path.expanduser(name)):
        raise FileNotFoundError(
            f"no HuBERT {shown(name) or repr(name)}: no such folder; a HuBERT is a folder with "
            f"config.json and weights, or a repository on the hub such as {HUBERT}"
        )
    source = Source.of(name, cache_dir, revision, offline)
    if os.path.isfile(source.path):
        raise CheckpointError(f"{shown(source.path)} is a file; a HuBERT is the folder it lies in")
    if source.is_local:
        return _read(source)
    try:
        return _read(source.pinned())
    except FileNotFoundError as error:
        why = source.unreachable or ("it was not asked" if offline else reason(error))
        if type(error.__cause__).__name__ in ("RepositoryNotFoundError", "HFValidationError"):
            why = "no such repository"  # the error's own text names models of Bark
        raise FileNotFoundError(
            f"no HuBERT {shown(name)}: no such folder, not all in the local cache, and not from "
            f"the hub ({why}). On a machine with network: 'hf download {HUBERT} config.json "
            "pytorch_model.bin --local-dir DIR'; then DIR is the HuBERT"
        ) from error


def _read(source: Source) -> Hubert:
    config_path = source.need("config.json")
    document = read_json(config_path)
    with naming(config_path):
        config = _config(document)
    path, flat = read_hf(source)
    with naming(path):
        with torch.device("meta"), NoDraws():
            hubert = Hubert(config)
        hubert.load_state_dict(_state(flat, hubert.state_dict()), assign=True)
    return hubert.requires_grad_(False).eval()


def _config(document: Any) -> HubertConfig:
    kind = document.get("model_type") if isinstance(document, dict) else None
    if kind != "hubert":
        raise CheckpointError(f"expected model_type 'hubert', got {shown(repr(kind))}")
    for field, value in _BASE.items():
        if document.get(field, value) != value:
            raise CheckpointError(
                f"only a HuBERT whose {field} is {value!r} can be used, as {HUBERT}; this one's is "
                f"{shown(repr(document[field]))}"
            )
    return from_fields(HubertConfig, document, "HuBERT", partial=True)


def _state(flat: State, expected: State) -> State:
    """The tensors that are expected, under their own names, in float32."""
    found = {name.removeprefix("hubert."): tensor for name, tensor in flat.items()}
    for ends in _PAIRS:
        g, v = (found.pop(end, None) for end in ends)
        if g is None and v is None:
            continue
        if g is None or v is None or v.ndim != 3 or g.shape != (1, 1, v.shape[2]):
            raise CheckpointError(f"weight norm of {_CONV}weight needs g (1, 1, K) and v (*, *, K)")
        length = torch.linalg.vector_norm(v.float(), dim=(0, 1), keepdim=True)
        found[_CONV + "weight"] = v.float() * (g.float() / length)
    if missing := expected.keys() - found:
        raise CheckpointError(f"the HuBERT lacks {some(missing)}")
    for name, empty in expected.items():
        if found[name].shape != empty.shape or not found[name].is_floating_point():
            got = f"{tuple(found[name].shape)} {found[name].dtype}"
            raise CheckpointError(f"{name} must be {tuple(empty.shape)} floats, got {got}")
    return {name: found[name].float() for name in expected}


def fingerprint(hubert: Hubert) -> str:
    """SHA-256, in hex, of all that decides a HuBERT's features. It reads all weights once."""
    total = hashlib.sha256(repr(hubert.config).encode())
    for name, tensor in sorted(hubert.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().numpy().data)
    return total.hexdigest()
