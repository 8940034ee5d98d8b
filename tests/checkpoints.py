"""Tiny random checkpoints in every released layout, written from independent models.

transformers' `BarkModel` and Suno's own classes hold the weights; what is loaded from the files is
compared with them. Two sets of sizes: `TINY`, where vocabularies and windows are small too, so that
a whole checkpoint has 200 KB, and the released vocabularies in two narrow layers, for layouts whose
constants cannot be changed.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import oracles
import torch
from torch import Tensor, nn

from minibark import fast
from minibark.checkpoint.opened import Checkpoint
from minibark.checkpoint.shapes import RandomStates
from minibark.config import BarkConfig, CodecConfig, FineGPTConfig, GenerationConfig, GPTConfig
from minibark.tokenizer import Tokenizer
from minibark.voice import Voice

NARROW = {"n_layer": 2, "n_head": 2, "n_embd": 32}
HF_NARROW = {"num_layers": 2, "num_heads": 2, "hidden_size": 32}
TINY = BarkConfig(
    semantic=GPTConfig(block_size=64, input_vocab_size=250, output_vocab_size=48, **NARROW),
    coarse=GPTConfig(block_size=64, input_vocab_size=80, output_vocab_size=80, bias=True, **NARROW),
    fine=FineGPTConfig(
        block_size=64, input_vocab_size=20, output_vocab_size=20, n_codes_total=4, **NARROW
    ),
    codec=CodecConfig(
        sampling_rate=300,
        codebook_size=16,
        n_codebooks=4,
        hidden_size=8,
        num_filters=4,
        upsampling_ratios=(2, 2),
    ),
    generation=GenerationConfig(
        semantic_vocab_size=40,
        semantic_pad_token=40,
        semantic_infer_token=249,
        text_encoding_offset=48,
        text_pad_token=245,
        max_input_semantic_length=8,
        max_new_tokens=16,
        codebook_size=16,
        coarse_semantic_pad_token=72,
        coarse_infer_token=74,
        max_coarse_input_length=16,
        max_coarse_history=20,
        sliding_window_len=8,
        n_fine_codebooks=4,
        max_fine_history_length=16,
        max_fine_input_length=32,
    ),
)
SUNO_FILES = {"semantic": "text", "coarse": "coarse", "fine": "fine"}
HF_PARTS = {
    "semantic": "semantic",
    "coarse": "coarse_acoustics",
    "fine": "fine_acoustics",
    "codec": "codec_model",
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give each tensor values of its own, wide enough that a wrong one changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.requires_grad_(False).state_dict().items():
        if not tensor.is_floating_point():
            continue
        if re.search(r"(layernorm|ln_).*weight", name):
            tensor.normal_(1.0, 0.3, generator=generator)
        elif name.endswith((".weight_g", ".original0")):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(".embed") or not re.search("codec|coder|quantizer", name):
            tensor.normal_(0.0, 0.3, generator=generator)
    return model.eval()


def hf_sections(config: BarkConfig) -> dict[str, dict]:
    """The sections of a Hugging Face `config.json`, by its argument names in transformers."""
    names = {"n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size"}
    sections = {}
    for stage in ("semantic", "coarse", "fine"):
        fields = vars(getattr(config, stage))
        section = {names.get(name, name): value for name, value in fields.items()}
        sections["semantic_config" if stage == "semantic" else f"{stage}_acoustics_config"] = (
            section
        )
    codec = {name: value for name, value in vars(config.codec).items() if name != "n_codebooks"}
    frame_rate_hz = config.codec.sampling_rate // config.codec.hop_length
    # one codebook more than Bark uses
    codec["target_bandwidths"] = [10 * frame_rate_hz * (config.codec.n_codebooks + 1) / 1000]
    return sections | {"codec_config": codec}


def build_transformers(config: BarkConfig, seed: int = 0) -> nn.Module:
    """A random `BarkModel` of transformers."""
    import transformers
    from transformers.models import bark

    sections = hf_sections(config)
    whole = transformers.BarkConfig(
        semantic_config=bark.BarkSemanticConfig(**sections["semantic_config"]),
        coarse_acoustics_config=bark.BarkCoarseConfig(**sections["coarse_acoustics_config"]),
        fine_acoustics_config=bark.BarkFineConfig(**sections["fine_acoustics_config"]),
        codec_config=transformers.EncodecConfig(**sections["codec_config"]),
    )
    torch.manual_seed(seed)
    return randomise(transformers.BarkModel(whole), seed)


@cache
def tiny_bark() -> nn.Module:
    """The `BarkModel` of `TINY`; tests share it and must not change it."""
    return build_transformers(TINY)


def hf_generation(config: GenerationConfig) -> dict:
    """What transformers writes as `generation_config.json`, as parsed JSON."""
    from transformers.models.bark import generation_configuration_bark as hf

    fields = dict(vars(config))
    eos = {"eos_token_id": fields.pop("semantic_pad_token")}
    whole = hf.BarkGenerationConfig(
        semantic_config={name: fields[name] for name in fields if name in SEMANTIC_NUMBERS} | eos,
        coarse_acoustics_config={n: fields[n] for n in fields if "coarse" in n or "sliding" in n},
        fine_acoustics_config={n: fields[n] for n in fields if "fine" in n},
        codebook_size=config.codebook_size,
    )
    return json.loads(json.dumps(whole.to_dict()))


SEMANTIC_NUMBERS = (
    "semantic_vocab_size semantic_rate_hz semantic_infer_token text_encoding_offset "
    "text_pad_token max_input_semantic_length max_new_tokens"
).split()


def save_hf(model: nn.Module, folder: Path, config: BarkConfig = TINY, **options: object) -> Path:
    """A checkpoint as transformers saves it: safetensors, in parts with `max_shard_size`."""
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").write_text(json.dumps(hf_generation(config.generation)))
    Tokenizer.characters().save(folder / "vocab.txt")
    return folder


def save_hf_bin(
    model: nn.Module,
    folder: Path,
    config: BarkConfig = TINY,
    *,
    weight_norm: str = "weight_g",
    masks: bool = True,
    heads: bool = True,
    parts: int = 1,
) -> Path:
    """A checkpoint with the `pytorch_model.bin` of 2023, made from what transformers saves.

    Args:
        model: whose weights.
        folder: where.
        config: the model's.
        weight_norm: `"weight_g"`, or `"parametrizations"` as of torch 2.
        masks: whether the attention masks, which are buffers, are among the tensors.
        heads: whether the fine model's heads, tied to its embeddings, are.
        parts: how many files; of more than one, an index says what is where.
    """
    save_hf(model, folder, config)
    (folder / "model.safetensors").unlink()
    state = {}
    for name, tensor in model.state_dict().items():
        if weight_norm == "weight_g":
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v")
        if (heads or ".lm_heads." not in name) and (masks or not name.endswith(".attn.bias")):
            state[name] = tensor
    assert any(weight_norm in name for name in state)
    assert heads == any(".lm_heads." in name for name in state)
    assert masks == any(name.endswith(".attn.bias") for name in state)
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        names = sorted(state)[part::parts]
        torch.save({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@cache
def suno_stage(stage: str, size: str = "small") -> nn.Module:
    """A random model of Suno's own class with the released vocabulary; `"large"` is wider."""
    oracles.import_suno()
    from bark import model, model_fine

    fields = {"block_size": 1024, "dropout": 0.0, **NARROW, "bias": size == "large"}
    if size == "large":
        fields |= {"n_layer": 3, "n_head": 4, "n_embd": 48}
    seed = len(stage) + len(size)
    if stage == "fine":
        fields |= {"input_vocab_size": 1056, "output_vocab_size": 1056}
        return randomise(model_fine.FineGPT(model_fine.FineGPTConfig(**fields)), seed)
    sizes = (129_600, 10_048) if stage == "semantic" else (12_096, 12_096)
    fields |= {"input_vocab_size": sizes[0], "output_vocab_size": sizes[1]}
    return randomise(model.GPT(model.GPTConfig(**fields)), seed)


