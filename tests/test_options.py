"""Every knob once: the same range and the same words wherever a value comes in."""

import argparse
import dataclasses
import inspect
import json
import math
from typing import get_type_hints

import numpy as np
import pytest
import torch

import minibark
import minibark.suno
from minibark import Bark, Options
from minibark.checkpoint.presets import preset
from minibark.commands.main import main
from minibark.commands.shared import add_options, options_of
from minibark.options import GenerateOptions, knobs
from minibark.sampling import OnStep, Sampling

NAMES = [name for name, _ in knobs()]
FLAGS = {name: knob.flag or "--" + name.replace("_", "-") for name, knob in knobs()}
WRONG = {
    "temperature": [-0.1, math.inf, math.nan, "hot", True, 1j, 10**400, np.longdouble("1e400")],
    "waveform_temperature": [-1, math.nan, [0.7]],
    "fine_temperature": [-1, math.inf, b"1", 10**309],
    "top_k": [-1, 2.5, "5", math.nan],
    "top_p": [0, -0.1, 1.01, math.nan, False],
    "min_eos_p": [-0.1, 1.1, math.nan],
    "max_duration_s": [0, -1, math.nan, math.inf, 10**400],
    "allow_early_stop": [1, None, "yes"],
    "max_coarse_history": [0, -3, 1.5],
    "sliding_window_len": [0, -3, "60"],
    "seed": [-1, 2**63, 1.5, "0", True],
    "normalize": ["loud", "", 1, True, b"all"],
}
RIGHT = {
    "temperature": [None, 0, 0.9, np.float32(0.5), np.int64(1)],
    "top_k": [None, 0, 5, np.uint8(5), 5.0],
    "top_p": [None, 1, 0.25],
    "min_eos_p": [None, 0, 1],
    "max_duration_s": [None, 1e-3, 60],
    "allow_early_stop": [True, np.False_],
    "max_coarse_history": [None, 60],
    "sliding_window_len": [None, np.int32(7)],
    "seed": [None, 0, 2**63 - 1, np.int64(3)],
    "normalize": [None, "off", "plain", "all"],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.fixture(scope="module")
def bark() -> Bark:
    return Bark(preset("random"), device="cpu")


def test_every_knob_has_wrong_values_here():
    assert list(WRONG) == NAMES == [field.name for field in dataclasses.fields(Options)]


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_a_bad_value_gives_the_same_words_in_python_and_in_a_document(bark, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got ") as error:
        Options(**{name: value})
    for enter in (
        lambda: Options.from_dict({name: value}),
        lambda: bark.generate("a", **{name: value}),
        lambda: bark.generate_voice("a", **{name: value}),
    ):
        with pytest.raises(ValueError) as again:
            enter()
        assert str(again.value) == str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "nan"),
        ("waveform_temperature", "-1"),
        ("fine_temperature", "inf"),
        ("top_k", "-1"),
        ("top_p", "0"),
        ("min_eos_p", "2"),
        ("max_duration_s", "0"),
        ("max_coarse_history", "0"),
        ("sliding_window_len", "-5"),
        ("seed", "-1"),
        ("normalize", "loud"),
    ],
)
def test_a_bad_value_gives_the_same_words_on_the_command_line(name, text, capsys):
    kind = next(knob.kind for each, knob in knobs() if each == name)
    with pytest.raises(ValueError) as error:
        Options(**{name: kind(text)})
    with pytest.raises(SystemExit) as stop:
        main(["say", "a", f"{FLAGS[name]}={text}"])
    assert stop.value.code == 2
    words = f"minibark say: error: {FLAGS[name]}{str(error.value).removeprefix(name)}"
    assert capsys.readouterr().err.splitlines()[-1] == words


@pytest.mark.parametrize("name", RIGHT)
def test_numbers_of_any_kind_become_plain_ones(name):
    kind = next(knob.kind for each, knob in knobs() if each == name)
    for value in RIGHT[name]:
        kept = getattr(Options(**{name: value}), name)
        assert kept == value
        assert kept is None or type(kept) is kind
        if kept is not None:
            assert json.loads(json.dumps(kept)) == value


