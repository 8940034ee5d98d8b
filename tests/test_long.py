"""Long texts and dialogs: which voice each piece has, the silences, and what is made again."""

import re

import numpy as np
import pytest
import random_bark
import torch
from checkpoints import TINY, run_python
from random_bark import assert_same_tokens, random_voice

from minibark import Bark, DialogError, LongOptions, Options, Voice, VoiceError
from minibark.speech.faults import fault, repeats, silent_share
from minibark.speech.reading import Reading

TEXT = "Ab cd. He is. We go. Oh no. Me too."  # a token a letter, and eight tokens a piece
PIECES = TEXT.replace(". ", ".|").split("|")
SHORT = {"max_duration_s": 0.3, "allow_early_stop": False}  # all have 15 tokens
CALM = {"retries": 0, "goal": 20}
RATE_HZ = 49.9
CONFIG = random_bark.GENERATION
EMPTY_FIRST = 58  # the seed with which `ending` ends the first of several pieces at once


@pytest.fixture(scope="module")
def quick() -> Bark:
    """A Bark of very small lengths, for what does not depend on them."""
    return Bark(TINY, device="cpu", seed=3)


@pytest.fixture(scope="module")
def voice(quick) -> Voice:
    return quick.generate_voice("voice", seed=77, **SHORT)


@pytest.fixture(scope="module")
def ending(tmp_path_factory) -> Bark:
    return random_bark.ending_bark(tmp_path_factory.mktemp("long") / "bark")


@pytest.fixture(scope="module")
def tiny() -> Bark:
    return Bark.from_pretrained("tiny", device="cpu")


def read(bark, text, voice=None, plan=None, **options):
    """The pieces as they were said."""
    plan = LongOptions(**(CALM if plan is None else plan))
    return list(Reading(bark, Options(**options), plan).text(text, voice).pieces())


def assert_same_voice(ours: Voice, theirs: Voice) -> None:
    for part in ("semantic", "coarse", "fine"):
        assert_same_tokens(getattr(ours, part), getattr(theirs, part))


pytestmark = pytest.mark.filterwarnings("ignore:.*(came out empty|ended the text):UserWarning")


# ---- pieces by hand


def test_one_piece_is_what_generate_says(quick, voice):
    (one,) = read(quick, "Me too.", voice, {}, seed=5, **SHORT)
    assert_same_voice(one.voice, quick.generate_voice("Me too.", voice, seed=5, **SHORT))
    assert (one.piece.text, one.seed, one.fault) == ("Me too.", 5, "")
    sound = quick.generate_long("Me too.", voice, seed=5, **SHORT)
    np.testing.assert_array_equal(sound, quick.generate("Me too.", voice, seed=5, **SHORT))


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(
    ("history", "begins_from"),
    [
        # Which piece each goes on from; -1 is the given voice or, without one, nothing.
        ("fixed", {True: [-1, -1, -1, -1, -1], False: [-1, 0, 0, 0, 0]}),
        ("chained", {True: [-1, 0, 1, 2, 3], False: [-1, 0, 1, 2, 3]}),
        ("reset:2", {True: [-1, 0, -1, 2, -1], False: [-1, 0, 0, 2, 0]}),
        ("reset:3", {True: [-1, 0, 1, -1, 3], False: [-1, 0, 1, 0, 3]}),
    ],
)
def test_histories_are_those_by_hand(quick, voice, history, begins_from, is_given):
    given = voice if is_given else None
    made: list[Voice] = []
    for index, (text, source) in enumerate(zip(PIECES, begins_from[is_given], strict=True)):
        before = given if source < 0 else made[source]
        made.append(quick.generate_voice(text, before, seed=40 + index, **SHORT))
    assert not torch.equal(made[1].fine, made[2].fine)
    spoken = read(quick, TEXT, given, CALM | {"history": history}, seed=40, **SHORT)
    assert [one.piece.text for one in spoken] == PIECES
    assert [one.seed for one in spoken] == [40, 41, 42, 43, 44]
    for one, expected in zip(spoken, made, strict=True):
        assert_same_voice(one.voice, expected)
    sound = quick.generate_long(TEXT, given, seed=40, history=history, silence_s=0, **CALM, **SHORT)
    wanted = np.concatenate([quick.decode(one.fine) for one in made])
    np.testing.assert_allclose(sound, wanted, atol=1e-4, rtol=0)


