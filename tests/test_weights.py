"""Checkpoints: every layout against the model it was written from, and all that is refused."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import checkpoints as made
import numpy as np
import oracles
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minibark import Bark, BarkConfig, CheckpointError, Tokenizer, convert
from minibark.checkpoint.layouts import open_checkpoint
from minibark.checkpoint.opened import Checkpoint
from minibark.checkpoint.presets import preset
from minibark.checkpoint.rows import quantize_rows
from minibark.checkpoint.saving import save_checkpoint
from minibark.checkpoint.schema import config_from_dict
from minibark.checkpoint.shapes import empty_module
from minibark.checkpoint.tensors import read_pickle
from minibark.checkpoint.voices import Voices
from minibark.config import STAGES
from minibark.cpu import abilities as cpu
from minibark.cpu.int8 import Int8Linear
from minibark.cpu.tables import ReducedTable
from minibark.precision import PRECISIONS
from minibark.voice import Voice

MAPS = Path("/proc/self/maps")
ONE = torch.ones(1)

pytestmark = pytest.mark.filterwarnings("ignore:.* is not the file that Suno published")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The tiny Bark in Hugging Face's layout; tests must not change it."""
    return made.save_hf(made.tiny_bark(), tmp_path_factory.mktemp("hf") / "bark")


@pytest.fixture(scope="module")
def hf_bin(tmp_path_factory):
    """The tiny Bark with a `pytorch_model.bin`; tests must not change it."""
    return made.save_hf_bin(made.tiny_bark(), tmp_path_factory.mktemp("hf") / "bark")


@pytest.fixture(scope="module")
def suno(tmp_path_factory):
    """A small Bark in Suno's layout; tests must not change it."""
    return made.save_suno(tmp_path_factory.mktemp("suno") / "bark")


@pytest.fixture(scope="module")
def ours(hf, tmp_path_factory):
    """The tiny Bark in our layout; tests must not change it."""
    folder = tmp_path_factory.mktemp("ours") / "bark"
    convert(hf, folder)
    return folder


@pytest.fixture(scope="module")
def int8(hf, tmp_path_factory):
    """The tiny Bark in our layout with int8 matrices; tests must not change it."""
    folder = tmp_path_factory.mktemp("int8") / "bark"
    convert(hf, folder, precision="int8")
    return folder


