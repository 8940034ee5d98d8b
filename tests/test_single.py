"""One stage from elsewhere: a fine-tune, what transformers saved, a file of facebook's."""

import json
import shutil

import checkpoints as made
import pytest
import torch
from safetensors.torch import load_file

from minibark import Bark
from minibark.checkpoint.layouts import open_checkpoint
from minibark.commands.main import main
from minibark.config import CheckpointError

ARGS = (
    "block_size",
    "bias",
    "input_vocab_size",
    "output_vocab_size",
    "n_layer",
    "n_head",
    "n_embd",
)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return made.save_hf(made.tiny_bark(), tmp_path_factory.mktemp("hf") / "bark")


@pytest.fixture(scope="module")
def suno(tmp_path_factory):
    return made.save_suno(tmp_path_factory.mktemp("suno") / "bark")


def fine_tune(stage, folder, rename=lambda key: key, wrap=lambda args: args):
    """A folder as the popular notebooks save it; returns the state of the file it is made of."""
    folder.mkdir()
    model = made.suno_stage(stage, "large" if stage == "semantic" else "small")
    args = {name: getattr(model.config, name) for name in ARGS}
    args |= {"dropout": 0.0} | ({"n_codes_total": 8, "n_codes_given": 1} if stage == "fine" else {})
    state = {rename(key): tensor for key, tensor in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(wrap(args)))
    return folder


RENAMES = {
    "bare": lambda key: key,
    "list of heads": lambda key: key.replace("lm_head.weight", "lm_head.0.weight"),
    "fine's heads": lambda key: key.replace("lm_heads.", "lm_head."),
    "wrapped": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
}


@pytest.mark.parametrize(
    ("stage", "rename"),
    [
        ("semantic", "list of heads"),
        ("coarse", "wrapped"),
        ("coarse", "compiled"),
        ("fine", "fine's heads"),
        ("fine", "bare"),
    ],
)
def test_a_fine_tune_is_read(stage, rename, suno, tmp_path):
    place = fine_tune(stage, tmp_path / "out", RENAMES[rename])
    expected = open_checkpoint(suno, stages={stage: made_pt(stage, tmp_path)})
    for where in (place, place / "pytorch_model.bin"):
        found = open_checkpoint(suno, stages={stage: where})
        assert getattr(found.config, stage) == getattr(expected.config, stage)
        assert found.states[stage].keys() == expected.states[stage].keys()
        for name, tensor in expected.states[stage].items():
            assert found.states[stage][name].equal(tensor), name


def made_pt(stage, tmp_path):
    """The same stage as Suno's own `.pt`."""
    (tmp_path / "pt").mkdir(exist_ok=True)
    return made.save_suno_stage(stage, tmp_path / "pt", "large" if stage == "semantic" else "small")


def test_its_arguments_may_be_in_a_section(suno, tmp_path):
    place = fine_tune("coarse", tmp_path / "out", wrap=lambda args: {"model_args": args})
    assert open_checkpoint(suno, stages={"coarse": place}).config.coarse.n_layer == 2


@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
def test_a_stage_that_transformers_saved_is_read(stage, hf, tmp_path):
    other = made.build_transformers(made.TINY, seed=5)
    getattr(other, made.HF_PARTS[stage]).save_pretrained(tmp_path / stage)
    whole = open_checkpoint(made.save_hf(other, tmp_path / "whole"))
    for where in (tmp_path / stage, tmp_path / stage / "model.safetensors"):
        found = open_checkpoint(hf, stages={stage: where})
        for name, tensor in whole.states[stage].items():
            assert found.states[stage][name].equal(tensor), name
    with pytest.raises(CheckpointError, match=f"this is a {stage} model, not a "):
        open_checkpoint(hf, stages={"fine" if stage == "coarse" else "coarse": tmp_path / stage})
    with pytest.raises(CheckpointError, match="one stage, not of a Bark; use it as --stage"):
        open_checkpoint(tmp_path / stage)


def test_a_fine_tune_speaks(suno, tmp_path, capsys):
    place = fine_tune("semantic", tmp_path / "out", RENAMES["list of heads"])
    assert main(["info", str(suno), "--stage", f"semantic={place}"]) == 0
    bark = Bark.from_pretrained(suno, stages={"semantic": place}, device="cpu")
    assert len(bark.generate("Hi.", max_duration_s=0.2, seed=0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda args: args | {"n_layer": 3}, "lacks"),
        (lambda args: args | {"n_layer": "3"}, "n_layer must be int"),
        (lambda args: {k: v for k, v in args.items() if k != "n_head"}, "not a Bark's"),
        (lambda args: [args], "config.json must be a JSON object"),
    ],
)
def test_a_fine_tune_that_is_none_is_named(change, words, suno, tmp_path):
    place = fine_tune("coarse", tmp_path / "out", wrap=change)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(suno, stages={"coarse": place})


def test_weights_without_arguments_are_named(suno, tmp_path):
    place = fine_tune("coarse", tmp_path / "out")
    (place / "config.json").unlink()
    with pytest.raises(CheckpointError, match="with them lies beside it"):
        open_checkpoint(suno, stages={"coarse": place / "pytorch_model.bin"})


def test_torch_hubs_codec_is_found(suno, tmp_path, monkeypatch):
    """Where the package encodec keeps it; the file is a narrow one under the real one's name."""
    import encodec

    real = encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    kept = tmp_path / "torch" / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    torch.save(real.state_dict(), kept / "encodec_24khz-d7cc33bc.th")
    source = tmp_path / "suno"
    shutil.copytree(suno, source)
    shutil.rmtree(source / "encodec_24khz")
    for name, value in (("TORCH_HOME", tmp_path / "torch"), ("XDG_CACHE_HOME", tmp_path)):
        with monkeypatch.context() as patch:
            patch.delenv("TORCH_HOME", raising=False)
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
            patch.setenv(name, str(value))
            found = open_checkpoint(source, offline=True, cache_dir=tmp_path / "cache")
            assert found.states["codec"]["codebooks"].shape == (8, 1024, 128)


def test_a_byte_order_mark_changes_nothing(hf, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(hf, copy)
    for name in ("config.json", "generation_config.json", "vocab.txt"):
        (copy / name).write_bytes(b"\xef\xbb\xbf" + (copy / name).read_bytes())
    assert open_checkpoint(copy).config == open_checkpoint(hf).config
    assert open_checkpoint(copy).tokenizer.vocab == open_checkpoint(hf).tokenizer.vocab


def test_a_bad_normalize_is_named(hf, tmp_path):
    Bark.from_pretrained("random").save(tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"normalize": "loud"}))
    with pytest.raises(CheckpointError, match="normalize must be one of off, plain, all"):
        open_checkpoint(tmp_path / "ours")


def test_a_bad_voice_costs_the_voice_not_the_weights(hf, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(hf, copy)
    voices = {name: made.random_voice(made.TINY.generation) for name in ("good", "bad")}
    made.save_hf_voices(copy, voices)
    (copy / "speaker_embeddings" / "bad_fine_prompt.npy").write_bytes(b"no")
    assert main(["convert", str(copy), str(tmp_path / "out")]) == 0
    assert "1 of 2 voices are left out, being damaged: 'bad'" in capsys.readouterr().err
    assert list(open_checkpoint(tmp_path / "out").voices) == ["good"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state and main(["convert", str(copy), str(tmp_path / "no"), "--voices", "bad"]) == 1
    assert not (tmp_path / "no").exists()
    assert main(["voices", "--model", str(copy)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["bad", "damaged"]
