"""Random HuBERTs of transformers, in the layouts that they are found in."""

import json
from functools import cache
from pathlib import Path

import torch
from torch import nn

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
}


@cache
def small_hubert() -> nn.Module:
    """A narrow `HubertModel` with one layer more than is needed; tests must not change it."""
    return random_hubert(**SMALL)


def random_hubert(seed: int = 0, **fields: object) -> nn.Module:
    """A `HubertModel` in which each tensor has values of its own."""
    import transformers

    model = transformers.HubertModel(transformers.HubertConfig(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.requires_grad_(False).state_dict().items():
        if "layer_norm" in name:
            tensor.normal_(float(name.endswith("weight")), 0.2, generator=generator)
        elif name.endswith("original0"):
            tensor.uniform_(0.5, 1.0, generator=generator)
        else:
            spread = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            tensor.normal_(0.0, spread, generator=generator)
    return model


def save_hubert(
    folder: Path, model: nn.Module | None = None, *, kind: str = "safetensors", old: bool = False
) -> Path:
    """A HuBERT in a folder.

    Args:
        folder: where.
        model: by default the small one.
        kind: `"safetensors"`, or `"bin"`: the pickle of `torch.save`.
        old: whether weight norm has its names of before torch 2, behind `hubert.`.
    """
    from safetensors.torch import save_file

    model = model or small_hubert()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    state = dict(model.state_dict())
    if old:
        names = {"original0": "weight_g", "original1": "weight_v"}
        state = {
            "hubert." + name.replace("parametrizations.weight.", "").replace(*pair): tensor
            for name, tensor in state.items()
            for pair in [next((p for p in names.items() if p[0] in name), ("", ""))]
        }
        assert "hubert.encoder.pos_conv_embed.conv.weight_g" in state
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder
