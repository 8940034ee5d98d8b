"""Whatever torch is around a call changes nothing in what it returns; nothing is left behind."""

import contextlib
import dataclasses
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from random_bark import random_gpt

from minibark import Bark
from minibark.checkpoint.presets import preset
from minibark.config import FineGPTConfig, GPTConfig
from minibark.detect import Classifier, Detector
from minibark.detect.hubert import Hubert, HubertConfig
from minibark.study import trace

OPTIONS = {"seed": 1, "max_duration_s": 0.4}
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.fixture(scope="module", params=PRECISIONS)
def directory(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("around") / "bark"
    Bark(preset("random"), device="cpu").save(folder)
    return folder, request.param


@pytest.mark.thinned
@pytest.mark.parametrize("around", AROUND)
def test_what_is_around_a_call_changes_nothing(directory, around):
    folder, precision = directory
    expected = Bark.from_pretrained(folder, device="cpu", precision=precision)
    expected = expected.generate_voice("Hello there.", **OPTIONS)
    bark = Bark.from_pretrained(folder, device="cpu", precision=precision)
    with AROUND[around]():
        voice = bark.generate_voice("Hello there.", **OPTIONS)  # builds the stages, too
        audio = bark.decode(voice.fine)
    for part in ("semantic", "coarse", "fine"):
        assert torch.equal(getattr(voice, part), getattr(expected, part))
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, bark.decode(expected.fine))


@pytest.fixture(scope="module")
def tiny():
    """A Bark, and what each door gives."""
    bark = Bark.from_pretrained("tiny", device="cpu")
    return bark, {door: ask(bark) for door, ask in DOORS.items()}


DOORS = {
    "batch": lambda bark: bark.generate_batch(["Hi.", "No."], seeds=1, max_duration_s=0.3)[0],
    "long": lambda bark: bark.generate_long("Hi. [pause:0.1s] No.", "female", **OPTIONS),
    "dialog": lambda bark: bark.generate_dialog(
        "A: Hi.\nB: No.", {"A": "female", "B": "male"}, **OPTIONS
    ),
    "stream": lambda bark: np.concatenate(list(bark.stream("Hi. No.", "female", **OPTIONS))),
    "attention": lambda bark: trace(bark, "Hi.", voice="female", **OPTIONS).attention,
    "draws": lambda bark: trace(bark, "Hi.", **OPTIONS).coarse.entropy,
}


@pytest.mark.parametrize("around", AROUND)
def test_each_door_gives_the_same_whatever_is_around(tiny, around):
    bark, expected = tiny
    with AROUND[around]():
        got = {door: ask(bark) for door, ask in DOORS.items()}
    for door, given in got.items():
        assert given.dtype == expected[door].dtype, door
        np.testing.assert_array_equal(given, expected[door], err_msg=door)


@pytest.mark.parametrize("around", AROUND)
def test_random_weights_are_decided_by_the_seed_alone(around):
    def weights():
        bark = Bark(preset("random"), device="cpu", seed=3)
        return [dict(bark.model(stage).state_dict()) for stage in ("semantic", "fine", "codec")]

    expected = weights()
    with AROUND[around]():
        got = weights()
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("around", AROUND)
def test_a_detector_hears_the_same(around):
    torch.manual_seed(0)
    detector = Detector(
        Hubert(HubertConfig()).eval(), Classifier(torch.ones(1, 768), torch.ones(1))
    )
    sound = (np.sin(np.arange(24_000) / 20) * 0.3).astype(np.float32)
    expected = detector.features(sound, 24_000)
    with AROUND[around]():
        np.testing.assert_array_equal(detector.features(sound, 24_000), expected)


@torch.inference_mode()
def test_a_stage_that_is_first_used_in_inference_mode_can_be_trained():
    bark = Bark.from_pretrained("tiny", device="cpu")
    bark.generate("Hi.", **OPTIONS)
    with torch.inference_mode(False):
        for stage in ("semantic", "coarse", "fine", "codec"):
            bark.model(stage).requires_grad_(True)