def save_suno_stage(stage: str, folder: Path, size: str = "small") -> Path:
    """One of Suno's `.pt` files, with all that they hold beside the weights."""
    model = suno_stage(stage, size)
    args = dict(vars(model.config))
    if args["input_vocab_size"] == args["output_vocab_size"]:
        args["vocab_size"] = args.pop("input_vocab_size")
        del args["output_vocab_size"]
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    if stage != "fine":
        mask = torch.ones(1, 1, 1024, 1024).tril()
        state |= {f"_orig_mod.transformer.h.{i}.attn.bias": mask for i in range(args["n_layer"])}
    loss = np.float64(2.5) if stage == "coarse" else np.float32(2.5)
    content = {"model": state, "model_args": args, "best_val_loss": loss, "iter_num": 1000}
    path = folder / f"{SUNO_FILES[stage]}{'_2' if size == 'large' else ''}.pt"
    torch.save(content, path)
    return path


@cache
def narrow_encodec() -> nn.Module:
    """transformers' EnCodec for the released codes, with narrow layers."""
    import transformers

    torch.manual_seed(3)
    config = transformers.EncodecConfig(num_filters=4, hidden_size=32)
    return randomise(transformers.EncodecModel(config), 3)


def save_suno(folder: Path, size: str = "small") -> Path:
    """Suno's three files, with the codec as a Hugging Face directory inside."""
    folder.mkdir(exist_ok=True)
    for stage in SUNO_FILES:
        save_suno_stage(stage, folder, size)
    narrow_encodec().save_pretrained(folder / "encodec_24khz")
    Tokenizer.characters().save(folder / "vocab.txt")
    return folder