def opened(folder, **options):
    return open_checkpoint(folder, offline=True, **options)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_json(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_tensors(path: Path, change) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def assert_same_states(one: Checkpoint, other: Checkpoint) -> None:
    for stage in STAGES:
        assert one.states[stage].keys() == other.states[stage].keys()
        for name, tensor in one.states[stage].items():
            assert tensor.dtype == other.states[stage][name].dtype
            assert torch.equal(tensor, other.states[stage][name]), name


# ---- every layout gives the outputs of the model that it was written from ----

HF_LAYOUTS = {
    "safetensors": lambda folder: made.save_hf(made.tiny_bark(), folder),
    "safetensors-parts": lambda folder: made.save_hf(
        made.tiny_bark(), folder, max_shard_size="40KB"
    ),
    "bin-2023": lambda folder: made.save_hf_bin(made.tiny_bark(), folder),
    "bin-torch-2": lambda folder: made.save_hf_bin(
        made.tiny_bark(), folder, weight_norm="parametrizations", masks=False, heads=False
    ),
    "bin-parts": lambda folder: made.save_hf_bin(made.tiny_bark(), folder, parts=3),
}


@pytest.mark.parametrize("layout", HF_LAYOUTS)
def test_hugging_face_layouts_give_transformers_outputs(layout, tmp_path, cache):
    folder = HF_LAYOUTS[layout](tmp_path / "bark")
    checkpoint = opened(folder, cache_dir=cache)
    assert checkpoint.config == made.TINY
    assert checkpoint.tokenizer.vocab == Tokenizer.characters().vocab
    made.assert_same_outputs(checkpoint, made.hf_stages(made.tiny_bark()))


def test_parts_are_really_several(tmp_path):
    folder = HF_LAYOUTS["safetensors-parts"](tmp_path / "bark")
    assert len(list(folder.glob("*.safetensors"))) > 5


def test_released_sizes_need_no_generation_config(tmp_path):
    config = preset("random")
    model = made.build_transformers(config)
    folder = made.save_hf(model, tmp_path / "bark", config)
    (folder / "generation_config.json").unlink()
    checkpoint = opened(folder)
    assert checkpoint.config == config
    made.assert_same_outputs(checkpoint, made.hf_stages(model))


@pytest.mark.parametrize("size", ["small", "large"])
def test_suno_layout_gives_sunos_outputs(size, tmp_path, cache):
    folder = made.save_suno(tmp_path / "bark", size)
    checkpoint = opened(folder, cache_dir=cache)
    assert checkpoint.config.semantic.bias == (size == "large")
    assert checkpoint.config.generation == BarkConfig().generation
    models = {stage: made.suno_stage(stage, size) for stage in made.SUNO_FILES}
    made.assert_same_outputs(checkpoint, models | {"codec": made.narrow_encodec()})


def test_suno_large_is_preferred_and_a_file_picks_the_small_one(suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    made.save_suno_stage("semantic", folder, "large")
    made.save_suno_stage("fine", folder, "large")
    both = opened(folder, cache_dir=cache)
    assert [getattr(both.config, stage).n_layer for stage in STAGES[:3]] == [3, 2, 3]
    picked = opened(folder, cache_dir=cache, stages={"semantic": folder / "text.pt"})
    assert [getattr(picked.config, stage).n_layer for stage in STAGES[:3]] == [2, 2, 3]
    models = {"semantic": made.suno_stage("semantic"), "fine": made.suno_stage("fine", "large")}
    made.assert_same_outputs(picked, models)


def test_facebooks_codec_file_gives_encodecs_audio(suno, tmp_path, cache):
    torch.manual_seed(4)
    with pytest.warns(FutureWarning, match="weight_norm"):
        encodec = oracles.import_encodec().EncodecModel.encodec_model_24khz(pretrained=False)
    made.randomise(encodec, 4)
    folder = copy_of(suno, tmp_path)
    torch.save(encodec.state_dict(), folder / "encodec_24khz-d7cc33bc.th")
    checkpoint = opened(folder, cache_dir=cache)
    assert checkpoint.config.codec == BarkConfig().codec
    made.assert_same_outputs(checkpoint, {"codec": encodec})
    alone = opened(suno, cache_dir=cache, stages={"codec": folder / "encodec_24khz-d7cc33bc.th"})
    made.assert_same_outputs(alone, {"codec": encodec})


def test_files_of_the_old_torch_format_are_read(suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    content = torch.load(folder / "fine.pt", weights_only=False)
    torch.save(content, folder / "fine.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(folder / "fine.pt")
    checkpoint = opened(folder, cache_dir=cache)
    made.assert_same_outputs(checkpoint, {"fine": made.suno_stage("fine")})


def test_a_directory_with_both_layouts_is_hugging_faces(hf, suno, tmp_path):
    folder = copy_of(hf, tmp_path)  # as a clone of suno/bark is
    for path in suno.glob("*.pt"):
        (folder / path.name).symlink_to(path)
    assert opened(folder).config == made.TINY


def test_bark_from_pretrained_decodes_as_transformers_does(hf):
    bark = Bark.from_pretrained(hf, device="cpu", precision="float32", offline=True)
    assert bark.config == made.TINY
    codes = torch.randint(16, (4, 9))
    theirs = made.decode(made.tiny_bark().codec_model, codes[None]).numpy()[0]
    np.testing.assert_allclose(bark.decode(codes), theirs, atol=1e-4, rtol=0)
    assert bark.generate_voice("Hi.", seed=0).fine.shape[0] == 4


# ---- stages from several places ----


def test_stages_from_elsewhere(hf, suno, tmp_path, cache):
    large = tmp_path / "large"
    large.mkdir()
    coarse_file = made.save_suno_stage("coarse", large, "large")
    mixed = opened(
        suno,
        cache_dir=cache,
        stages={"coarse": large, "codec": suno / "encodec_24khz", "fine": suno},
    )
    models = {
        "semantic": made.suno_stage("semantic"),
        "coarse": made.suno_stage("coarse", "large"),
        "fine": made.suno_stage("fine"),
        "codec": made.narrow_encodec(),
    }
    made.assert_same_outputs(mixed, models)
    by_file = opened(suno, cache_dir=cache, stages={"coarse": coarse_file})
    assert_same_states(mixed, by_file)


def test_a_stage_from_elsewhere_is_not_looked_for_at_home(suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    (folder / "coarse.pt").unlink()
    shutil.rmtree(folder / "encodec_24khz")
    stages = {"coarse": suno / "coarse.pt", "codec": suno}
    made.assert_same_outputs(
        opened(folder, cache_dir=cache, stages=stages), {"coarse": made.suno_stage("coarse")}
    )


def test_a_place_for_one_stage_needs_nothing_else(hf, ours, tmp_path):
    bare = copy_of(ours, tmp_path)
    (bare / "vocab.txt").unlink()
    other = made.build_transformers(made.TINY, seed=9)
    folder = made.save_hf(other, tmp_path / "other")
    (folder / "vocab.txt").unlink()
    mixed = opened(hf, stages={"semantic": bare, "coarse": folder, "codec": folder})
    expected = made.hf_stages(made.tiny_bark())
    expected |= {stage: made.hf_stages(other)[stage] for stage in ("coarse", "codec")}
    made.assert_same_outputs(mixed, expected)


def test_stages_that_do_not_fit_together_are_refused(hf, suno, cache):
    with pytest.raises(CheckpointError, match=r"fine\.pt.*does not hold together"):
        opened(hf, cache_dir=cache, stages={"fine": suno / "fine.pt"})
    with pytest.raises(ValueError, match="unknown stage 'text'"):
        opened(hf, stages={"text": suno})
    with pytest.raises(FileNotFoundError, match=r"neither coarse_2\.pt"):
        opened(suno, cache_dir=cache, stages={"coarse": suno / "encodec_24khz" / ".." / ".."})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        opened(hf, stages={"coarse": "./nowhere.pt"})


# ---- ours ----


@pytest.mark.parametrize("layout", ["hf", "hf_bin", "suno", "ours"])
def test_convert_keeps_everything(layout, request, tmp_path, cache):
    source = copy_of(request.getfixturevalue(layout), tmp_path)
    generation = (BarkConfig() if layout == "suno" else made.TINY).generation
    voices = {"narrator": made.random_voice(generation, 20)}
    voices |= {"v2/en_speaker_6": made.random_voice(generation, 33, seed=1)}
    if layout.startswith("hf"):
        made.save_hf_voices(source, voices)
    else:
        for name, voice in voices.items():
            path = source / ("" if layout == "suno" else "voices") / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voice.save(path)
    steps = []
    options = {"cache_dir": cache, "offline": True}
    convert(source, tmp_path / "out", on_step=lambda *step: steps.append(step), **options)

    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    expected = {"config.json", "model.safetensors", "vocab.txt"}
    assert files == expected | {f"voices/{name}.npz" for name in voices}
    before, after = opened(source, cache_dir=cache), opened(tmp_path / "out")
    assert after.config == before.config
    assert after.tokenizer.vocab == before.tokenizer.vocab
    assert_same_states(before, after)
    assert list(after.voices) == sorted(voices)
    for name, voice in voices.items():
        loaded = after.voices.load(name).check(after.config.generation)
        for part in ("semantic", "coarse", "fine"):
            assert torch.equal(getattr(loaded, part), getattr(voice, part))
    assert ("voices", 2, 2) in steps and steps[-1] == ("writing", 2, 2)


def test_convert_takes_the_named_voices_along(hf, tmp_path):
    source = copy_of(hf, tmp_path)
    voice = made.random_voice(made.TINY.generation)
    made.save_hf_voices(source, dict.fromkeys("abc", voice))
    convert(source, tmp_path / "out", voices=["b"])
    assert list(opened(tmp_path / "out").voices) == ["b"]


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_convert_narrows_all_but_the_codec(precision, hf, tmp_path):
    convert(hf, tmp_path / "out", precision=precision)
    before, after = opened(hf), opened(tmp_path / "out")
    for stage in STAGES:
        dtype = torch.float32 if stage == "codec" else getattr(torch, precision)
        for name, tensor in before.states[stage].items():
            narrowed = after.states[stage][name]
            assert narrowed.dtype == dtype
            assert torch.equal(narrowed, tensor.to(dtype))
    assert made.built(after, "codec", "float16", "cuda").codebooks.dtype == torch.float32
    assert (
        made.built(after, "fine", "float16", "cuda").transformer.wpe.weight.dtype == torch.float16
    )


def test_convert_refuses_what_does_not_fit_the_precision(hf, tmp_path):
    source = copy_of(hf, tmp_path)
    name = "coarse_acoustics.layers.1.mlp.in_proj.weight"
    change_tensors(source / "model.safetensors", lambda state: state[name][0].fill_(70_000.0))
    with pytest.raises(CheckpointError, match=r"coarse transformer\.h\.1\.mlp\.c_fc\.weight"):
        convert(source, tmp_path / "out", precision="float16")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", precision="bfloat16")


def test_convert_writes_nothing_over_anything(hf, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(hf, full)
    with pytest.raises(FileExistsError):
        convert(hf, full / "mine.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    convert(hf, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        convert(hf, tmp_path / "new", precision="int3")


def test_a_failing_convert_leaves_nothing_behind(hf, tmp_path):
    source = copy_of(hf, tmp_path)
    made.save_hf_voices(source, {"good": made.random_voice(made.TINY.generation)})
    np.save(source / "speaker_embeddings" / "good_fine_prompt.npy", np.zeros(3))
    with pytest.raises(ValueError, match="good_fine_prompt"):
        convert(source, tmp_path / "out", voices=["good"])
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_converted_files_are_what_the_readme_says(ours):
    with safe_open(ours / "model.safetensors", framework="pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == set(STAGES)
        assert file.metadata() == {"format": "pt"}
    document = json.loads((ours / "config.json").read_text())
    assert document["format"] == "minibark"
    assert config_from_dict(document["config"]) == made.TINY


# ---- ours, in int8 ----

MATRIX = "semantic.transformer.h.0.attn.c_attn.weight"


def test_int8_is_stored_for_matrices_only(hf, int8):
    before, after = opened(hf), opened(int8)
    with safe_open(int8 / "model.safetensors", framework="pt") as file:
        assert file.get_tensor(MATRIX).dtype == torch.int8
        assert file.get_tensor(f"{MATRIX}_scale").shape == (96,)
    n_matrices = 0
    for stage in STAGES:
        expected = dict(before.states[stage])
        for name, tensor in before.states[stage].items():
            if stage != "codec" and tensor.ndim == 2:
                expected[name], expected[f"{name}_scale"] = quantize_rows(tensor)
                n_matrices += 1
        assert after.states[stage].keys() == expected.keys()
        for name, tensor in expected.items():
            assert after.states[stage][name].dtype == tensor.dtype, name
            assert torch.equal(after.states[stage][name], tensor), name
        assert after.n_parameters(stage) == before.n_parameters(stage)
    assert n_matrices == 3 * (2 * 4) + 3 + 2 * 2 + 4  # linears, wpe, wte and lm_head, wtes


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_an_int8_checkpoint_opens_in_every_precision(precision, hf, int8):
    dtype = getattr(torch, precision)
    before, after = opened(hf), opened(int8)
    for stage in ("semantic", "coarse", "fine"):
        close = dict(made.built(before, stage).named_parameters())
        for name, parameter in made.built(after, stage, precision, "cuda").named_parameters():
            assert parameter.dtype == dtype
            step = close[name].abs().max() * (1 / 127 + torch.finfo(dtype).eps)
            assert (parameter.float() - close[name]).abs().max() <= step, name
    tokens = torch.arange(40)[None]
    stages = [made.built(checkpoint, "semantic") for checkpoint in (before, after)]
    theirs, ours = (stage(tokens) for stage in stages)
    assert (ours - theirs).pow(2).mean().sqrt() < 0.1 * theirs.std()


def test_an_int8_checkpoint_runs_in_int8_as_it_is(int8, monkeypatch):
    for name in ("has_int8_linear", "has_int8_many_rows"):  # packed ones cannot be seen
        monkeypatch.setattr(cpu, name, lambda: False)
    checkpoint = opened(int8)
    found = 0
    for stage in ("semantic", "coarse", "fine"):
        model = made.built(checkpoint, stage, "int8")
        stored = checkpoint.states[stage]
        for name, module in model.named_modules():
            if isinstance(module, (Int8Linear, ReducedTable)):
                assert torch.equal(module.weight, stored[f"{name}.weight"]), name
                assert torch.equal(module.scale, stored[f"{name}.weight_scale"]), name
                found += 1
        if stage != "fine":
            part = model.lm_head.make(slice(3, 7))
            assert torch.equal(part.weight, stored["lm_head.weight"][3:7])
            assert torch.equal(part.scale, stored["lm_head.weight_scale"][3:7])
    assert found == 3 * (2 * 4) + 2


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_reduced_stage_has_its_other_weights_in_float32_as_they_are(precision, hf):
    checkpoint = opened(hf)
    for stage in ("semantic", "coarse", "fine"):
        model, stored = made.built(checkpoint, stage, precision), checkpoint.states[stage]
        rest = dict(model.named_parameters())
        assert {"transformer.wpe.weight", "transformer.ln_f.weight"} <= rest.keys()
        for name, tensor in rest.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, stored[name].float()), name
    codec = made.built(checkpoint, "codec", precision).state_dict()
    assert {tensor.dtype for tensor in codec.values()} == {torch.float32}


def test_every_precision_of_an_int8_checkpoint_speaks(int8):
    voices = {}
    for precision in PRECISIONS:
        bark = Bark.from_pretrained(int8, device="cpu", precision=precision, offline=True)
        voices[precision] = bark.generate_voice("Hi.", seed=0)
        assert bark.decode(voices[precision].fine).dtype == np.float32
    assert {voice.fine.shape[0] for voice in voices.values()} == {4}


def test_int4_is_not_stored(hf, tmp_path):
    with pytest.raises(ValueError, match="int4 is made when a model is opened"):
        convert(hf, tmp_path / "out", precision="int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", [None, "int8"])
def test_converting_int8_again_keeps_it(precision, int8, tmp_path):
    convert(int8, tmp_path / "out", precision=precision)
    assert_same_states(opened(int8), opened(tmp_path / "out"))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_converting_int8_to_floats_multiplies_it_out(precision, int8, tmp_path):
    convert(int8, tmp_path / "out", precision=precision)
    before, after = opened(int8), opened(tmp_path / "out")
    dtype = getattr(torch, precision)
    for stage in ("semantic", "coarse", "fine"):
        expected = made.built(before, stage, precision, "cuda").state_dict()
        assert after.states[stage].keys() == expected.keys()
        for name, tensor in after.states[stage].items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected[name]), name
    if precision == "float32":
        convert(tmp_path / "out", tmp_path / "again", precision="int8")
        again = opened(tmp_path / "again")
        matrices = {name for name in before.states["fine"] if name.endswith("_scale")}
        for name in matrices | {name.removesuffix("_scale") for name in matrices}:
            assert torch.equal(again.states["fine"][name], before.states["fine"][name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_int8_of_what_is_no_number_is_refused(value, hf, tmp_path):
    source = copy_of(hf, tmp_path)
    name = "coarse_acoustics.layers.1.mlp.in_proj.weight"
    change_tensors(source / "model.safetensors", lambda state: state[name][3, 5].fill_(value))
    with pytest.raises(CheckpointError, match=r"coarse transformer\.h\.1\.mlp\.c_fc\.weight does"):
        convert(source, tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()


def test_a_codec_in_half_precision_is_run_in_float32(ours, tmp_path):
    folder = copy_of(ours, tmp_path)

    def halve(state):
        for name in state:
            if name.startswith("codec."):
                state[name] = state[name].half()

    change_tensors(folder / "model.safetensors", halve)
    checkpoint = opened(folder)
    assert {tensor.dtype for tensor in checkpoint.states["codec"].values()} == {torch.float16}
    state = made.built(checkpoint, "codec", "bfloat16", "cuda").state_dict()
    for name, tensor in opened(ours).states["codec"].items():
        assert torch.equal(state[name], tensor.half().float()), name
    codes = torch.arange(36).reshape(4, 9) % 16
    audio, whole = (Bark.from_pretrained(f, device="cpu").decode(codes) for f in (folder, ours))
    assert audio.dtype == np.float32
    assert 0 < np.abs(audio - whole).max() < 0.01 * np.abs(whole).max()


def wrong_scale(change):
    return lambda state: state.update({f"{MATRIX}_scale": change(state[f"{MATRIX}_scale"])})


def with_one(value):
    return wrong_scale(lambda scale: scale.index_fill(0, torch.tensor([5]), value))


def as_int8(*names):
    """Change that makes tensors int8, with scales, whether they may be or not."""

    def change(state):
        for name in names:
            rows = state[name].reshape(len(state[name]), -1)
            q, state[f"{name}_scale"] = quantize_rows(rows)
            state[name] = q.reshape(state[name].shape)

    return change


WRONG_INT8 = {
    "no scale": (lambda state: state.pop(f"{MATRIX}_scale"), r"lacks .*c_attn\.weight_scale"),
    "scale alone": (
        lambda state: state.update({MATRIX: state[MATRIX].float()}),
        r"has unknown .*c_attn\.weight_scale",
    ),
    "no matrix": (lambda state: state.pop(MATRIX), r"lacks .*c_attn\.weight and has unknown"),
    "half": (wrong_scale(torch.Tensor.half), r"c_attn\.weight_scale must hold finite float32"),
    "double": (wrong_scale(torch.Tensor.double), r"c_attn\.weight_scale must hold finite float32"),
    "whole": (wrong_scale(torch.Tensor.int), r"c_attn\.weight_scale holds torch\.int32"),
    "column": (wrong_scale(lambda scale: scale[:, None]), r"weight_scale has shape \(96, 1\)"),
    "short": (wrong_scale(lambda scale: scale[:95]), r"weight_scale has shape \(95,\)"),
    "zero": (with_one(0.0), "above 0"),
    "negative": (with_one(-1.0), "above 0"),
    "infinite": (with_one(float("inf")), "above 0"),
    "nan": (with_one(float("nan")), "above 0"),
    "wrong shape": (
        lambda state: state.update({MATRIX: state[MATRIX][:, :31].clone()}),
        r"c_attn\.weight has shape \(96, 31\)",
    ),
    "uint8": (
        lambda state: state.update({MATRIX: state[MATRIX].to(torch.uint8)}),
        r"has unknown .*c_attn\.weight_scale",
    ),
    "norm": (as_int8("semantic.transformer.h.0.ln_1.weight"), r"has unknown .*ln_1\.weight_scale"),
    "norm alone": (
        lambda state: state.update({"semantic.transformer.ln_f.weight": torch.ones(32).char()}),
        r"ln_f\.weight holds torch\.int8",
    ),
    "codec": (
        as_int8("codec.decoder.layers.1.lstm.weight_ih_l0"),
        "codec model has unknown .*lstm.weight_ih_l0_scale",
    ),
}


@pytest.mark.parametrize("name", WRONG_INT8)
def test_wrong_int8_is_refused(name, int8, tmp_path):
    change, text = WRONG_INT8[name]
    folder = copy_of(int8, tmp_path)
    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{text}"):
        opened(folder)


def test_int8_is_for_our_layout_only(hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    name = "semantic.layers.0.attn.att_proj.weight"
    change_tensors(folder / "model.safetensors", as_int8(name))
    with pytest.raises(CheckpointError, match=r"has unknown .*c_attn\.weight_scale"):
        opened(folder)
    change_tensors(folder / "model.safetensors", lambda state: state.pop(f"{name}_scale"))
    with pytest.raises(CheckpointError, match=r"c_attn\.weight holds torch\.int8, not floats"):
        opened(folder)


# ---- vocabulary ----


def test_tokenizer_json_stands_in_for_vocab_txt(hf, tmp_path):
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers.models import WordPiece

    folder = copy_of(hf, tmp_path)
    (folder / "vocab.txt").unlink()
    vocab = {piece: index for index, piece in enumerate(Tokenizer.characters().vocab)}
    theirs = HuggingFaceTokenizer(WordPiece(vocab, unk_token="[UNK]"))
    theirs.save(str(folder / "tokenizer.json"))
    assert opened(folder).tokenizer.vocab == Tokenizer.characters().vocab


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"vocab": ["a"]}}',
        '{"model": {"vocab": {"[UNK]": 0, "a": "1"}}}',
        '{"model": {"vocab": {"[UNK]": 0, "a": 2}}}',
        '{"model": {"vocab": {"[UNK]": 0, "a": true}}}',
        '{"model": {"vocab": {"a": 0}}}',
        "{",
    ],
)
def test_a_wrong_tokenizer_json_is_named(content, hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        opened(folder)


def test_a_vocabulary_that_is_not_there_or_too_large(hf, tmp_path, cache):
    folder = copy_of(hf, tmp_path)
    Tokenizer([*Tokenizer.characters().vocab, *(f"more{i}" for i in range(10))]).save(
        folder / "vocab.txt"
    )
    with pytest.raises(CheckpointError, match=r"203 tokens.*250 ids"):
        opened(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab\.txt.*bert-base-multilingual-cased"):
        opened(folder, cache_dir=cache)


# ---- files are read once, and mapped ----


def blank(path: Path) -> None:
    """Overwrite a file with zeros, keeping its size and time."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_pickle_is_read_once(hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    opened(folder, cache_dir=cache)
    (kept,) = cache.rglob("*.safetensors")
    blank(folder / "pytorch_model.bin")
    made.assert_same_outputs(opened(folder, cache_dir=cache), made.hf_stages(made.tiny_bark()))
    os.utime(folder / "pytorch_model.bin")  # now it is another file
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        opened(folder, cache_dir=cache)
    assert list(cache.rglob("*.*")) == [kept]


def test_sunos_arguments_are_kept_with_the_tensors(suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    before = opened(folder, cache_dir=cache)
    for path in folder.glob("*.pt"):
        blank(path)
    after = opened(folder, cache_dir=cache)
    assert after.config == before.config
    assert_same_states(before, after)


def test_a_damaged_copy_of_a_pickle_is_made_anew(hf_bin, cache):
    opened(hf_bin, cache_dir=cache)
    (kept,) = cache.rglob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:1000])
    made.assert_same_outputs(opened(hf_bin, cache_dir=cache), made.hf_stages(made.tiny_bark()))
    assert kept.stat().st_size > 1000


def test_a_pickle_is_read_without_a_place_for_its_copy(hf_bin, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match=r"pytorch_model\.bin"):
        checkpoint = opened(hf_bin, cache_dir=tmp_path / "file")
    made.assert_same_outputs(checkpoint, made.hf_stages(made.tiny_bark()))


def mapped_ranges(path: Path) -> list[range]:
    ranges = []
    for line in MAPS.read_text().splitlines():
        if line.endswith(str(path)):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            ranges.append(range(start, end))
    return ranges


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_parameters_share_the_file(ours):
    checkpoint = opened(ours)
    for stage in STAGES:
        module = made.built(checkpoint, stage, device="cuda")  # where nothing is laid out anew
        for name, parameter in module.named_parameters():
            ranges = mapped_ranges(ours.resolve() / "model.safetensors")
            assert any(parameter.data_ptr() in part for part in ranges), name


LOAD = """
import re, sys, torch
from pathlib import Path
from minibark.config import STAGES
from minibark import fast
from minibark.checkpoint.layouts import open_checkpoint
def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.zeros(1)
before = peak_bytes()
checkpoint = open_checkpoint(sys.argv[1], offline=True)
plain = fast.Choice(torch.device("cuda"), "float32", "torch")
modules = [fast.build(s, checkpoint.config, checkpoint.states[s], plain) for s in STAGES]
loaded = peak_bytes()
total = sum(float(p.sum()) for module in modules for p in module.parameters())
print(loaded - before, peak_bytes() - before, total)
"""


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_loading_neither_reads_nor_copies_the_tensors(tmp_path):
    config = preset("random")
    wide = {"n_embd": 128}
    config = BarkConfig(
        semantic=type(config.semantic)(**vars(config.semantic) | wide),
        coarse=type(config.coarse)(**vars(config.coarse) | wide),
        fine=type(config.fine)(**vars(config.fine) | wide),
        codec=config.codec,
    )
    shapes = {stage: empty_module(stage, getattr(config, stage)).state_dict() for stage in STAGES}
    states = {
        stage: {name: torch.ones(tensor.shape) for name, tensor in shapes[stage].items()}
        for stage in STAGES
    }
    checkpoint = Checkpoint("ones", config, states, Tokenizer.characters(), Voices({}, Path))
    save_checkpoint(checkpoint, tmp_path / "ones")
    size = (tmp_path / "ones" / "model.safetensors").stat().st_size
    assert size > 85e6
    done = made.run_python(LOAD, tmp_path / "ones", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    loaded, read, total = map(float, done.stdout.split())
    assert total == sum(tensor.numel() for state in states.values() for tensor in state.values())
    assert loaded < 0.3 * size
    assert 0.9 * size < read < 1.3 * size  # so the measure sees what is read


# ---- what is refused ----


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 1000, -1])
@pytest.mark.parametrize("layout", ["hf", "hf_bin", "ours"])
def test_truncated_weights_are_named(layout, n_bytes, request, tmp_path, cache):
    folder = copy_of(request.getfixturevalue(layout), tmp_path)
    (path,) = (*folder.glob("*.safetensors"), *folder.glob("*.bin"))
    cut(path, n_bytes)
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged"):
        opened(folder, cache_dir=cache)
    assert not cache.exists()


@pytest.mark.parametrize("n_bytes", [0, 10, 5000, -1])
def test_truncated_suno_files_are_named(n_bytes, suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    cut(folder / "coarse.pt", n_bytes)
    with pytest.raises(CheckpointError, match=r"coarse\.pt is damaged"):
        opened(folder, cache_dir=cache)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Not found</html>",
        (1 << 62).to_bytes(8, "little") + b"{}",
        header(b"{"),
        header(b"[1, 2]"),
        header(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}')
        + b"1234",
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}') + b"1234",
        header(b'{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}') + b"1234",
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"1234",
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}') + b"1234",
    ],
    ids=["html", "long", "cut", "list", "large", "backwards", "dtype", "negative", "beyond"],
)
def test_a_wrong_safetensors_header_is_named(content, hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        opened(folder)


def test_another_model_is_refused(hf, tmp_path):
    from transformers import BertConfig

    folder = copy_of(hf, tmp_path)
    BertConfig().save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"config\.json.*model_type 'bert'.*semantic_config"):
        opened(folder)


def test_another_encodec_is_refused(suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    path = folder / "encodec_24khz" / "config.json"
    for name, value in {"norm_type": "time_group_norm", "use_causal_conv": False}.items():
        change_json(path, lambda config, name=name, value=value: config.update({name: value}))
        with pytest.raises(CheckpointError, match=rf"config\.json.*{name}"):
            opened(folder, cache_dir=cache)
        (folder / "encodec_24khz" / "config.json").write_bytes(
            (suno / "encodec_24khz" / "config.json").read_bytes()
        )


TENSORS = {
    "hf": ("semantic.layers.0.layernorm_1.weight", r"transformer\.h\.0\.ln_1\.weight"),
    "ours": ("semantic.transformer.h.0.ln_1.weight", r"transformer\.h\.0\.ln_1\.weight"),
}
CHANGES = {
    "lacks {ours}": lambda state, name: state.pop(name),
    "unknown .*other": lambda state, name: state.update({f"{name}.other": torch.ones(1)}),
    "unknown tensors strange": lambda state, name: state.update({"strange": torch.ones(1)}),
    r"{ours} has shape \(31,\).*\(32,\)": lambda state, name: state.update({name: torch.ones(31)}),
    "{ours} holds torch.int64": lambda state, name: state.update(
        {name: torch.ones(32, dtype=torch.int64)}
    ),
}


@pytest.mark.parametrize("layout", TENSORS)
@pytest.mark.parametrize("text", CHANGES)
def test_tensors_must_be_the_models(text, layout, request, tmp_path):
    folder = copy_of(request.getfixturevalue(layout), tmp_path)
    theirs, ours = TENSORS[layout]
    change_tensors(folder / "model.safetensors", lambda state: CHANGES[text](state, theirs))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*" + text.format(ours=ours)):
        opened(folder)


def test_codec_tensors_must_be_the_codecs(hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    name = "codec_model.decoder.layers.0.conv.bias"
    for tensor, text in {
        torch.ones(3): "shape",
        torch.ones(16, dtype=torch.int32): "int32",
    }.items():
        change_tensors(
            folder / "model.safetensors", lambda state, tensor=tensor: state.update({name: tensor})
        )
        with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{text}"):
            opened(folder)


@pytest.mark.parametrize("change", [torch.Tensor.neg, torch.Tensor.half, lambda head: head[:5]])
def test_heads_of_the_fine_model_must_be_its_embeddings(change, hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    state = torch.load(folder / "pytorch_model.bin")
    name = "fine_acoustics.lm_heads.1.weight"
    state[name] = change(state[name].clone())
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lm_heads\.1\.weight differs from"):
        opened(folder, cache_dir=cache)


def test_heads_alone_are_the_embeddings(hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    state = torch.load(folder / "pytorch_model.bin")
    for codebook in range(1, 4):
        del state[f"fine_acoustics.input_embeds_layers.{codebook}.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    fine = made.tiny_bark().fine_acoustics
    made.assert_same_outputs(opened(folder, cache_dir=cache), {"fine": fine})


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Own:
    """A class of no use to a checkpoint."""


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_nothing_in_a_pickle_is_run(form, hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    path, marker = folder / "pytorch_model.bin", tmp_path / "marker"
    content = {"semantic.a": torch.ones(1), "b": Touch(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*refused") as caught:
        opened(folder, cache_dir=cache)
    assert "weights_only" not in str(caught.value)  # torch's advice to run it
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # so it would have run


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Own(), "refused.*Own"),
        (3, "dictionary of tensors"),
        (torch.ones(1).expand(10**13), "repeats"),
        (torch.eye(3).to_sparse(), "refused.*_rebuild_sparse_tensor"),
        (torch.ones(3, device="meta"), "refused.*_rebuild_meta_tensor_no_storage"),
        (torch.ones(3, dtype=torch.complex64), "refused.*ComplexFloatStorage"),
    ],
    ids=["class", "number", "expanded", "sparse", "meta", "complex"],
)
def test_a_pickle_holds_plain_tensors_only(value, text, hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    torch.save({"semantic.a": value}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin.*({text})"):
        opened(folder, cache_dir=cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        (b"J\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xffK\x3ft"),  # flags of the dtype
        (b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00O8"),  # a dtype of pointers
    ],
    ids=["flags", "pointers"],
)
def test_numpys_own_unpickling_is_not_used(whole, damaged, tmp_path):
    """Damaged arguments can crash it, and the only NumPy value in a checkpoint is of no use."""
    content = {"model": {"a": ONE}, "best_val_loss": np.float32(2.5)}
    torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    script = (tmp_path / "a.bin").read_bytes()
    assert script.count(whole) == 1
    (tmp_path / "a.bin").write_bytes(script.replace(whole, damaged))
    state, _ = read_pickle(tmp_path / "a.bin")
    assert state == {"a": ONE}


def test_a_pickle_that_is_compressed_is_refused(hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*compressed"):
        opened(folder, cache_dir=cache)


def test_tensors_that_share_memory_are_told_apart(hf_bin, tmp_path, cache):
    folder = copy_of(hf_bin, tmp_path)
    state = torch.load(folder / "pytorch_model.bin")
    names = [f"coarse_acoustics.layers.{i}.layernorm_{j}.weight" for i in (0, 1) for j in (1, 2)]
    buffer = torch.cat([state[name] for name in names])
    for i, name in enumerate(names):
        state[name] = buffer[32 * i : 32 * (i + 1)]
    whole = state["coarse_acoustics.layernorm_final.weight"]
    state["coarse_acoustics.layernorm_final.weight"] = whole
    state["coarse_acoustics.layernorm_final.bias"] = whole.flip(0)[:32].flip(0)
    torch.save(state, folder / "pytorch_model.bin")
    checkpoint = opened(folder, cache_dir=cache)
    for i, name in enumerate(names):
        ours = name.replace("coarse_acoustics.layers", "transformer.h").replace("layernorm", "ln")
        assert torch.equal(checkpoint.states["coarse"][ours], buffer[32 * i : 32 * (i + 1)])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"model": {"a": ONE}, "model_args": [1]}, "model_args is not a dictionary"),
        ({"model": {"a": ONE}}, "no model_args"),
        ({"model": {"a": ONE}, "model_args": {"n_layer": "2"}}, "n_layer must be int"),
        ({"model": {"a": ONE}, "model_args": {"n_layer": 10**12}}, "n_layer must be in"),
        ({"model": {"a": ONE}, "model_args": {"n_layer": 10**600}}, "n_layer must be in"),
        ({"model": {"a": ONE}, "model_args": {"vocab_size": None}}, "vocab_size must be int"),
        ({"model": {}, "model_args": {}}, "dictionary of tensors"),
        ({"model": [1], "model_args": {}}, "dictionary of tensors"),
        ([1, 2], "dictionary of tensors"),
    ],
)
def test_a_wrong_suno_file_is_named(content, text, suno, tmp_path, cache):
    folder = copy_of(suno, tmp_path)
    torch.save(content, folder / "coarse.pt")
    with pytest.raises(CheckpointError, match=rf"coarse\.pt.*{text}"):
        opened(folder, cache_dir=cache)


def test_a_file_that_is_not_sunos_release_is_read_with_a_warning(suno, tmp_path, cache):
    with pytest.warns(UserWarning, match=r"coarse\.pt is not the file that Suno published"):
        opened(copy_of(suno, tmp_path), cache_dir=cache)


# ---- indexes of parts ----


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda map_: map_.update(x="../../etc/passwd"), CheckpointError, "outside its folder"),
        (lambda map_: map_.update(x="/etc/passwd"), CheckpointError, "outside its folder"),
        (lambda map_: map_.update(x="a\\b"), CheckpointError, "outside its folder"),
        (lambda map_: map_.update(x=7), CheckpointError, "outside its folder"),
        (lambda map_: map_.update(x=["y"]), CheckpointError, "outside its folder"),
        (lambda map_: map_.update(x="gone.safetensors"), FileNotFoundError, r"gone\.safetensors"),
        (lambda map_: map_.update(x="config.json"), CheckpointError, r"config\.json is damaged"),
        (lambda map_: map_.update(x=next(iter(map_.values()))), CheckpointError, "no part has: x"),
        (lambda map_: map_.clear(), CheckpointError, "lacks"),
    ],
    ids="up root backslash number list missing json unlisted empty".split(),
)
def test_an_index_of_parts_is_checked(change, error, text, tmp_path, cache):
    folder = HF_LAYOUTS["safetensors-parts"](tmp_path / "bark")
    change_json(folder / "model.safetensors.index.json", lambda index: change(index["weight_map"]))
    with pytest.raises(error, match=text):
        opened(folder, cache_dir=cache)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, "\xff"])
def test_an_index_that_is_none_is_named(content, tmp_path):
    folder = HF_LAYOUTS["safetensors-parts"](tmp_path / "bark")
    (folder / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        opened(folder)


# ---- configurations ----

NUMBERS = [0, -1, 10**12, 10**400, 1.5, float("nan"), float("inf"), "12", None, True, [[[]]], {}]
FIELDS = [
    ("semantic_config", "num_layers"),
    ("semantic_config", "hidden_size"),
    ("coarse_acoustics_config", "block_size"),
    ("fine_acoustics_config", "n_codes_total"),
    ("codec_config", "num_filters"),
    ("codec_config", "num_lstm_layers"),
    ("codec_config", "upsampling_ratios"),
]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: f"{value!r:.10}")
def test_absurd_numbers_in_a_hugging_face_config(value, hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    whole = (folder / "config.json").read_bytes()
    for section, field in FIELDS:
        (folder / "config.json").write_bytes(whole)
        change_json(
            folder / "config.json", lambda config, s=section, f=field: config[s].update({f: value})
        )
        with pytest.raises(CheckpointError, match=r"config\.json"):
            opened(folder)


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: f"{value!r:.10}")
def test_absurd_numbers_in_our_config(value, ours, tmp_path):
    folder = copy_of(ours, tmp_path)
    whole = json.loads((folder / "config.json").read_text())
    for section, fields in whole["config"].items():
        for field in fields:
            if (value is True and field == "bias") or (value == 1.5 and field.endswith("_hz")):
                continue  # that is a good value
            change = {**fields, field: value}
            document = whole | {"config": whole["config"] | {section: change}}
            (folder / "config.json").write_text(json.dumps(document))
            with pytest.raises(CheckpointError, match=r"config\.json|model\.safetensors"):
                opened(folder)


@pytest.mark.parametrize("field", ["num_layers", "hidden_size", "input_vocab_size"])
def test_the_most_that_a_config_may_ask_for_takes_no_time_or_memory(field, hf, tmp_path):
    folder = copy_of(hf, tmp_path)
    most = {"num_layers": 256, "hidden_size": 100_000, "input_vocab_size": 10_000_000}[field]
    change_json(
        folder / "config.json", lambda config: config["semantic_config"].update({field: most})
    )
    with pytest.raises(CheckpointError, match=r"lacks|has shape"):
        opened(folder)


@pytest.mark.parametrize("field", ["sections", "version", "list", "junk", "unknown field"])
def test_our_config_must_be_ours(field, ours, tmp_path):
    folder = copy_of(ours, tmp_path)

    def change(document):
        if field == "sections":
            del document["config"]["fine"]
        elif field == "version":
            document["version"] = 2
        elif field == "list":
            document["config"] = [1]
        elif field == "junk":
            document["config"]["codec"] = "x"
        else:
            document["config"]["fine"]["n_experts"] = 8

    change_json(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        opened(folder)


def test_places_that_are_no_checkpoint(hf, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty.*no config\.json"):
        opened(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"config\.json is a file"):
        opened(hf / "config.json")
    folder = copy_of(hf, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model"):
        opened(folder)
    for name in ("./nowhere", "../no/where", "nowhere", "a\0b", "~nobody/here", "x" * 5000):
        with pytest.raises(FileNotFoundError, match=r"no model|not in the local cache"):
            opened(name, cache_dir=cache)


def test_voices_of_a_directory_take_the_place_of_the_checkpoints(hf, tmp_path):
    made.random_voice(made.TINY.generation).save(tmp_path / "me.npz")
    checkpoint = opened(hf, voices_dir=tmp_path)
    assert list(checkpoint.voices) == ["me"]
    assert isinstance(checkpoint.voices.load("me"), Voice)
    with pytest.raises(FileNotFoundError, match=r"no \.npz voices"):
        opened(hf, voices_dir=hf)


# ---- places as users have them


def test_a_path_object_is_a_path_and_a_string_may_be_a_name(hf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hf, tmp_path / "tiny")
    assert open_checkpoint(Path("tiny")).config == made.TINY == open_checkpoint("./tiny").config
    assert open_checkpoint("tiny").config != made.TINY
    with pytest.raises(FileNotFoundError, match="random"):
        open_checkpoint(Path("random"), offline=True)


def test_a_local_model_stays_where_it_was_when_it_was_opened(hf, ours, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    voice = made.random_voice(made.TINY.generation)
    for name, source in (("hf", hf), ("ours", ours)):
        folder = tmp_path / name
        shutil.copytree(source, folder)
        made.save_hf_voices(folder, {"a": voice})
        (folder / "voices").mkdir(exist_ok=True)
        voice.save(folder / "voices" / "b.npz")
        monkeypatch.chdir(tmp_path)
        bark = Bark.from_pretrained(name, device="cpu", voices_dir=f"{name}/voices")
        by_index = Bark.from_pretrained(name, device="cpu")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert bark.load_voice("b") is not None
        assert by_index.load_voice("a") is not None
        bark.save(f"copy-of-{name}")
        assert (tmp_path / "elsewhere" / f"copy-of-{name}" / "config.json").is_file()


def test_the_home_folder_is_meant_by_a_tilde(hf, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    convert(hf, "~/out", cache_dir="~/cache")
    assert open_checkpoint("~/out").config == made.TINY
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]


def test_a_byte_order_mark_is_no_damage(hf, tmp_path):
    folder = tmp_path / "bom"
    shutil.copytree(hf, folder)
    for name in ("config.json", "generation_config.json", "vocab.txt"):
        path = folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    checkpoint = opened(folder)
    assert checkpoint.config == opened(hf).config
    assert checkpoint.tokenizer.vocab == opened(hf).tokenizer.vocab


@pytest.mark.parametrize("damage", [b"[1]", b"{", b'{"a": 5}'])
def test_a_bad_index_of_voices_costs_the_voices_and_not_the_weights(hf, tmp_path, damage):
    folder = tmp_path / "bad"
    shutil.copytree(hf, folder)
    (folder / "speaker_embeddings_path.json").write_bytes(damage)
    with pytest.warns(UserWarning, match="opened without its voices: .*speaker_embeddings_path"):
        checkpoint = opened(folder)
    assert not len(checkpoint.voices)
    made.assert_same_outputs(checkpoint, made.hf_stages(made.tiny_bark()))
