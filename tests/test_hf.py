"""`minibark.hf`: a script for transformers' Bark runs after a change of its import line."""

import copy
import json
import pickle
import random
import warnings

import checkpoints as made
import numpy as np
import pytest
import scipy.io.wavfile
import torch
import transformers

import minibark
from minibark import hf

PLACES = {"transformers": transformers, "minibark.hf": hf}
TEXTS = ["Hello, world!", "a", "It's odd...  so\tthere. — ♪ la ♪ [laughs]", "word " * 50]
LONG = "word " * 80
VOICES = {
    "v2/en_speaker_6": made.random_voice(made.TINY.generation),
    "de_speaker_1": made.random_voice(made.TINY.generation, n_semantic=12, seed=1),
}
GREEDY = {"do_sample": False, "fine_temperature": 1.0, "min_eos_p": None}

SCRIPT = """
import scipy.io.wavfile
import torch
from transformers import AutoModel, AutoProcessor, BarkModel, pipeline, set_seed

device = "cuda:0" if torch.cuda.is_available() else "cpu"
set_seed(0)
synthesiser = pipeline("text-to-speech", NAME)
speech = synthesiser("A dog.", forward_params={"do_sample": True})
scipy.io.wavfile.write(OUT / "1.wav", rate=speech["sampling_rate"], data=speech["audio"])

processor = AutoProcessor.from_pretrained(NAME)
model = AutoModel.from_pretrained(NAME)
inputs = processor(text=["A dog."], return_tensors="pt")
speech_values = model.generate(**inputs, do_sample=True)
sampling_rate = model.generation_config.sample_rate
samples = speech_values.cpu().numpy().squeeze()
scipy.io.wavfile.write(OUT / "2.wav", rate=sampling_rate, data=samples)

model = BarkModel.from_pretrained(NAME, torch_dtype=torch.float32).to(device)
inputs = processor("A dog.", voice_preset=VOICE).to(device)
audio_array = model.generate(**inputs, fine_temperature=0.4, coarse_temperature=0.8)
audio_array = audio_array.cpu().numpy().squeeze()
scipy.io.wavfile.write(OUT / "3.wav", rate=sampling_rate, data=audio_array)
"""


@pytest.fixture(scope="module")
def bark():
    """transformers' random Bark, which never chooses a coarse id that is no code."""
    model = copy.deepcopy(made.tiny_bark())
    g = made.TINY.generation
    end = g.semantic_vocab_size + g.n_coarse_codebooks * g.codebook_size
    model.coarse_acoustics.lm_head.weight[end:] = 0
    return model


@pytest.fixture(scope="module")
def place(bark, tmp_path_factory):
    """That Bark, in files as the hub has them."""
    folder = made.save_hf(bark, tmp_path_factory.mktemp("hf") / "bark")
    names = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    numbers = json.loads((folder / "generation_config.json").read_text())
    numbers["sample_rate"] = made.TINY.codec.sampling_rate
    (folder / "generation_config.json").write_text(json.dumps(numbers))
    return str(made.save_hf_voices(folder, VOICES))


@pytest.fixture(scope="module")
def processors(place):
    return {name: there.AutoProcessor.from_pretrained(place) for name, there in PLACES.items()}


@pytest.fixture(scope="module")
def models(place):
    """Both of one folder."""
    return {name: there.BarkModel.from_pretrained(place) for name, there in PLACES.items()}