def test_what_is_too_short_for_a_voice_is_not_gone_on_from(ending):
    # Without a voice the first piece of this seed is empty, and the second is not.
    text = "Yes or no? " * 30
    options = {"seed": EMPTY_FIRST, "min_eos_p": None, "max_duration_s": 0.5}
    with pytest.warns(UserWarning, match="piece 1 .* came out empty and is kept as it is"):
        first, second, third = read(ending, text, None, CALM | {"goal": 110}, **options)[:3]
    assert len(first.voice.semantic) == 0 < len(second.voice.semantic)
    options = {"min_eos_p": None, "max_duration_s": 0.5}
    for one, before in ((second, None), (third, second.voice)):
        assert_same_voice(
            one.voice, ending.generate_voice(one.piece.text, before, seed=one.seed, **options)
        )


def test_without_a_seed_torch_s_stream_decides_the_first(quick):
    def seeds(seed: object) -> list[int]:
        return [one.seed for one in read(quick, "Ab cd. Ef gh.", seed=seed, **SHORT)]

    torch.manual_seed(1)
    first = seeds(None)
    assert first[1] == first[0] + 1
    assert seeds(None) != first
    torch.manual_seed(1)
    assert seeds(None) == first
    stream = torch.Generator().manual_seed(1)
    assert seeds(stream) != seeds(stream)
    assert seeds(stream.manual_seed(1)) == seeds(torch.Generator().manual_seed(1))


# ---- silences


def test_silences_have_their_samples(quick):
    text = "[pause:1s] Ab cd. [pause:500ms] [pause: 250ms] Ef gh. Ij kl. [pause 2s]"
    rate = quick.sample_rate
    sounds = [quick.decode(one.voice.fine) for one in read(quick, text, seed=1, **SHORT)]
    gaps = [1, 0.75 + 0.1, 0.1, 2]
    expected = [np.zeros(rate, np.float32)]
    for sound, gap in zip(sounds, gaps[1:], strict=True):
        expected += [sound, np.zeros(round(gap * rate), np.float32)]
    sound = quick.generate_long(text, seed=1, silence_s=0.1, **CALM, **SHORT)
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, np.concatenate(expected), atol=1e-4, rtol=0)


def test_one_piece_has_no_silence_but_what_is_asked_for(quick):
    plain = quick.generate("Ab cd.", seed=1, **SHORT)
    assert len(quick.generate_long("Ab cd.", seed=1, **CALM, **SHORT)) == len(plain)
    sound = quick.generate_long("Ab cd. [pause:60s]", seed=1, **CALM, **SHORT)
    assert len(sound) == len(plain) + 60 * quick.sample_rate
    assert not sound[len(plain) :].any() and sound[: len(plain)].any()


# ---- faults


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(np.arange(int(24_000 * seconds)) / 9)).astype(np.float32)


def words(n: int) -> torch.Tensor:
    """Tokens without a pattern."""
    return torch.randperm(10_000, generator=torch.Generator().manual_seed(1))[:n]


def test_speech_of_its_length_has_no_fault():
    assert fault(words(100), tone(2), 2.0, CONFIG, 24_000) == ""
    one_word = words(12)
    assert fault(one_word, tone(0.24), 0.2, CONFIG, 24_000) == ""