def random_voice(config: GenerationConfig, n_semantic: int = 20, seed: int = 0) -> Voice:
    """A voice that a model with this configuration can use."""
    random = torch.Generator().manual_seed(seed)
    n_frames = int(n_semantic * config.coarse_rate_hz / config.semantic_rate_hz)
    semantic = torch.randint(config.semantic_vocab_size, (n_semantic,), generator=random)
    shape = (config.n_fine_codebooks, n_frames)
    fine = torch.randint(config.codebook_size, shape, generator=random)
    return Voice(semantic, fine[: config.n_coarse_codebooks], fine)


def save_hf_voices(folder: Path, voices: dict[str, Voice]) -> Path:
    """A `speaker_embeddings_path.json` and its `.npy` files."""
    index: dict = {"repo_or_path": "suno/bark"}
    for name, voice in voices.items():
        index[name] = {}
        for part, array in voice.to_arrays().items():
            path = f"speaker_embeddings/{name}_{part}.npy"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / path, array)
            index[name][part] = path
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))
    return folder


def state_of(config: BarkConfig, stage: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a stage."""
    return RandomStates(config, seed)[stage]


def built(
    checkpoint: Checkpoint, stage: str, precision: str = "float32", device: str = "cpu"
) -> nn.Module:
    """A stage as it runs on a device, on the CPU still."""
    choice = fast.Choice(torch.device(device), precision, "torch")
    return fast.build(stage, checkpoint.config, checkpoint.states[stage], choice)


def assert_same_outputs(checkpoint: Checkpoint, models: dict[str, nn.Module]) -> None:
    """The checkpoint's stages give the logits, and the codec the audio, of these models.

    Args:
        checkpoint: as loaded.
        models: stage -> transformers' or Suno's model, or an EnCodec of transformers or facebook.
    """
    random = torch.Generator().manual_seed(7)
    for stage, model in models.items():
        ours = built(checkpoint, stage)
        with torch.inference_mode():
            if stage == "codec":
                config = checkpoint.config.codec
                shape = (1, config.n_codebooks, 9)
                codes = torch.randint(config.codebook_size, shape, generator=random)
                assert_close(ours(codes), decode(model, codes))
                continue
            config = getattr(checkpoint.config, stage)
            if stage == "fine":
                shape = (1, 11, config.n_codes_total)
                codes = torch.randint(config.input_vocab_size, shape, generator=random)
                for codebook in range(config.n_codes_given, config.n_codes_total):
                    assert_close(ours(codes, codebook), logits(model, codebook, codes))
            else:
                tokens = torch.randint(config.input_vocab_size, (1, 23), generator=random)
                theirs = logits(model, tokens)
                assert_close(ours(tokens)[:, -theirs.shape[1] :], theirs)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01  # far above the tolerance
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def logits(model: nn.Module, *inputs: object) -> Tensor:
    output = model(*inputs)
    if isinstance(output, Tensor):  # Suno's fine model
        return output
    return output[0] if isinstance(output, tuple) else output.logits


def decode(codec: nn.Module, codes: Tensor) -> Tensor:
    if hasattr(codec, "quantizer") and hasattr(codec.quantizer, "vq"):  # facebook's
        return codec.decode([(codes, None)])[:, 0]
    return codec.decode(codes[None], [None])[0][:, 0]


def hf_stages(model: nn.Module) -> dict[str, nn.Module]:
    return {stage: getattr(model, name) for stage, name in HF_PARTS.items()}


def run_python(code: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, args)],  # -P: not the package beside us
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