def test_a_stream_is_a_seed():
    stream = torch.Generator()
    assert Options(seed=stream).seed is stream


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"temprature": 1}, "unknown option 'temprature'; did you mean temperature?"),
        ({"x": 1}, "unknown option 'x'; known: temperature, "),
        ({7: 1}, "unknown option 7; known: "),
        ({"y" * 10_000: 1}, "unknown option 'yyy"),
        ([1], "options must be an object, got [1]"),
        (None, "options must be an object, got None"),
        ("a" * 10_000, "options must be an object, got 'aaa"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_document_that_is_not_options_is_named(document, words):
    with pytest.raises(ValueError) as error:
        Options.from_dict(document)
    assert str(error.value).startswith(words)
    assert len(str(error.value)) < 400


def test_options_are_frozen_and_a_document_of_all_of_them_is_the_same():
    options = Options(top_k=5, seed=3, temperature=np.float64(0.25))
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 4
    document = json.loads(json.dumps(dataclasses.asdict(options)))
    assert Options.from_dict(document) == options


def test_keywords_of_generate_are_the_fields_and_a_callback():
    hints = get_type_hints(GenerateOptions)
    assert hints.pop("on_step") == OnStep | None
    assert hints == get_type_hints(Options)
    with pytest.raises(TypeError, match="temprature"):
        Bark(preset("random"), device="cpu").generate("a", temprature=1)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (Bark.text_to_semantic, {}),
        (Bark.semantic_to_coarse, {"temperature": "waveform_temperature"}),
        (Bark.coarse_to_fine, {"temperature": "fine_temperature"}),
    ],
)
def test_keywords_of_a_stage_are_fields_with_their_defaults(method, names):
    parameters = inspect.signature(method).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "on_step"]
    assert len(keywords) >= 2
    hints = get_type_hints(method)
    for parameter in keywords:
        field = names.get(parameter.name, parameter.name)
        assert parameter.default == getattr(Options, field)
        assert hints[parameter.name] == get_type_hints(Options)[field]


def test_suno_has_the_same_defaults():
    generate = inspect.signature(minibark.suno.generate_audio).parameters
    assert generate["text_temp"].default == Options.temperature
    assert generate["waveform_temp"].default == Options.waveform_temperature


def test_the_command_line_has_every_knob_with_its_default(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert options_of(parser.parse_args([]), Options) == Options()
    value = {name: "all" if knob.kind is str else "1" for name, knob in knobs()}
    words = [
        word for name in NAMES if name != "allow_early_stop" for word in (FLAGS[name], value[name])
    ]
    options = options_of(parser.parse_args([*words, "--no-allow-early-stop"]), Options)
    expected = dict.fromkeys(NAMES, 1) | {"allow_early_stop": False, "normalize": "all"}
    assert dataclasses.asdict(options) == expected
    assert options_of(parser.parse_args(["--min-eos-p", "none"]), Options).min_eos_p is None
    with pytest.raises(SystemExit):
        main(["say", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, knob in knobs():
        default = getattr(Options, name)
        tail = "" if default in (None, True) else f" ({default})"
        assert knob.help + tail in shown and FLAGS[name] in shown, name


def test_help_in_python_has_every_knob():
    for name, knob in knobs():
        assert f"{name}: {knob.help}." in (minibark.Options.__doc__ or "")


def test_each_stage_samples_by_its_own():
    options = Options(
        temperature=0.1, waveform_temperature=0.2, fine_temperature=0.3, top_k=4, top_p=0.5
    )
    assert options.text_sampling == Sampling(0.1, 4, 0.5)
    assert options.coarse_sampling == Sampling(0.2, 4, 0.5)
    assert options.fine_sampling == Sampling(0.3)