@pytest.mark.parametrize(
    ("semantic", "audio", "expected_s", "words_of_it"),
    [
        (words(0), tone(0), 2.0, "came out empty"),
        (words(768), tone(15.4), 10.0, "did not end"),
        (words(20), tone(0.4), 4.0, r"is too short for its text \(0.4 s\)"),
        (words(500), tone(10), 2.0, r"is too long for its text \(10.0 s\)"),
        (torch.cat([words(40)] * 3), tone(2.4), 2.0, "repeats itself"),
        (words(100), tone(2, 0.001), 2.0, "is mostly silent"),
        (words(100), np.concatenate((tone(0.4), tone(1.6, 0))), 2.0, "is mostly silent"),
    ],
)
def test_each_fault_has_its_words(semantic, audio, expected_s, words_of_it):
    assert re.fullmatch(words_of_it, fault(semantic, audio, expected_s, CONFIG, 24_000))


def test_a_length_that_was_asked_for_is_no_fault():
    for semantic, audio, expected_s in (
        (words(768), tone(15.4), 10.0),
        (words(20), tone(0.4), 4.0),
        (words(500), tone(10), 2.0),
    ):
        assert fault(semantic, audio, expected_s, CONFIG, 24_000, is_limited=True) == ""
    assert fault(words(0), tone(0), 1.0, CONFIG, 24_000, is_limited=True) == "came out empty"


