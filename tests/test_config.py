"""Configurations: the released numbers, Hugging Face's files, and what is refused."""

import dataclasses
import json
import math

import checkpoints as made
import pytest

from minibark.checkpoint.presets import preset
from minibark.checkpoint.schema import config_from_dict, config_from_hf, from_fields
from minibark.config import (
    BarkConfig,
    CheckpointError,
    CodecConfig,
    FineGPTConfig,
    GenerationConfig,
    GPTConfig,
)

STAGES = ("semantic", "coarse", "fine")
VOCABULARIES = {  # of the released config.json; transformers' defaults are another model's
    "semantic_config": {"input_vocab_size": 129_600},
    "coarse_acoustics_config": {"input_vocab_size": 12_096, "output_vocab_size": 12_096},
    "fine_acoustics_config": {"input_vocab_size": 1056, "output_vocab_size": 1056},
}


def transformers_config(**fields) -> dict:
    """The config.json of transformers' default Bark with the released vocabularies."""
    import transformers

    sections = {name: fields | sizes for name, sizes in VOCABULARIES.items()}
    return json.loads(transformers.BarkConfig(**sections).to_json_string(use_diff=False))


def tiny_config() -> dict:
    return json.loads(made.tiny_bark().config.to_json_string(use_diff=False))


# ---- the released numbers ----


def test_defaults_are_transformers_defaults():
    config = config_from_hf(transformers_config(), made.hf_generation(GenerationConfig()))
    ours = BarkConfig()
    assert config.generation == ours.generation
    assert config.codec == ours.codec
    for stage in STAGES:  # the released files say so; transformers' class has biases
        assert getattr(config, stage) == dataclasses.replace(getattr(ours, stage), bias=True)


def test_transformers_own_generation_config_is_the_default():
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    generation = json.loads(json.dumps(BarkGenerationConfig().to_dict()))
    config = config_from_hf(transformers_config(bias=False), generation)
    assert config == BarkConfig()
    assert config == config_from_hf(transformers_config(bias=False), None)


def test_a_codecs_defaults_are_transformers_encodecs():
    import transformers

    theirs = transformers.EncodecConfig()
    for field in dataclasses.fields(CodecConfig):
        if field.name != "n_codebooks":
            value = getattr(theirs, field.name)
            assert getattr(CodecConfig(), field.name) == (
                tuple(value) if isinstance(value, list) else value
            )
    assert CodecConfig().hop_length == math.prod(theirs.upsampling_ratios) == 320


def test_sunos_constants():
    import oracles

    suno, ours = oracles.import_suno(), GenerationConfig()
    for name, theirs in {
        "semantic_vocab_size": suno.SEMANTIC_VOCAB_SIZE,
        "semantic_rate_hz": suno.SEMANTIC_RATE_HZ,
        "semantic_pad_token": suno.SEMANTIC_PAD_TOKEN,
        "semantic_infer_token": suno.SEMANTIC_INFER_TOKEN,
        "text_encoding_offset": suno.TEXT_ENCODING_OFFSET,
        "text_pad_token": suno.TEXT_PAD_TOKEN,
        "codebook_size": suno.CODEBOOK_SIZE,
        "n_coarse_codebooks": suno.N_COARSE_CODEBOOKS,
        "n_fine_codebooks": suno.N_FINE_CODEBOOKS,
        "coarse_rate_hz": suno.COARSE_RATE_HZ,
        "coarse_semantic_pad_token": suno.COARSE_SEMANTIC_PAD_TOKEN,
        "coarse_infer_token": suno.COARSE_INFER_TOKEN,
    }.items():
        assert getattr(ours, name) == theirs, name
    ratio = suno.COARSE_RATE_HZ / suno.SEMANTIC_RATE_HZ * suno.N_COARSE_CODEBOOKS
    assert ours.semantic_to_coarse_ratio == ratio
    assert CodecConfig().sampling_rate == suno.SAMPLE_RATE