def assert_same_features(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if name == "history_prompt":
            assert_same_features(ours[name], value)
            continue
        assert type(ours[name]) is type(value), name
        np.testing.assert_array_equal(ours[name], value)
        assert getattr(ours[name], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize(
    "keywords",
    [
        {"text": TEXTS[0]},
        {"text": TEXTS},
        {"text": [TEXTS[0]], "voice_preset": "v2/en_speaker_6"},
        {"text": TEXTS, "voice_preset": "de_speaker_1", "return_tensors": "np"},
        {"text": TEXTS[0], "return_tensors": None, "voice_preset": "de_speaker_1"},
        {"text": TEXTS[:2], "return_tensors": None},
        {"text": TEXTS, "voice_preset": VOICES["de_speaker_1"].to_arrays()},
        {"text": TEXTS[:3], "max_length": 60},
        {"text": LONG},
        {"text": "a [MASK] and [SEP]", "max_length": 60},
        {"text": TEXTS, "max_length": 12, "truncation": True},
        {"text": TEXTS, "max_length": 12, "truncation": True, "add_special_tokens": True},
        {"text": TEXTS[2], "add_special_tokens": True, "return_token_type_ids": True},
        {"text": "", "return_attention_mask": False},
    ],
)
def test_a_processor_gives_what_transformers_gives(processors, keywords):
    theirs = processors["transformers"](**keywords)
    assert_same_features(processors["minibark.hf"](**keywords), theirs)


def test_of_several_texts_the_longest_decides_where_transformers_fails(processors):
    inputs = processors["minibark.hf"](["a", LONG])
    assert inputs.input_ids.shape == (2, 320)
    assert inputs.attention_mask.sum(1).tolist() == [1, 320]
    with pytest.raises(ValueError, match="Unable to create tensor"):
        processors["transformers"](["a", LONG])


def test_a_processor_has_the_ids_of_transformers_own_tokenizer_of_the_model_in_the_box():
    from minibark.checkpoint.hub import Source

    vocab = str(Source.of("tiny").path / "vocab.txt")
    tokenizer = transformers.BertTokenizer(vocab, do_lower_case=False)
    theirs = transformers.BarkProcessor(tokenizer)(TEXTS)
    assert_same_features(hf.AutoProcessor.from_pretrained("tiny")(TEXTS), theirs)


def test_voices_come_by_name_path_and_dictionary(processors, tmp_path):
    voice = VOICES["v2/en_speaker_6"]
    voice.save(tmp_path / "mine.npz")
    ours = processors["minibark.hf"]
    assert ours.available_voice_presets == sorted(VOICES)
    for preset in (
        *("v2/en_speaker_6", str(tmp_path / "mine.npz"), str(tmp_path / "mine")),
        *(voice, voice.to_arrays(), ours("a", voice).history_prompt),
    ):
        history = ours("a", voice_preset=preset).history_prompt
        assert torch.equal(history.fine_prompt, voice.fine)
        assert torch.equal(history["semantic_prompt"], voice.semantic)


def test_features_are_read_like_a_dictionary_and_like_an_object(processors):
    inputs = processors["minibark.hf"]("Hello", voice_preset="de_speaker_1")
    assert set({**inputs}) == {"input_ids", "attention_mask", "history_prompt"}
    assert inputs.to("cpu", torch.float16) is inputs and inputs.to(torch.float16) is inputs
    assert inputs.to(device="meta").history_prompt.fine_prompt.device.type == "meta"
    assert inputs.input_ids.device.type == "meta"
    ids = processors["minibark.hf"]("Hello")
    assert torch.equal(pickle.loads(pickle.dumps(ids)).input_ids, ids.input_ids)
    assert copy.deepcopy(ids).keys() == ids.keys()
    with pytest.raises(AttributeError, match="no 'history_prompt' here; there are input_ids"):
        ids.history_prompt  # noqa: B018


@pytest.mark.parametrize("voice", [None, *VOICES])
@pytest.mark.parametrize("text", ["Hey you", "Another", "x"])
def test_greedy_audio_is_that_of_transformers(models, processors, text, voice):
    audio = {}
    for name, model in models.items():
        inputs = processors[name](text, voice_preset=voice)
        audio[name] = model.generate(**inputs, **GREEDY)
    assert audio["minibark.hf"].dtype == torch.float32
    made.assert_close(audio["minibark.hf"], audio["transformers"].reshape(1, -1))


def test_each_keyword_reaches_its_stage_as_in_transformers(models, processors):
    audio = {}
    for name, model in models.items():
        inputs = processors[name]("Hey you", max_length=8)
        keywords = {"semantic_max_new_tokens": 6, "coarse_do_sample": False, "do_sample": True}
        # With one token to choose from, sampling is greedy.
        keywords |= {"semantic_top_k": 1, "fine_temperature": 1.0, "semantic_temperature": 0.3}
        keywords |= {"semantic_min_eos_p": None, "pad_token_id": 40, "num_beams": 1}
        audio[name] = model.generate(**inputs, **keywords)
    made.assert_close(audio["minibark.hf"], audio["transformers"].reshape(1, -1))
    g = made.TINY.generation
    n_frames = int(6 * g.coarse_rate_hz / g.semantic_rate_hz)
    assert audio["minibark.hf"].shape == (1, n_frames * made.TINY.codec.hop_length)


@pytest.mark.parametrize("mask", ["whole", "left", "holes", None])
def test_a_mask_is_read_as_in_transformers(models, mask):
    ids = torch.tensor([[7, 8, 9, 50, 60, 70, 0, 0]])
    masks = {"whole": ids > 0, "left": ids > 9, "holes": ids % 2 == 1, None: None}
    keywords = {"input_ids": ids, "attention_mask": masks[mask]}
    if mask is not None:
        keywords["attention_mask"] = masks[mask].long()
    ours, theirs = (models[name].generate(**keywords, **GREEDY) for name in reversed(PLACES))
    made.assert_close(ours, theirs.reshape(1, -1))


def test_each_row_gets_what_it_gets_alone_and_zeros_behind(models, processors):
    model, texts = models["minibark.hf"], ["Hey you", "x", "Other"]
    inputs = processors["minibark.hf"](texts, voice_preset="de_speaker_1")
    audio, lengths = model.generate(**inputs, seed=2, return_output_lengths=True)
    assert audio.shape == (3, max(lengths)) and len(set(lengths)) > 1
    assert not audio.requires_grad and not audio.is_inference()
    for row, length, text in zip(audio, lengths, texts, strict=True):
        alone = model.generate(
            **processors["minibark.hf"](text, voice_preset="de_speaker_1"), seed=2
        )
        assert alone.shape == (1, length)
        torch.testing.assert_close(row[:length], alone[0])
        assert not row[length:].any()


def test_the_seed_of_torch_decides_and_gives_what_bark_gives():
    bark = minibark.Bark.from_pretrained("tiny", device="cpu")
    processor, model = (there.from_pretrained("tiny") for there in (hf.AutoProcessor, hf.AutoModel))
    text = "One."
    hf.set_seed(5)
    audio = model.generate(**processor(text, voice_preset="male"))
    torch.manual_seed(5)
    expected = bark.generate(text, "male")
    assert audio.shape == (1, len(expected)) and len(expected) > 3000
    np.testing.assert_array_equal(audio[0].numpy(), expected)
    greedy = model.generate(**processor(text), history_prompt="male", do_sample=False)
    knobs = {"temperature": 0, "waveform_temperature": 0, "fine_temperature": 0}
    np.testing.assert_array_equal(greedy[0].numpy(), bark.generate(text, "male", **knobs))
    keywords = {"temperature": 0.6, "coarse_temperature": 0.9, "fine_temperature": 0.4, "top_k": 9}
    drawn = model.generate(**processor(text, "male"), **keywords, max_new_tokens=40, seed=1)
    knobs = {"temperature": 0.6, "waveform_temperature": 0.9, "fine_temperature": 0.4, "top_k": 9}
    rate_hz = bark.config.generation.semantic_rate_hz
    expected = bark.generate(text, "male", **knobs, seed=1, max_duration_s=39.5 / rate_hz)
    np.testing.assert_array_equal(drawn[0].numpy(), expected)


@pytest.mark.parametrize(
    "package, name, voice",
    [
        ("transformers", "made", "v2/en_speaker_6"),
        ("minibark.hf", "made", "v2/en_speaker_6"),
        ("minibark.hf", "tiny", "female"),
    ],
)
def test_a_script_runs_after_a_change_of_its_import_line(place, tmp_path, package, name, voice):
    script = SCRIPT.replace("from transformers import", f"from {package} import")
    names = {"NAME": place if name == "made" else name, "VOICE": voice, "OUT": tmp_path}
    exec(compile(script, package, "exec"), names)
    for wav in ("1.wav", "2.wav", "3.wav"):
        rate_hz, samples = scipy.io.wavfile.read(tmp_path / wav)
        assert rate_hz == (made.TINY.codec.sampling_rate if name == "made" else 24_000)
        assert samples.dtype == np.float32 and samples.ndim == 1 and len(samples) > 0


def test_set_seed_starts_the_streams_that_transformers_starts():
    drawn = []
    for there in PLACES.values():
        there.set_seed(7)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_dtype_and_device(place, processors):
    inputs = processors["minibark.hf"]("Hey you")
    model = hf.BarkModel.from_pretrained(place, torch_dtype=torch.bfloat16, device_map="cpu")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert model.float() is model and model.dtype == torch.float32
    plain = model.generate(**inputs, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a CPU that has no fast 16 bits
        assert model.to("cpu", torch.float16).dtype == torch.float16
        half = model.half().generate(**inputs, do_sample=False, semantic_max_new_tokens=1)
    assert half.dtype == torch.float32 and half.shape[0] == 1
    again = model.to(dtype=torch.float32).cpu().eval().to_bettertransformer()
    again.enable_cpu_offload()
    assert torch.equal(again.generate(**inputs, do_sample=False), plain)
    for dtype in ("auto", "float32", None):
        assert hf.AutoModel.from_pretrained(place, dtype=dtype).dtype == torch.float32
    model = hf.AutoModel.from_pretrained(place, device_map={"": "cpu"}, precision="int8")
    assert model.dtype == torch.float32
    assert model.generate(**inputs, do_sample=False).shape[0] == 1


def test_what_scripts_read_of_a_model(models):
    ours, theirs = models["minibark.hf"], models["transformers"]
    rate_hz = made.TINY.codec.sampling_rate
    assert ours.generation_config.sample_rate == ours.config.sample_rate == rate_hz
    assert theirs.generation_config.sample_rate == rate_hz
    assert ours.config.codec_config.sampling_rate == theirs.config.codec_config.sampling_rate
    assert ours.config.model_type == theirs.config.model_type
    assert ours.config.codebook_size == theirs.generation_config.codebook_size


def test_a_pipeline_gives_what_its_model_gives(tmp_path):
    synthesiser = hf.pipeline("text-to-speech", "tiny", device=-1)
    hf.set_seed(1)
    speech = synthesiser("One.", forward_params={"do_sample": True})
    assert speech["sampling_rate"] == 24_000 and speech["audio"].dtype == np.float32
    hf.set_seed(1)
    expected = synthesiser.model.generate(**synthesiser.processor("One."))
    np.testing.assert_array_equal(speech["audio"], expected[0].numpy())
    file = tmp_path / "bark_out.wav"
    scipy.io.wavfile.write(file, rate=speech["sampling_rate"], data=speech["audio"])
    assert scipy.io.wavfile.read(file)[1].shape == speech["audio"].shape


def test_a_pipeline_takes_lists_and_voices(models, processors):
    ours, inputs = models["minibark.hf"], processors["minibark.hf"]
    texts, voice = ["Hey you", "x", "Other"], {"voice_preset": "de_speaker_1"}
    for n in (1, 2):
        synthesiser = hf.pipeline("text-to-audio", ours, forward_params={"do_sample": False})
        speeches = synthesiser(texts, preprocess_params=voice, batch_size=n)
        for text, speech in zip(texts, speeches, strict=True):
            expected = ours.generate(**inputs(text, **voice), do_sample=False)
            np.testing.assert_allclose(speech["audio"], expected[0].numpy(), atol=1e-5)
    assert synthesiser([]) == []
    win = {"forward_params": {"do_sample": True}, "generate_kwargs": {"do_sample": False}}
    again = synthesiser("Hey you", preprocess_params=voice, **win)
    np.testing.assert_allclose(again["audio"], speeches[0]["audio"], atol=1e-5)


def test_a_pipeline_of_transformers_has_the_same_form(models, processors):
    theirs = transformers.pipeline(
        "text-to-audio",
        models["transformers"],
        tokenizer=processors["transformers"].tokenizer,
        processor=processors["transformers"],
    )
    params = {"forward_params": GREEDY, "preprocess_params": {"max_length": 8}}
    for texts in ("Hey you", ["Hey you", "x"]):
        expected = theirs(texts, **params)
        got = hf.pipeline("text-to-audio", models["minibark.hf"])(texts, **params)
        pairs = zip(got, expected, strict=True) if isinstance(texts, list) else [(got, expected)]
        for ours, reference in pairs:
            assert ours.keys() == reference.keys()
            np.testing.assert_allclose(ours["audio"], reference["audio"], atol=1e-4)


@pytest.mark.parametrize(
    "keywords, text",
    [
        ({"temperatur": 0.7}, "unknown keyword 'temperatur'; near ones: temperature"),
        ({"coarse_tempreature": 1}, "unknown keyword .*near ones: coarse_temperature"),
        ({"num_beams": 4}, "num_beams=4 has no meaning"),
        ({"semantic_repetition_penalty": 1.2}, "semantic_repetition_penalty=1.2 has no meaning"),
        ({"eos_token_id": 3}, "eos_token_id=3 has no meaning"),
        ({"logits_processor": [print]}, "logits_processor=.* has no meaning"),
        ({"coarse_max_new_tokens": 9}, "the coarse stage has no max_new_tokens; it has coarse_do"),
        ({"fine_top_k": 9}, "the fine stage has no top_k"),
        ({"do_sample": 1}, "do_sample must be True or False, got 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive whole number"),
        ({"coarse_temperature": -1}, "coarse stage: temperature must be 0 .greedy. or a positive"),
        ({"semantic_top_p": 2}, "semantic stage: top_p must be in"),
        ({"history_prompt": "nobody"}, "no voice 'nobody': this checkpoint has 2 voices"),
        ({"history_prompt": {}}, "semantic_prompt is missing"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"input_ids": None}, "generate needs input_ids"),
        ({"input_ids": [[1, 999]]}, r"input_ids must hold ids in \[0, 202\)"),
        ({"input_ids": [1, 2]}, r"input_ids must have 2 dimension"),
        ({"attention_mask": [[1]]}, "attention_mask must have the shape of input_ids"),
        ({"attention_mask": [[1, 1], [0, 0]]}, "row 1 has no text"),
    ],
)
def test_what_generate_refuses(models, keywords, text):
    ids = [[7, 8], [9, 10]]
    with pytest.raises(ValueError, match=text):
        models["minibark.hf"].generate(**{"input_ids": ids} | keywords)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: hf.AutoModel.from_pretrained("tiny", devicemap="cpu"), "near ones: device_map"),
        (lambda: hf.AutoModel.from_pretrained("tiny", dtype="int7"), "dtype must be .*'int7'"),
        (lambda: hf.AutoModel.from_pretrained("tiny", load_in_8bit=True), "precision='int8'"),
        (lambda: hf.AutoModel.from_pretrained("tiny", device_map={"a": 0, "b": 1}), "one device"),
        (lambda: hf.AutoProcessor.from_pretrained("tiny", revison=1), "near ones: revision"),
        (lambda: hf.AutoProcessor.from_pretrained("tiny")(None), "text must be a str or several"),
        (lambda: hf.AutoProcessor.from_pretrained("tiny")([1]), "text must be a str or several"),
        (lambda: hf.AutoProcessor.from_pretrained("tiny")("a", return_tensors="tf"), "'tf'"),
        (lambda: hf.pipeline("translation", "tiny"), "'text-to-speech' or 'text-to-audio'"),
        (
            lambda: hf.pipeline(None, hf.AutoModel.from_pretrained("tiny"), dtype="float16"),
            "unknown keyword 'dtype'",
        ),
    ],
)
def test_what_else_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_no_audio_is_told_of_where_the_caller_is(models):
    with pytest.warns(UserWarning, match="ended the text.* at its first step") as told:
        audio = models["minibark.hf"].generate([[7, 8], [9, 1]], min_eos_p=0.0)
    assert audio.shape == (2, 0)
    assert told[0].filename == __file__


def test_names_that_change_nothing_are_accepted(place):
    model = hf.AutoModelForTextToWaveform.from_pretrained(
        place, attn_implementation="sdpa", low_cpu_mem_usage=True, load_in_8bit=False
    )
    audio = model.generate([[7, 8]], use_cache=True, num_beams=1, streamer=None, eos_token_id=40)
    assert audio.ndim == 2
    none = hf.AutoProcessor.from_pretrained(place, speaker_embeddings_dict_path=None)
    assert none.available_voice_presets == []
    with pytest.raises(FileNotFoundError):
        hf.AutoProcessor.from_pretrained(place + "-none", local_files_only=True)


def test_importing_it_imports_nothing_of_transformers_nor_of_the_command_line():
    code = "import sys, minibark.hf; print(*sorted(sys.modules))"
    done = made.run_python(code)
    assert done.returncode == 0, done.stderr
    names = {name.split(".")[0] for name in done.stdout.split()}
    assert not names & {"transformers", "tokenizers", "scipy", "huggingface_hub"}
    assert "minibark.commands" not in done.stdout