@pytest.mark.parametrize("period", [1, 2, 3, 7, 25, 49])
@pytest.mark.parametrize("place", [0, 33])
def test_a_loop_is_found_where_it_is_long_enough(period, place):
    pattern = words(period) + 1
    least = max(3 * period, int((3.0 if period == 1 else 1.5) * RATE_HZ) + 1)
    for length, is_loop in ((least, True), (least - 1, False)):
        loop = pattern.repeat(-(-length // period))[:length]
        others = torch.full((90,), -1).cumsum(0)  # no token twice, and none of the pattern
        around = torch.cat((others[:place], loop, others[place:]))
        assert repeats(around, RATE_HZ) == is_loop, length


def test_a_pattern_of_over_a_second_is_no_loop_and_short_tokens_are_none():
    assert not repeats(torch.cat([words(60)] * 4), RATE_HZ)
    for n in range(4):
        assert not repeats(torch.zeros(n, dtype=torch.int64), RATE_HZ)
    assert repeats(torch.zeros(150, dtype=torch.int64), RATE_HZ)
    assert not repeats(torch.zeros(149, dtype=torch.int64), RATE_HZ)


def test_the_silent_share():
    half = np.concatenate((tone(1), np.zeros(24_000, np.float32)))
    assert silent_share(half, 24_000) == 0.5
    assert silent_share(tone(1), 24_000) == 0 == silent_share(tone(0.001), 24_000)
    assert silent_share(tone(1, 0.004), 24_000) == 1 and silent_share(tone(1, 0.005), 24_000) == 0


def test_a_piece_that_never_ends_is_tried_again_so_many_times(quick):
    told: list[str] = []
    count = {"semantic": 0}

    def on_step(stage: str, done: int, total: int) -> None:
        count[stage] = count.get(stage, 0) + (done == total)

    with pytest.warns(UserWarning) as warned:
        sound = quick.generate_long("Ab cd.", temperature=0, seed=4, retries=2, on_step=on_step)
    told = [str(one.message) for one in warned]
    begin = "piece 1 ('Ab cd.') did not end and is "
    again = begin + "made again with another seed"
    assert told == [again, again, begin + "kept as it is"]
    assert {one.filename for one in warned} == {__file__}
    assert count["semantic"] == 3
    assert len(sound)


def test_a_piece_that_came_out_empty_is_made_again(ending):
    options = {"min_eos_p": None, "max_duration_s": 1.0}
    with pytest.warns(UserWarning, match=r"^piece 1 \('Yes\?'\) came out empty and is made again"):
        (one,) = read(ending, "Yes?", random_voice(160), {"retries": 2}, seed=25, **options)
    assert one.seed != 25 and one.fault == ""
    alone = ending.generate_voice("Yes?", random_voice(160), seed=one.seed, **options)
    assert_same_voice(one.voice, alone)
    # ... with a seed that no other piece begins with.
    assert one.seed - 25 > 10_000


def test_only_what_went_wrong_is_made_again(ending):
    """Of pieces that are made together; the others are what they are at once."""
    text, before = "Yes or no? " * 40, random_voice(160)
    options = {"seed": EMPTY_FIRST, "min_eos_p": None, "max_duration_s": 0.4}
    with pytest.warns(UserWarning, match="came out empty"):
        at_once = read(ending, text, before, CALM | {"goal": 110}, **options)
    with pytest.warns(UserWarning, match="made again"):
        retried = read(ending, text, before, {"goal": 110, "retries": 1}, **options)
    n_empty = 0
    for first, second in zip(at_once, retried, strict=True):
        if first.fault:
            n_empty += 1
            assert second.seed == first.seed + 1_000_003 or second.fault
        else:
            assert second.seed == first.seed
            assert_same_voice(first.voice, second.voice)
    assert 0 < n_empty < len(at_once)


# ---- dialogs


def pitch_hz(sound: np.ndarray) -> float:
    """The middle of the pitches of loud frames, each the best period of its autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), 1536)[::480]
    frames = frames[frames.std(1) > 0.4 * frames.std(1).max()]
    power = np.abs(np.fft.rfft(frames - frames.mean(1, keepdims=True), 3072)) ** 2
    lags = np.arange(24_000 // 320, 24_000 // 70)
    same = np.fft.irfft(power)
    same = same[:, lags] / same[:, :1] * (1536 / (1536 - lags))
    best = same.argmax(1)
    return float(np.median(24_000 / lags[best[same.max(1) > 0.7]]))


def test_speakers_have_voices_of_their_own(tiny):
    text = "Bob: We walked slowly along the river.\nANN: The doctor told her to stay in bed.\n"
    text += "bob: A small bird sat on the garden wall."
    whole = tiny.generate_dialog(text, {"Ann": "female", "Bob": "male"}, seed=3, silence_s=0.5)
    (gaps,) = np.nonzero(np.convolve(whole == 0, np.ones(12_000), "valid") == 12_000)
    assert len(gaps) == 2
    sounds = whole[: gaps[0]], whole[gaps[0] + 12_000 : gaps[1]], whole[gaps[1] + 12_000 :]
    for sound, (low, high) in zip(sounds, [(85, 115), (172, 234), (85, 115)], strict=True):
        assert low < pitch_hz(sound) < high


def test_speakers_chain_each_for_himself(quick, voice):
    text = "A: Ab cd.\nB: He is.\nA: We go.\nB: Oh no.\nA: Me too."
    plan = LongOptions(history="chained", **CALM)
    reading = Reading(quick, Options(seed=8, **SHORT), plan)
    spoken = list(reading.dialog(text, {"A": voice, "B": None}).pieces())
    befores = [voice, None, spoken[0].voice, spoken[1].voice, spoken[2].voice]
    for index, (one, before) in enumerate(zip(spoken, befores, strict=True)):
        wanted = quick.generate_voice(PIECES[index], before, seed=8 + index, **SHORT)
        assert_same_voice(one.voice, wanted)


# ---- what callers get wrong


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the text is empty; give at least one word"),
        (" \n ", {}, "the text is empty"),
        ("[pause:1s]", {}, "there is nothing to say but pauses"),
        ("... !", {}, "there is nothing to say; give at least one word"),
        ("Ab. [pause:-1s]", {}, r"bad pause '\[pause:-1s\]': expected \[pause:1.5s\]"),
        ("Ab. [pause:61s]", {}, "from 0 to 60 s"),
        ("Ab. [pause:1s", {}, "bad pause"),
        (["Ab.", "Cd."], {}, "text must be one str, not list"),
        (b"Ab.", {}, "text must be one str, not bytes"),
        (None, {}, "text must be one str, not NoneType"),
        ("Ab.", {"history": "reset:0"}, "history must be fixed, chained or reset:N with N from 1"),
        ("Ab.", {"history": "loose"}, "history must be"),
        ("Ab.", {"history": None}, "history must be"),
        ("Ab.", {"silence_s": -1}, r"silence_s must be a number in \[0, 60\], got -1"),
        ("Ab.", {"silence_s": None}, "silence_s must be"),
        ("Ab.", {"silence_s": float("nan")}, "silence_s must be"),
        ("Ab.", {"retries": -1}, "retries must be"),
        ("Ab.", {"retries": None}, "retries must be"),
        ("Ab.", {"goal": 19}, r"goal must be a whole number in \[20, 1000\]"),
        ("Ab.", {"language": "English"}, "language must be a code"),
        ("Ab.", {"language": None}, "language must be a code"),
        ("Ab.", {"temperature": -1}, "temperature must be"),
    ],
)
def test_bad_input_is_told_in_words_before_the_first_step(quick, text, options, message):
    told: list[object] = []
    with pytest.raises(ValueError, match=message):
        quick.generate_long(text, on_step=lambda *step: told.append(step), **options)
    assert not told


def test_an_unknown_voice_is_told(quick):
    with pytest.raises(VoiceError, match="no voice 'nobody'"):
        quick.generate_long("Ab.", "nobody")
    with pytest.raises(VoiceError, match="no voice 'nobody'"):
        quick.generate_dialog("A: Ab.", {"A": "nobody"})
    with pytest.raises(VoiceError, match="a voice is a name"):
        quick.generate_dialog("A: Ab.", {"A": 7})


@pytest.mark.parametrize(
    ("text", "speakers", "message"),
    [
        ("C: Ab.", {"A": None}, "line 1: unknown speaker 'C'"),
        ("A: Ab.", {}, "needs speakers"),
        ("A: Ab.", ["A"], "speakers must be a mapping, name to voice, not list"),
        ("", {"A": None}, "the dialog is empty"),
        ("A: Ab.\nA: [pause:1s]", {"A": None}, "part 2, A: there is nothing to say but pauses"),
        ("A: Ab. [pause:-1s]", {"A": None}, "part 1, A: bad pause"),
        ("A: Ab.\nB: ...", {"A": None, "B": None}, "part 2, B: there is nothing to say"),
    ],
)
def test_a_bad_dialog_is_told(quick, text, speakers, message):
    with pytest.raises(DialogError, match=message):
        quick.generate_dialog(text, speakers)


def test_a_list_is_no_dialog(quick):
    with pytest.raises(ValueError, match="text must be one str, not list"):
        quick.generate_dialog(["A: Ab."], {"A": None})


def test_without_sentencex_short_texts_are_said_and_long_ones_name_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['sentencex'] = None\n"
        "from minibark import Bark, MissingExtraError\n"
        "from minibark.commands.main import main\n"
        "bark = Bark.from_pretrained('random', device='cpu')\n"
        "print(len(bark.generate_long('One. Two.', max_duration_s=0.1, retries=0)) > 0)\n"
        "print(len(list(bark.stream('One. Two.', max_duration_s=0.1, retries=0))))\n"
        "text = 'One sentence, and then another one. ' * 9\n"
        "for call in (bark.generate_long, bark.stream):\n"
        "    try: call(text)\n"
        "    except MissingExtraError as error: print(error)\n"
        "common = ['-q', '--model', 'random', '--max-duration', '0.1', '--seed', '1', '-o']\n"
        "print(main(['say', 'One. Two.', *common, sys.argv[1]]))\n"
        "print(main(['say', text, *common, sys.argv[2]]))\n"
    )
    done = run_python(code, tmp_path / "short.wav", tmp_path / "long.wav")
    line = "a text of several pieces needs the package sentencex; pip install 'minibark[long]'"
    assert done.stdout.splitlines() == ["True", "1", line, line, "0", "1"], done.stderr
    assert done.stderr.splitlines()[-1] == f"minibark: {line}"
    assert [path.name for path in tmp_path.iterdir()] == ["short.wav"]
