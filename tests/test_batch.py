"""Batches: each clip is what it is alone, and rows that have ended are not decoded any more."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import random_bark
import torch
from checkpoints import TINY
from random_bark import GENERATION, assert_same_tokens, random_gpt, random_voice, streams

from minibark import Bark, Options, Voice, VoiceError, fast
from minibark.coarse import generate_coarse
from minibark.config import GPTConfig
from minibark.cpu.cache import new_cache
from minibark.cpu.row_sums import RowSumCache
from minibark.decoding import CachedDecoder, Decoder, UncachedDecoder
from minibark.fine import generate_fine
from minibark.gpu.decoder import GraphDecoder
from minibark.model import GPT
from minibark.pipeline import Row
from minibark.sampling import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:the (model ended the )?text:UserWarning")

# With these seeds this text and voice have the lengths below; `None` leaves the end to the draw.
TEXT, VOICE = "Yes?", random_voice(160)
LENGTHS = {25: 0, 54: 1, 49: 20, 32: 24, 3: 142}
FREE = {"min_eos_p": None}


@pytest.fixture(scope="module")
def bark(tmp_path_factory) -> Bark:
    return random_bark.ending_bark(tmp_path_factory.mktemp("batch") / "bark")


@pytest.fixture(scope="module")
def quick() -> Bark:
    """A Bark of very small lengths, for what does not depend on them."""
    return Bark(TINY, device="cpu", seed=3)


@pytest.fixture(scope="module")
def alone(bark) -> dict[int, Voice]:
    """What each seed makes by itself."""
    spoken = {}
    for seed in LENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            spoken[seed] = bark.generate_voice(TEXT, VOICE, seed=seed, **FREE)
    return spoken


def assert_same_sound(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == np.float32 and one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


# ---- the same as alone


@pytest.mark.parametrize("seeds", [[32], [3, 54]], ids=len)
def test_a_clip_of_a_batch_is_the_clip_alone(bark, alone, seeds):
    made = bark.generate_batch([TEXT] * len(seeds), VOICE, seeds, **FREE)
    assert_same_sound(made, [bark.decode(alone[seed].fine) for seed in seeds])


def test_the_tokens_of_a_row_are_those_alone(bark, alone):
    seeds = (54, 3, 25, 49, 32)
    rows = [
        Row(torch.tensor(bark.tokenizer.encode(TEXT)), VOICE, torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    for seed, voice in zip(seeds, bark.pipeline.speak(rows, Options(**FREE)), strict=True):
        assert len(voice.semantic) == LENGTHS[seed]
        for part in ("semantic", "coarse", "fine"):
            assert_same_tokens(getattr(voice, part), getattr(alone[seed], part))


@pytest.mark.torture
def test_codes_of_very_unlike_lengths_are_those_alone(bark):
    lengths, voices = (700, 1, 0, 45), (None, random_voice(300), VOICE, random_voice(11))
    random = torch.Generator().manual_seed(0)
    semantics = [torch.randint(10_000, (n,), generator=random) for n in lengths]
    seeds, options = range(len(lengths)), Options()
    pipeline, together = bark.pipeline, streams(*seeds)
    coarses = pipeline.coarse(semantics, voices, together, options)
    fines = pipeline.fine(coarses, voices, together, options)
    for semantic, voice, seed, coarse, fine in zip(
        semantics, voices, seeds, coarses, fines, strict=True
    ):
        own = streams(seed)
        assert coarse.shape == (2, int(len(semantic) * 75 / 49.9))
        (expected,) = pipeline.coarse([semantic], [voice], own, options)
        assert_same_tokens(coarse, expected)
        assert_same_tokens(fine, pipeline.fine([expected], [voice], own, options)[0])


def test_texts_and_voices_of_their_own(bark):
    texts = ["Hello, my name is Suno.", [7, 8, 9], "A.", TEXT]
    voices = [None, random_voice(11), random_voice(300, 5).to_arrays(), VOICE]
    options = {"min_eos_p": 0.1, "max_duration_s": 0.3, "top_k": 50}
    made = bark.generate_batch(texts, voices, seeds=7, **options)
    expected = [
        bark.generate(text, voice, seed=7 + i, **options)
        for i, (text, voice) in enumerate(zip(texts, voices, strict=True))
    ]
    assert_same_sound(made, expected)
    assert len({len(audio) for audio in made}) > 1


def test_more_rows_than_go_through_together(quick):
    told = []
    made = quick.generate_batch(["a"] * 11, seeds=0, on_step=lambda *step: told.append(step))
    assert_same_sound(made, [quick.generate("a", seed=seed) for seed in range(11)])
    stages = [stage for i, (stage, *_) in enumerate(told) if not i or told[i - 1][0] != stage]
    assert stages == ["semantic", "coarse", "fine"] * 2  # eight rows, then three


# ---- seeds and tries


def test_a_number_is_the_first_clip_s_seed(quick):
    made = quick.generate_batch(["a", "b"], seeds=5, n=2)
    each = [("a", 5), ("a", 6), ("b", 7), ("b", 8)]
    assert_same_sound(made, [quick.generate(text, seed=seed) for text, seed in each])
    assert_same_sound(quick.generate_batch(["a", "b"], seed=5, n=2), made)
    assert_same_sound(quick.generate_batch(["a", "b"], seeds=np.int64(5), n=2), made)
    assert_same_sound(quick.generate_batch(["a", "b"], seeds=5.0, n=2), made)
    last = 2**63 - 1
    ends = [quick.generate("a", seed=seed) for seed in (last, 0)]
    assert_same_sound(quick.generate_batch(["a"], seeds=last, n=2), ends)


@pytest.mark.parametrize("seeds", [[9, 2, 9], (9, 2, 9), np.array([9, 2, 9]), range(9, 12)])
def test_a_seed_for_each_clip(quick, seeds):
    made = quick.generate_batch(["a"], seeds=seeds, n=3)
    assert_same_sound(made, [quick.generate("a", seed=seed) for seed in seeds])
    assert np.array_equal(made[0], made[2]) == (seeds[0] == seeds[2])


def test_without_seeds_clips_draw_from_torch_s_stream_one_after_the_other(quick):
    torch.manual_seed(4)
    made = quick.generate_batch(["a", "b", "c"])
    torch.manual_seed(4)
    assert_same_sound(made, [quick.generate(text) for text in "abc"])


def test_streams_go_on_where_they_were(quick):
    together, apart = streams(1, 2), streams(1, 2)
    made = quick.generate_batch(["a", "b", "c"], seeds=[together[0], together[1], together[0]])
    wanted = [quick.generate(text, seed=apart[i]) for text, i in (("a", 0), ("b", 1), ("c", 0))]
    assert_same_sound(made, wanted)
    made = quick.generate_batch(["a"], seeds=together[0], n=2)
    assert_same_sound(made, [quick.generate("a", seed=apart[0]) for _ in range(2)])
    for mine, other in zip(together, apart, strict=True):
        assert torch.equal(mine.get_state(), other.get_state())


def test_no_texts_no_audio(quick):
    assert quick.generate_batch([]) == quick.generate_batch([], [], []) == []
    assert quick.generate_batch((), seeds=3, n=4) == []


# ---- rows leave


class _Counting(CachedDecoder):
    """Notes how many rows each step has, and the room that its cache has for rows."""

    def __init__(self, model: GPT, n_merged: int, steps: list[tuple[int, int]]) -> None:
        super().__init__(model, n_merged, new_cache)
        self.steps = steps

    def decode_one(self, tokens, ids):
        logits = super().decode_one(tokens, ids)
        self.steps.append((len(tokens), len(self.cache.lengths)))
        assert len(logits) == len(tokens)
        return logits


def test_rows_that_have_ended_are_not_decoded(bark, alone, monkeypatch):
    steps: dict[GPT, list[tuple[int, int]]] = {}

    def counting(model: GPT, n_merged: int, choice: fast.Choice) -> Decoder:
        return _Counting(model, n_merged, steps.setdefault(model, []))

    monkeypatch.setattr(bark.pipeline, "new_decoder", counting)
    seeds = (3, 25, 32, 54)
    made = bark.generate_batch([TEXT] * 4, VOICE, seeds, **FREE)
    assert_same_sound(made, [bark.decode(alone[seed].fine) for seed in seeds])
    lengths = [LENGTHS[seed] for seed in seeds]
    # The first of S + 1 tokens, of which the last is the end, comes of the prompt.
    wanted = [sum(n > step for n in lengths) for step in range(max(lengths))]
    assert steps[bark.model("semantic")] == [(n, n) for n in wanted]
    windows = [n for n, _ in steps[bark.model("coarse")]]
    assert windows[0] == 3 and windows[-1] == 1 and sorted(windows, reverse=True) == windows


@pytest.mark.parametrize("n_embd", [32, 512])
def test_rows_that_stay_go_on_as_if_the_others_had_never_been(n_embd):
    shape = {"block_size": 300, "n_layer": 2, "n_head": 2, "n_embd": n_embd}
    model = random_gpt(GPTConfig(input_vocab_size=90, output_vocab_size=70, **shape))
    decoder, plain, ids = CachedDecoder(model, 0, new_cache), UncachedDecoder(model), slice(5, 65)
    prompts = [torch.randint(90, (n,)) for n in (140, 9, 31, 128)]
    with torch.inference_mode():
        for one in (decoder, plain):
            one.prefill(prompts, ids)
        assert isinstance(decoder.cache, RowSumCache) == (n_embd == 512)
        for rows in ([0, 1, 2, 3], [0, 2, 3], [2, 1], [0]):
            tokens = torch.randint(90, (len(rows),))
            for one in (decoder, plain):
                assert one.keep(rows)
            ours, theirs = (one.decode_one(tokens, ids) for one in (decoder, plain))
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
        again = prompts[:1]  # as many rows as are left
        ours, theirs = (one.prefill(again, ids) for one in (decoder, plain))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_recorded_steps_of_a_batch_are_those_step_by_step(bark, alone, monkeypatch):
    made: dict[GPT, GraphDecoder] = {}

    def recording(model: GPT, n_merged: int, choice: fast.Choice) -> Decoder:
        return made.setdefault(model, GraphDecoder(model, n_merged))

    monkeypatch.setattr(bark.pipeline, "new_decoder", recording)
    for seeds in ((25, 32, 49), (54, 32)):
        audio = bark.generate_batch([TEXT] * len(seeds), VOICE, seeds, **FREE)
        assert_same_sound(audio, [bark.decode(alone[seed].fine) for seed in seeds])
    assert set(made) == {bark.model("semantic"), bark.model("coarse")}


def test_greedy_rows_are_those_of_the_specification(bark):
    """Both loops on the decoder that computes each step from the whole sequence."""
    voices = [None, random_voice(11)]
    semantics = [torch.randint(10_000, (n,)) for n in (3, 1)]
    model, greedy = bark.model("coarse"), Sampling(0)
    args = (semantics, voices, GENERATION, greedy, [None, None])
    plain = generate_coarse(model, *args, decoder=UncachedDecoder)
    options = Options(temperature=0, waveform_temperature=0, fine_temperature=0)
    coarses = bark.pipeline.coarse(semantics, voices, [None, None], options)
    fines = bark.pipeline.fine(coarses, voices, [None, None], options)
    expected = generate_fine(bark.model("fine"), plain, voices, GENERATION, greedy, [None, None])
    for one, two in zip([*coarses, *fines], [*plain, *expected], strict=True):
        assert_same_tokens(one, two)


# ---- what callers get wrong


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("Hi",), {}, r"texts must be a list; for one text use generate, or \['Hi'\]"),
        ((b"Hi",), {}, "texts must be a list, not bytes"),
        ((None,), {}, "texts must be a list, not NoneType"),
        (({"a": "Hi"},), {}, "texts must be a list, not dict"),
        (({"Hi"},), {}, "texts must be a list, not set"),
        ((["a", "b"], [None]), {}, "there are 2 texts and 1 voices; give one for each"),
        ((["a"],), {"seeds": [1, 2]}, "there are 1 clips and 2 seeds; give one for each"),
        ((["a", "b"],), {"seeds": [1, 2], "n": 2}, "there are 4 clips and 2 seeds"),
        ((["a"],), {"n": 0}, "n must be a positive whole number, got 0"),
        ((["a"],), {"n": True}, "n must be a positive whole number, got True"),
        ((["a"],), {"n": 1.5}, "n must be a positive whole number, got 1.5"),
        ((["a"],), {"seeds": -1}, r"seed must be a whole number in \[0, 2\*\*63\), got -1"),
        ((["a"],), {"seeds": 1.5}, "seed must be a whole number"),
        ((["a"],), {"seeds": True}, "seed must be a whole number"),
        ((["a"],), {"seeds": "1"}, "seed must be a whole number in .*, got '1'"),
        ((["a", "b"],), {"seeds": [1, "x"]}, r"^seeds\[1\]: seed must be a whole number"),
        ((["a"],), {"seeds": 1, "seed": 2}, "seed and seeds were both given"),
        ((["a", "", "b"],), {}, r"^texts\[1\]: the text is empty"),
        ((["a", "b", " \n"],), {"n": 3}, r"^texts\[2\]: the text is empty"),
        ((["a", None],), {}, r"^texts\[1\]: text must hold whole numbers"),
        ((["a", 5],), {}, r"^texts\[1\]: text must be str or token ids, got 5"),
        ((["a", []],), {}, r"^texts\[1\]: text holds no ids"),
        ((["a", [10**9]],), {}, r"^texts\[1\]: text must hold ids"),
        ((["a"],), {"temperature": -1}, "temperature must be"),
    ],
)
def test_bad_input_is_told_in_words(quick, args, options, message):
    with pytest.raises(ValueError, match=message):
        quick.generate_batch(*args, **options)


def test_a_voice_that_is_not_there_is_named(quick, tmp_path: Path):
    with pytest.raises(VoiceError, match=r"^texts\[1\]: no voice 'nobody'"):
        quick.generate_batch(["a", "b"], [None, "nobody"])
    with pytest.raises(FileNotFoundError, match=r"^texts\[2\]: no voice file at .*none\.npz"):
        quick.generate_batch(["a"] * 3, [None, None, tmp_path / "none.npz"])
    with pytest.raises(VoiceError, match="no voice 'nobody'"):
        quick.generate_batch(["a"], "nobody")


def test_knobs_of_long_texts_are_none_of_a_batch(quick):
    with pytest.raises(TypeError, match="history"):
        quick.generate_batch(["a"], history="chained")


def test_nothing_is_made_if_one_is_wrong(quick):
    told: list[object] = []
    with pytest.raises(ValueError):
        quick.generate_batch(["a", ""], on_step=lambda *step: told.append(step))
    assert not told


@pytest.mark.filterwarnings("default")
def test_warnings_say_which_clips_ended_at_once():
    bark = Bark.from_pretrained("random")
    texts = ["One.", "Two.", "Three."]
    with pytest.warns(UserWarning) as told:
        clips = bark.generate_batch(texts, seeds=[0, 1, 2], min_eos_p=0.0)
    assert [len(clip) for clip in clips] == [0, 0, 0]
    assert [str(one.message).partition(" at its")[0] for one in told] == [
        "the model ended the text of clips 0, 1, 2 (counted from 0)"
    ]
    with pytest.warns(UserWarning, match="ended the text at its first step"):
        bark.generate_batch(texts[:1], seeds=[0], min_eos_p=0.0)
