"""A dialog: lines `NAME: text`, each said by a speaker of its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_HEAD = re.compile(r"([^:：]*)[:：](.*)", re.DOTALL)
_WORD = r"[^\s()（）\[\],;!?\"“”«»…。、，；！？]+"
_NAME = re.compile(rf"(?=[^\W\d_])({_WORD}(?: {_WORD}){{0,2}})(?: ?[(（][^()（）]*[)）])?")
_NEAR = 0.75
_LONGEST_NAME = 60


class DialogError(ValueError):
    """A dialog or its speakers that cannot be used; the text says where and why."""


@dataclass(frozen=True)
class Line:
    """What one speaker says at once.

    Attributes:
        speaker: the name, as the mapping of speakers spells it.
        text: not empty; its own line breaks are kept.
    """

    speaker: str
    text: str


def parse_dialog(text: str, speakers: Mapping[str, object]) -> list[Line]:
    """The lines of a dialog, in order.

    A line that begins with a known name and a colon (`:` or `：`) is that speaker's, whatever its
    case and spacing. Other lines go on with what was said before; empty ones are skipped. A
    colon further on is text.

    So that nobody says another's words by a typing error, a line may not begin as one with a
    speaker does: one to three words with a capital each (`Carol:`, `OLD MAN (softly):`, or of a
    script without capitals, `老王：`), then a colon and a space or the line's end; or something
    near a known name. Text that begins so (`Note: ...`) is indented.

    Args:
        text: the dialog.
        speakers: names, and what they stand for, which is not looked at.

    Raises:
        DialogError: an unknown speaker, text before the first one, a speaker who says nothing, no
            line at all, no speakers, or names that are empty, have a colon or differ by case alone.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    names = _by_key(speakers)
    known = f"known: {', '.join(names.values())}"
    said: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        match = _HEAD.fullmatch(line)
        if match and _key(match[1]) in names:
            said.append((number, names[_key(match[1])], [match[2].strip()]))
            continue
        if match and not line[0].isspace() and _opens_as_speaker(match, names):
            head = " ".join(match[1].split())
            name = _key(re.sub("[(（].*", "", head))
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; did you mean {names[near[0]]}?" if near else ""
            raise DialogError(
                f"line {number}: unknown speaker {head!r}{hint}; {known}. "
                "Indent the line if it is text"
            )
        if not said:
            raise DialogError(
                f"line {number} has no speaker: expected NAME: text, got {line.strip()[:40]!r}; "
                f"{known}"
            )
        said[-1][2].append(line.strip())
    if not said:
        raise DialogError("the dialog is empty: expected lines NAME: text")
    for number, name, parts in said:
        if not any(parts):
            raise DialogError(f"line {number}: {name} says nothing; expected {name}: text")
    return [Line(name, "\n".join(filter(None, parts))) for _, name, parts in said]


def parse_speakers(options: Iterable[str]) -> dict[str, str]:
    """Speakers of `NAME=VOICE` each, as the command line has them: name -> voice.

    Raises:
        DialogError: not of that form, or a name that `parse_dialog` refuses.
    """
    voices: dict[str, str] = {}
    for option in options:
        name, separator, voice = (part.strip() for part in option.partition("="))
        if not (name and separator and voice):
            raise DialogError(f"expected NAME=VOICE, got {option[:80]!r}")
        if name in voices:
            raise DialogError(f"speaker {name!r} is given twice; expected one NAME=VOICE each")
        voices[name] = voice
    _by_key(voices)
    return voices


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()


def _by_key(speakers: Iterable[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in speakers:
        if not isinstance(name, str) or not name.strip() or re.search("[:：\n\r]", name):
            raise DialogError(f"a speaker's name is a word or words without a colon, got {name!r}")
        if names.setdefault(_key(name), name) != name:
            raise DialogError(f"speakers {names[_key(name)]!r} and {name!r} differ by case alone")
    if not names:
        raise DialogError("a dialog needs speakers; expected at least one NAME=VOICE")
    return names


def _opens_as_speaker(match: re.Match[str], names: Iterable[str]) -> bool:
    head, text = " ".join(match[1].split()), match[2]
    is_fullwidth = match.string[match.end(1)] == "："
    name = _NAME.fullmatch(head)
    if not name or len(head) > _LONGEST_NAME or not (is_fullwidth or not text or text[0].isspace()):
        return False
    has_capitals = all(not word[0].islower() for word in name[1].split())
    return has_capitals or bool(difflib.get_close_matches(_key(name[1]), names, 1, _NEAR))