def test_tokens_are_ordinary_tensors_on_the_cpu():
    bark = Bark(preset("random"), device="cpu")
    voice = bark.generate_voice("Hello there.", **OPTIONS)
    semantic = bark.text_to_semantic("Hello there.", **OPTIONS)
    coarse = bark.semantic_to_coarse(semantic)
    fine = bark.coarse_to_fine(coarse)
    for tokens in (voice.semantic, voice.coarse, voice.fine, semantic, coarse, fine):
        assert not tokens.is_inference() and tokens.device.type == "cpu"
        assert tokens.dtype == torch.int64
        tokens[..., 0] = 0


def test_a_warning_comes_each_time_and_points_at_the_caller():
    bark = Bark(preset("random"), device="cpu")
    with warnings.catch_warnings(record=True) as told:
        for _ in range(3):
            bark.generate("Hello.", seed=0, min_eos_p=0)
        bark.text_to_semantic("a " * 300, seed=0, max_duration_s=0.1)
        bark.generate("a " * 300, seed=0, max_duration_s=0.1)
    assert len(told) == 5
    assert {warning.filename for warning in told} == {__file__}
    assert len({warning.lineno for warning in told}) == 3


def test_a_bark_is_freed_at_once():
    for make in (
        lambda: Bark(preset("random"), device="cpu"),
        lambda: Bark.from_pretrained("tiny", device="cpu"),
    ):
        bark = make()
        bark.generate("Hi.", **OPTIONS)
        gc.collect()
        gc.disable()
        try:
            parts = [weakref.ref(bark), weakref.ref(bark.model("coarse"))]
            del bark
            assert [part() for part in parts] == [None, None]
        finally:
            gc.enable()


def test_a_bark_says_what_it_is():
    assert repr(Bark(preset("random"), device="cpu")) == (
        "<Bark on cpu in float32 by plain torch (float32 products)>"
    )


@pytest.mark.parametrize("text", [None, ["One."], b"x", 3.5, {"a": 1}], ids=repr)
def test_what_is_no_text_is_told_what_is(text):
    bark = Bark(preset("random"), device="cpu")
    with pytest.raises(ValueError, match=r"^text must (hold whole numbers|have 1 dim).*got"):
        bark.generate(text)


@pytest.mark.parametrize("kind", ["GPT", "FineGPT"])
def test_a_model_compiles_whole_at_every_length(kind):
    shape = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    if kind == "GPT":
        model = random_gpt(GPTConfig(input_vocab_size=90, output_vocab_size=90, **shape))
        inputs = [(torch.randint(90, (1, n)),) for n in (5, 9, 40, 1)]
    else:
        model = random_gpt(FineGPTConfig(input_vocab_size=90, output_vocab_size=90, **shape))
        inputs = [(torch.randint(90, (1, n, 8)), 3) for n in (5, 9, 40)]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for given in inputs:
        torch.testing.assert_close(compiled(*given), model(*given))


def test_the_model_of_a_bark_compiles_whole():
    config = preset("random")
    wide = {"n_layer": 1, "n_head": 8, "n_embd": 512}  # oneDNN's products
    config = dataclasses.replace(config, coarse=dataclasses.replace(config.coarse, **wide))
    model = Bark(config, device="cpu").model("coarse")
    tokens = torch.randint(12_000, (1, 9))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=0, atol=1e-4)


def test_a_model_is_exported_over_lengths():
    shape = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = random_gpt(GPTConfig(input_vocab_size=90, output_vocab_size=90, **shape))
    length = torch.export.Dim("length", min=2, max=64)
    tokens = torch.randint(90, (1, 7))
    exported = torch.export.export(model, (tokens,), dynamic_shapes={"tokens": {1: length}})
    other = torch.randint(90, (1, 30))
    torch.testing.assert_close(exported.module()(other), model(other))
