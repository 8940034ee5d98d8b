"""Texts as people have them: told of what cannot be read, made plain where that is asked for."""

import warnings
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibark import Bark
from minibark.commands.main import main
from minibark.text import LEVELS, plain, readable, readable_ids
from minibark.tokenizer import Tokenizer

ASCII = Tokenizer.characters()


@cache
def tiny() -> Bark:
    return Bark.from_pretrained("tiny", device="cpu")


def told(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don’t “know”…", 'I don\'t "know"...'),
        ("well — then", "well  -  then"),
        ("1990–2000, semi‑final", "1990-2000, semi-final"),
        ("ﬁne ﬂow", "fine flow"),
        ("a\u00a0b\u202fc", None),  # spaces are one to the tokenizer
        ("a\u00a0b’", "a\u00a0b'"),
        ("naïve café, Ångström", "naive cafe, Angstrom"),
        ("cafe\u0301", "cafe"),
        ("½ ①", "1/2 1"),
        ("plain ASCII, with *stars* and #marks [laughs]", None),
        ("Привет 😀", None),
    ],
)
def test_plain_writes_what_the_vocabulary_lacks_as_what_it_has(text, expected):
    assert plain(text, ASCII) == (text if expected is None else expected)


def test_plain_leaves_what_the_vocabulary_has():
    has = Tokenizer([*ASCII.vocab, "’", "é", "##é"])
    assert plain("don’t, café “x”", has) == 'don’t, café "x"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\nSome **bold** and `code`.", "Title\n\nSome bold and code."),
        ("- one\n- two\n> quoted", "one\ntwo\nquoted"),
        ("See [the page](https://x.org/a) and ![a cat](cat.png).", "See the page and a cat."),
        (
            "an *odd* _word_ and snake_case_name, 2 * 3 * 4",
            "an odd word and snake_case_name, 2 * 3 * 4",
        ),
        ("Hi! 😀👍🏽 Bye 🇩🇪.", "Hi!   Bye  ."),
        ('<speak>Hi <break time="1s"/>there</speak>', " Hi  there "),
        ("[laughs] ♪ la la ♪ 3 < 4 > 2", "[laughs] ♪ la la ♪ 3 < 4 > 2"),
        ("```python\nx = 1\n```\nend", "\nx = 1\n\nend"),
        ("~~gone~~ here", "gone here"),
        ("---\nnext", "\nnext"),
    ],
)
def test_all_drops_marks_and_keeps_words(text, expected):
    notes = Tokenizer([*ASCII.vocab, "♪"])
    assert plain(text, notes, "all") == expected


@given(st.text(max_size=60), st.sampled_from(LEVELS))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_plain_and_stays_so(text, level):
    once = plain(text, ASCII, level)
    lost = [word for word, _ in ASCII.words(text) if not ASCII.reads(word)]
    if level == "off" or (level == "plain" and not lost):
        assert once == text
    if level == "plain":
        assert plain(once, ASCII, level) == once
        assert sum(map(len, once.split())) >= len("".join(c for c in once if c in text).split())


def test_long_hostile_text_is_quick():
    for text in (
        "*" * 20_000,
        "[" * 10_000,
        "<" * 20_000,
        "_a" * 10_000,
        "`" * 9_999,
        "#" * 10**5,
    ):
        plain(text, ASCII, "all")
        told(lambda text=text: readable_ids(text + " a", ASCII))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Привет, как дела?",
            "3 of the 5 words and marks of the text cannot be read by this model: "
            "'Привет', 'как', 'дела'; write it otherwise",
        ),
        ("I don’t know", "'’'; normalize='plain' (--plain-text) makes some readable"),
        (
            "x" * 101,
            "1 of the 1 words and marks of the text cannot be read by this model: "
            "'xxxxxxxxxxxxxxxxx...'",
        ),
        ("ok \ufffd", "'\ufffd'"),
        ("ok \ue000", "U+E000"),
        ("a " + " ".join("абвгдежз"), "'а', 'б', 'в', 'г', 'д' and 3 others"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_warning(text, words):
    (warning,) = told(lambda: readable_ids(text, ASCII))
    assert words in warning


@pytest.mark.parametrize(
    ("text", "words"),
    [("x" * 101, ""), ("x" * 1000 + " y", ""), ("x" * 150 + "é", "'xxxxxxxxxxxxxxxxx...'")],
)
def test_of_a_text_that_is_cut_long_words_are_read(text, words):
    warnings = told(lambda: readable(text, ASCII, is_cut=True))
    assert [words in warning for warning in warnings] == ([True] if words else [])


def test_the_released_vocabulary_lacks_rare_characters_emoji_and_quotes():
    path = (
        Path(__file__).parents[2] / "shared" / "data" / "bert-base-multilingual-cased" / "vocab.txt"
    )
    if not path.is_file():
        pytest.skip(f"no released vocabulary at {path}")
    released = Tokenizer.from_file(path)
    (warning,) = told(lambda: readable_ids("我要吃螺蛳粉 😀", released))
    assert "'蛳', '😀'" in warning
    (warning,) = told(lambda: readable_ids("I don’t “know” — yes…", released))
    assert "--plain-text" in warning
    assert told(lambda: readable_ids("I don’t “know” — yes…", released, "plain")) == []
    assert told(lambda: readable_ids("Schöne Grüße, 你好, नमस्ते, ♪ la ♪", released)) == []


@pytest.mark.parametrize("text", ["[UNK] is what I meant", "Hello, [laughs] 3.5 % of $5 (yes)!"])
def test_what_can_be_read_is_not_told_of(text):
    assert told(lambda: readable_ids(text, ASCII)) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('<speak>Hi <break time="1s"/></speak>', "SSML"),
        ("<prosody rate='slow'>Hi</prosody>", "SSML"),
        ("# Title\nText", "Markdown"),
        ("This is **bold**.", "Markdown"),
        ("See [this](http://x.org).", "Markdown"),
        ("```\ncode\n```", "Markdown"),
    ],
)
def test_markup_is_told_of_unless_it_is_dropped(text, kind):
    (warning,) = told(lambda: readable_ids(text, ASCII))
    assert f"looks like {kind}" in warning and "--plain-text=all" in warning
    assert told(lambda: readable_ids(text, ASCII, "all")) == []