def test_presets():
    assert preset("small") == BarkConfig()
    for stage in STAGES:
        small, large, random = (
            getattr(preset(name), stage) for name in ("small", "large", "random")
        )
        assert (small.n_layer, small.n_head, small.n_embd, small.bias) == (12, 12, 768, False)
        assert (large.n_layer, large.n_head, large.n_embd, large.bias) == (24, 16, 1024, False)
        assert small.head_size == large.head_size == 64
        assert small.input_vocab_size == large.input_vocab_size == random.input_vocab_size
        assert random.n_layer == 2
    assert preset("large").codec == preset("small").codec
    assert preset("random").generation == preset("small").generation
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        preset("huge")


# ---- Hugging Face's files ----


def test_changed_generation_constants_arrive():
    assert config_from_hf(tiny_config(), made.hf_generation(made.TINY.generation)) == made.TINY
    changed = {
        field.name
        for field in dataclasses.fields(GenerationConfig)
        if getattr(made.TINY.generation, field.name) != field.default
    }
    assert len(changed) == 16


def test_each_generation_constant_is_read_from_its_section():
    """A field of every section, as max_new_tokens is, counts where the semantic one sets it."""
    generation = made.hf_generation(made.TINY.generation)
    for section in ("coarse_acoustics_config", "fine_acoustics_config"):
        assert generation[section]["max_new_tokens"] is None  # as in the released file
        generation[section] |= {"max_new_tokens": 999, "eos_token_id": 999}
    generation |= {"max_new_tokens": 999, "eos_token_id": None}
    assert config_from_hf(tiny_config(), generation) == made.TINY


def test_flat_and_partial_generation_configs():
    expected = dataclasses.replace(GenerationConfig(), sliding_window_len=40)
    flat = {"sliding_window_len": 40, "semantic_config": None, "temperature": 1.0}
    assert config_from_hf(transformers_config(), flat).generation == expected
    nulls = {"max_new_tokens": None, "eos_token_id": None, "codebook_size": None}
    partial = flat | {"semantic_config": nulls, "fine_acoustics_config": {}}
    assert config_from_hf(transformers_config(), partial).generation == expected


def test_silent_sections_have_transformers_defaults():
    """An older file may leave out what its class has as default."""
    sections = {name: dict(sizes) for name, sizes in VOCABULARIES.items()} | {"codec_config": {}}
    config = config_from_hf(sections, None)
    assert config == config_from_hf(transformers_config(), None)
    assert config.semantic.bias
    assert config.semantic.output_vocab_size == 10_048
    del sections["fine_acoustics_config"]["input_vocab_size"]
    with pytest.raises(CheckpointError, match=r"input_vocab_size \(10048\)"):
        config_from_hf(sections, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_causal_conv", False),
        ("use_conv_shortcut", False),
        ("norm_type", "time_group_norm"),
        ("pad_mode", "constant"),
        ("trim_right_ratio", 0.5),
        ("audio_channels", 2),
        ("audio_channels", [[]]),
    ],
)
def test_an_encodec_that_is_built_otherwise_is_refused(field, value):
    config = tiny_config()
    config["codec_config"][field] = value
    with pytest.raises(CheckpointError, match=field):
        config_from_hf(config, made.hf_generation(made.TINY.generation))


@pytest.mark.parametrize("config", [None, [], "x", 3, {}, {"model_type": "bert"}, {"a": [[]] * 99}])
def test_a_config_of_no_bark(config):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        config_from_hf(config, None)


@pytest.mark.parametrize("generation", [[], "x", 3, {"semantic_config": [1]}])
def test_a_generation_config_of_no_bark(generation):
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        config_from_hf(tiny_config(), generation)


# ---- our file ----


