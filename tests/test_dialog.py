"""Dialogs: who says what, and no word in another's mouth."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibark.speech.dialog import DialogError, Line, parse_dialog, parse_speakers

SPEAKERS = {"Anna": "v2/en_speaker_6", "Old Man": None, "小明": "a.npz"}

DIALOG = """\ufeff
Anna: Did you hear it?
OLD MAN : Hear what? It is 12:30: too late for ghosts.

  anna:Listen...
the bell rang twice: once for you,
[pause:1s]
    Note: and once for me.
小明：我也听见了：两声。
old  man: [laughs]
   Go home.\r\nANNA: No.
"""


def test_a_dialog():
    assert parse_dialog(DIALOG, SPEAKERS) == [
        Line("Anna", "Did you hear it?"),
        Line("Old Man", "Hear what? It is 12:30: too late for ghosts."),
        Line(
            "Anna",
            "Listen...\nthe bell rang twice: once for you,\n[pause:1s]\nNote: and once for me.",
        ),
        Line("小明", "我也听见了：两声。"),
        Line("Old Man", "[laughs]\nGo home."),
        Line("Anna", "No."),
    ]


def test_text_may_begin_on_the_next_line():
    assert parse_dialog("Anna:\n\nYes.\nNo.", SPEAKERS) == [Line("Anna", "Yes.\nNo.")]


@pytest.mark.parametrize(
    "text",
    [
        "he said: no",
        "12:30 it rang",
        "12: so many",
        "https://example.com",
        "Https://example.com",
        "[pause:1s]",
        "“Well”: a word",
        "The man whom she had met: Tom",
        "Ratio 3:4",
        "A" * 61 + ": no name",
        ": so",
    ],
)
def test_a_colon_in_text_is_text(text):
    assert parse_dialog(f"Anna: Yes.\n{text}", SPEAKERS) == [Line("Anna", f"Yes.\n{text}")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Ana: Hi.", r"^line 2: unknown speaker 'Ana'; did you mean Anna\?; known: Anna, Old Man,"),
        ("ana: Hi.", r"unknown speaker 'ana'; did you mean Anna\?"),
        ("BEN: Hi.", r"unknown speaker 'BEN'; known: Anna, Old Man, 小明\. Indent the line if"),
        ("Ben:", "unknown speaker 'Ben'"),
        ("Ben：Hi.", "unknown speaker 'Ben'"),
        ("Anna (softly): Hi.", r"unknown speaker 'Anna \(softly\)'; did you mean Anna"),
        ("Dr. O'Neil: Hi.", "unknown speaker"),
        ("SPEAKER 2: Hi.", "unknown speaker 'SPEAKER 2'"),
        ("小红：你好", r"unknown speaker '小红'; did you mean 小明"),
        ("राम: हाँ", "unknown speaker 'राम'"),
        ("Note: this", "unknown speaker 'Note'"),
    ],
)
def test_an_unknown_speaker_is_named_with_the_known(line, message):
    with pytest.raises(DialogError, match=message):
        parse_dialog(f"Anna: Yes.\n{line}", SPEAKERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n  Hello.\nAnna: Yes.", r"^line 2 has no speaker: expected NAME: text, got 'Hello\.'"),
        ("[pause:1s]\nAnna: Yes.", "line 1 has no speaker"),
        ("", "the dialog is empty"),
        ("\n \n", "the dialog is empty"),
        ("Anna:\nOld Man: Yes.", "line 1: Anna says nothing"),
        ("Anna: Yes.\n\nOld man:  \n", "line 3: Old Man says nothing"),
    ],
)
def test_a_bad_dialog_names_the_line(text, message):
    with pytest.raises(DialogError, match=message):
        parse_dialog(text, SPEAKERS)


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        ({}, "needs speakers"),
        ({"": 1}, "without a colon, got ''"),
        ({"A:B": 1}, "without a colon, got 'A:B'"),
        ({7: 1}, "got 7"),
        ({"Anna": 1, "ANNA": 2}, "'Anna' and 'ANNA' differ by case alone"),
    ],
)
def test_bad_speakers_are_refused(speakers, message):
    with pytest.raises(DialogError, match=message):
        parse_dialog("Anna: Yes.", speakers)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="bytes"):
        parse_dialog(b"Anna: Yes.", SPEAKERS)


def test_speakers_of_the_command_line():
    options = ["Anna=v2/en_speaker_6", " Old Man = a=b.npz "]
    assert parse_speakers(options) == {"Anna": "v2/en_speaker_6", "Old Man": "a=b.npz"}
    assert list(parse_speakers(["B=x", "A=x"])) == ["B", "A"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Anna"], "expected NAME=VOICE, got 'Anna'"),
        (["=x"], "expected NAME=VOICE"),
        (["Anna="], "expected NAME=VOICE"),
        (["Anna=x", "Anna=y"], "'Anna' is given twice"),
        (["Anna=x", "anna=y"], "differ by case alone"),
        (["A:B=x"], "without a colon"),
        ([], "needs speakers"),
    ],
)
def test_bad_speakers_of_the_command_line_are_refused(options, message):
    with pytest.raises(DialogError, match=message):
        parse_speakers(options)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(SPEAKERS)), st.text("ab. 12:\n[", min_size=1)), min_size=1
    )
)
@example([("Anna", "a: b\n1: 2")])
def test_what_is_written_is_read_back(said):
    said = [(name, "\n".join(text.split("\n"))) for name, text in said if text.strip()]
    lines = [
        Line(name, "\n".join(part.strip() for part in text.split("\n") if part.strip()))
        for name, text in said
    ]
    # Indented, so that no line of text can open as one with a speaker.
    written = "\n".join(f"{name}: " + text.replace("\n", "\n\t") for name, text in said)
    if said:
        assert parse_dialog(written, SPEAKERS) == lines


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(
        st.sampled_from(["Anna", "anna", "Ben", ":", "：", " ", "\n", "x", "12", "(", ")", "小明"])
    )
)
def test_any_text_is_a_dialog_without_loss_or_an_error(parts):
    text = "".join(parts)
    try:
        lines = parse_dialog(text, SPEAKERS)
    except DialogError as error:
        assert "\n" not in str(error)
        return
    read = "".join("".join(line.text.split()) for line in lines)
    rest = iter("".join(text.split()))
    assert all(character in rest for character in read)
    assert all(line.text.strip() == line.text != "" for line in lines)