@pytest.mark.parametrize(
    "text", ["I <3 you, 2 * 3", "#1 song", "[laughs] (no)", "a_b_c", "- Hello."]
)
def test_what_only_resembles_markup_is_not_told_of(text):
    assert told(lambda: readable_ids(text, ASCII)) == []


def test_a_text_of_emoji_alone_is_empty_once_they_are_dropped():
    with pytest.raises(ValueError, match="nothing that can be read"):
        readable_ids("😀 🎉", ASCII, "all")


def test_warnings_come_each_time_and_point_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        for _ in range(2):
            tiny().text_to_semantic("Привет.", seed=0, max_duration_s=0.1)
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_tiny_reads_typographic_signs_and_a_released_model_does_not(tmp_path):
    bark = tiny()
    assert bark.normalize == "plain"
    short = {"seed": 0, "max_duration_s": 0.5}
    expected = bark.text_to_semantic("I don't know.", **short)
    assert told(lambda: bark.text_to_semantic("I don’t know.", **short)) == []
    assert bark.text_to_semantic("I don’t know.", **short).equal(expected)
    raw = bark.tokenizer.encode("I don’t know.")
    assert 1 in raw  # ids are what the vocabulary gives, whoever asks it
    off = bark.text_to_semantic("I don’t know.", **short, normalize="off")
    assert off.equal(bark.text_to_semantic(raw, **short))
    bark.save(tmp_path / "copy", voices=[])
    assert Bark.from_pretrained(tmp_path / "copy").normalize == "plain"
    assert Bark.from_pretrained("random").normalize == "off"


def test_generate_takes_it_too_and_so_does_the_command_line(tmp_path, capsys):
    text, short = "**Hi** 😀 there.", {"seed": 0, "max_duration_s": 0.4}
    audio = tiny().generate(text, normalize="all", **short)
    assert (audio == tiny().generate("Hi there.", **short)).all()
    say = ["say", text, "--model", "tiny", "-q", "--seed", "0", "--max-duration", "0.4", "-o"]
    for flags, n_warnings in (("--plain-text=all", 0), ("--plain-text", 2)):
        assert main([*say, str(tmp_path / "a.wav"), flags]) == 0
        assert capsys.readouterr().err.count("warning: ") == n_warnings
    for flags in (["--plain-text"], ["--plain-text", "all"]):  # and the text after them
        assert main(["say", *flags, *say[1:], str(tmp_path / "a.wav")]) == 0


def test_a_text_that_ends_at_the_cap_is_told_of_unless_that_was_asked_for():
    bark = Bark.from_pretrained("random", device="cpu")
    for limit in ({"max_duration_s": 15.4}, {"allow_early_stop": False}):
        assert told(lambda limit=limit: bark.text_to_semantic("a", seed=0, top_k=1, **limit)) == []
    short = [told(lambda seed=seed: tiny().text_to_semantic("Yes.", seed=seed)) for seed in (0, 1)]
    assert short == [[], []]
    bark, n_capped = tiny(), 0
    for seed in range(4):
        with warnings.catch_warnings(record=True) as caught:
            tokens = bark.text_to_semantic("7 " * 60, seed=seed)
        is_capped = len(tokens) == bark.config.generation.max_new_tokens
        assert len(caught) == is_capped
        n_capped += is_capped
        for warning in caught:
            assert "not ended at the longest that the model speaks, 8.3 s" in str(warning.message)
    assert 0 < n_capped