@pytest.mark.parametrize("config", [made.TINY, preset("small"), preset("large")])
def test_round_trip_through_json(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config_from_dict(config.to_dict()) == config


def test_every_field_counts_in_the_round_trip():
    whole = made.TINY.to_dict()
    for section, fields in whole.items():
        for field in fields:
            rest = {name: value for name, value in fields.items() if name != field}
            with pytest.raises(CheckpointError, match=field):
                config_from_dict(whole | {section: rest})
            with pytest.raises(CheckpointError, match=rf"{section}.*extra"):
                config_from_dict(whole | {section: fields | {"extra": 1}})
        with pytest.raises(CheckpointError, match="sections"):
            config_from_dict({name: whole[name] for name in whole if name != section})


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BarkConfig().semantic.n_layer = 3


# ---- what does not fit together ----


def with_(section: str, **fields) -> BarkConfig:
    part = dataclasses.replace(getattr(made.TINY, section), **fields)
    return dataclasses.replace(made.TINY, **{section: part})


CONTRADICTIONS = {
    "semantic_pad_token": ("generation", {"semantic_pad_token": 39}),
    "an output of the semantic model": ("semantic", {"output_vocab_size": 40}),
    "text and infer ids": ("semantic", {"input_vocab_size": 249}),
    "max_input_semantic_length [+] max_new_tokens": ("generation", {"max_new_tokens": 57}),
    "coarse codes fit": ("coarse", {"output_vocab_size": 71}),
    "coarse pad and infer ids": ("generation", {"coarse_infer_token": 80}),
    "sliding_window_len fit": ("generation", {"sliding_window_len": 29}),
    "n_coarse_codebooks <= max_coarse_history": ("generation", {"max_coarse_history": 1}),
    "fine vocabulary": ("fine", {"input_vocab_size": 16, "output_vocab_size": 16}),
    "max_fine_history_length <": ("generation", {"max_fine_history_length": 32}),
    "max_fine_input_length <=": ("generation", {"max_fine_input_length": 65}),
    "n_codes_given <= n_coarse_codebooks": ("fine", {"n_codes_given": 3}),
    "same codebooks": ("codec", {"codebook_size": 17}),
    "have the same codebooks": ("fine", {"n_codes_total": 5}),
    "coarse_rate_hz": ("codec", {"sampling_rate": 301}),
    r"semantic_rate_hz is in \[0\.1, 100\]": ("generation", {"semantic_rate_hz": 0.5}),
    "multiple of n_head": ("semantic", {"n_head": 3}),
    "must be equal": ("fine", {"output_vocab_size": 21}),
    "1 <= n_codes_given < n_codes_total": ("fine", {"n_codes_given": 4}),
    "n_codes_total <= 64": ("fine", {"n_codes_total": 65}),
    "1 to 8 upsampling_ratios": ("codec", {"upsampling_ratios": ()}),
    "upsampling_ratios must be in": ("codec", {"upsampling_ratios": (2, 0)}),
    r"compress \(5\)": ("codec", {"compress": 5}),
    r"n_layer must be in \(0, 256\], got 257": ("coarse", {"n_layer": 257}),
}


@pytest.mark.parametrize("rule", CONTRADICTIONS)
def test_contradictions_are_refused_with_the_rule(rule):
    section, fields = CONTRADICTIONS[rule]
    with pytest.raises(CheckpointError, match=rule):
        with_(section, **fields)


def test_the_limits_themselves_are_good():
    for section, fields in {
        "generation": {"max_new_tokens": 56, "sliding_window_len": 28, "max_fine_input_length": 64},
        "semantic": {"input_vocab_size": 250, "output_vocab_size": 41},
        "coarse": {"output_vocab_size": 72},
        "fine": {"input_vocab_size": 17, "output_vocab_size": 17, "n_codes_given": 2},
        "codec": {"compress": 4},
    }.items():
        with_(section, **fields)


@pytest.mark.parametrize(
    "value", [0, -1, 10**12, 10**400, math.nan, math.inf, "3", None, True, 2.5, [3], {"a": [[[]]]}]
)
@pytest.mark.parametrize("kind", [GPTConfig, FineGPTConfig, CodecConfig, GenerationConfig])
def test_absurd_values_are_refused_by_name(kind, value):
    for field in dataclasses.fields(kind):
        if field.name == "bias" and value is True:
            continue
        if field.name.endswith("_hz") and value == 2.5:
            continue
        if field.name == "upsampling_ratios" and value == [3]:
            continue
        with pytest.raises(CheckpointError, match=rf"part: .*{field.name}") as caught:
            from_fields(kind, {field.name: value}, "part", partial=True)
        assert len(str(caught.value)) < 200
