"""Names: from those of each released layout to those of our modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..codec import CodecDecoder
from ..config import CheckpointError, CodecConfig
from ..files import naming, shown
from .shapes import NoDraws, some
from .tensors import State

HF_WORDS = {
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


def hf_state(stage: str, state: State, where: str) -> State:
    """A transformer's state from Hugging Face's names to ours."""
    renamed = {}
    for key, tensor in state.items():
        words = [HF_WORDS.get(word, word) for word in key.split(".")]
        is_head = words[0] in ("lm_head", "lm_heads")
        renamed[".".join(words if is_head else ["transformer", *words])] = tensor
    return gpt_state(stage, renamed, where)


def gpt_state(stage: str, state: State, where: str) -> State:
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


def codec_state(state: State, config: CodecConfig, where: str) -> State:
    """The codec's state in our names, checked, whichever of its two it came under."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() and not name.startswith("encoder."):
            raise CheckpointError(f"{where}: codec {shown(name)} holds {tensor.dtype}, not floats")
    with naming(where), NoDraws():
        return codec_state_dict(state, config)


# facebook's names on the left; on the right Hugging Face's, which this module's layers share
_RENAMES = (
    ("decoder.model.", "decoder.layers."),
    (".conv.conv.", ".conv."),
    (".convtr.convtr.", ".conv."),
    ("quantizer.vq.layers.", "quantizer.layers."),
    ("._codebook.", ".codebook."),
)

_NOT_NEEDED = re.compile(
    r"encoder\.|quantizer\.layers\.\d+\.codebook\.(embed|embed_avg|cluster_size|inited)$"
)

_WEIGHT_NORM_PAIRS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def codec_state_dict(state: Mapping[str, Tensor], config: CodecConfig) -> dict[str, Tensor]:
    """The state dict of `CodecDecoder(config)` in float32, to be loaded with strict=True.

    Args:
        state: an EnCodec under facebook's names (`decoder.model.0.conv.conv.weight_g`, ...) or
            Hugging Face's (`decoder.layers.0.conv.weight_g`, ...). The encoder, codebooks from
            n_codebooks on and what only training needs may be there and are left out.
        config: the shapes that the tensors must have.

    Raises:
        CheckpointError: if a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in CodecDecoder(config).state_dict().items()}
    n_codebooks, *row_shape = expected.pop("codebooks")
    books = [f"quantizer.layers.{k}.codebook.embed" for k in range(n_codebooks)]
    expected |= dict.fromkeys(books, torch.Size(row_shape))

    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in _RENAMES:
            key = key.replace(theirs, ours)
        if key in expected or not _NOT_NEEDED.match(key):
            found[key] = tensor
    found = fold_weight_norm(found)

    for problem, keys in (
        ("lacks", expected.keys() - found),
        ("cannot have", found.keys() - expected),
    ):
        if keys:
            raise CheckpointError(f"a codec of this shape {problem} {some(keys)}")
    for key, shape in expected.items():
        if found[key].shape != shape:
            got = tuple(found[key].shape)
            raise CheckpointError(f"the codec's {key} must have shape {tuple(shape)}, got {got}")
    codebooks = torch.stack([found.pop(book).float() for book in books])  # (K, codebook_size, D)
    return {"codebooks": codebooks, **{key: tensor.float() for key, tensor in found.items()}}


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with each weight-norm pair made into one float32 `.weight` = v * g / |v|.

    A pair is the length g and the direction v of every slice of dimension 0 (in transposed
    convolutions too): `.weight_g` and `.weight_v`, or `.parametrizations.weight.original0` and `1`.

    Raises:
        CheckpointError: if one half of a pair is missing or the two do not fit each other.

    Source: "Weight Normalization", arXiv 1602.07868, equation 2.
    """
    folded = dict(state)
    for ends in _WEIGHT_NORM_PAIRS:
        stems = {key.removesuffix(end) for key in state for end in ends if key.endswith(end)}
        for stem in sorted(stems):
            g, v = (folded.pop(stem + end, None) for end in ends)
            if g is None or v is None:
                raise CheckpointError(
                    f"weight norm of {shown(stem)} needs both {ends[0]} and {ends[1]}"
                )
            if v.ndim < 2 or g.shape != (len(v), *[1] * (v.ndim - 1)):
                shapes = f"g {tuple(g.shape)}, v {tuple(v.shape)}"
                raise CheckpointError(
                    f"weight norm of {shown(stem)} has shapes that do not fit: {shapes}"
                )
            norm = torch.linalg.vector_norm(v.float(), dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[f"{stem}.weight"] = v.float() * (g.float() / norm)
    return folded
