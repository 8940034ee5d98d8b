"""Where a text may be cut: at sentences, clauses, spaces and, if nothing else is left, in words."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise

_LINE_BREAK = re.compile(r"[\n\v\f\r\x85\u2028\u2029]\s*")
_CLOSERS = "\"'”’“»›)\\]}」』】》〉）］｝"
_CLAUSE = re.compile(
    rf"[,;:][{_CLOSERS}]*\s+|[、，；：､][{_CLOSERS}]*\s*|—+\s*|\s(?:–|-{{1,3}})\s+"
)
_SPACE = re.compile(r"\s+")
_ENCLOSING = re.compile(r"[\"“”„«»‹›()\[\]{}「」『』【】《》〈〉（）［］｛｝]")
_MARK = re.compile(r"\[[^\[\]\n]{1,60}\]|♪(?:[^♪\n]|\n(?!\s*[\n♪]))*♪")
_ENDS_PIECE = frozenset(".,;:!?…)]}」』】》〉）］｝。、，；：！？｡､।॥")
_OPENS = frozenset("([{「『（【《〈［｛„‚¿¡")
_OPENS_AFTER_SPACE = frozenset("“‘«‹\"'")  # some languages close with these
_WIDTHS = 40, 100  # characters of the longest line of a text that has been wrapped
_LEAST_WRAPS = 3
_WINDOW = 2_000  # characters; sentencex takes time with the square of a line's sentences


class MissingExtraError(ImportError):
    """Something needs a package of an extra that is not installed; the text says which."""


def _segmenter() -> Callable[[str, str], list[str]]:
    try:
        from sentencex import segment
    except ImportError as error:
        raise MissingExtraError(
            "a text of several pieces needs the package sentencex; pip install 'minibark[long]'"
        ) from error
    return segment  # type: ignore[no-any-return]


def sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text, which joined are the text; white space goes with what precedes it.

    A line break ends a sentence. What is in quotes or brackets stays together, as do a `[mark]`
    and `♪ what is sung ♪`.

    Args:
        text: in one of the languages that sentencex knows.
        language: its code, which chooses the abbreviations; an unknown one is read as English.

    Raises:
        MissingExtraError: sentencex is not installed.
    """
    return slices(text, allowed(text, sentence_ends(text, language), marks(text)))


def slices(text: str, ends: Iterable[int]) -> list[str]:
    """The text cut at rising positions inside it."""
    bounds = [0, *ends, len(text)]
    return [text[a:b] for a, b in pairwise(bounds) if a < b]


def marks(text: str) -> list[tuple[int, int]]:
    """Start and end of each `[mark]` and `♪ what is sung ♪`, within a paragraph."""
    return [match.span() for match in _MARK.finditer(text)]


def allowed(
    text: str, ends: Iterable[int], whole: list[tuple[int, int]], loose: bool = False
) -> list[int]:
    """Those of the rising positions where a piece may end.

    None is inside one of the spans that stay whole or a grapheme cluster or, if not loose, in front
    of a mark that belongs to what precedes it or behind one that opens what follows.
    """
    starts = [start for start, _ in whole]
    found = []
    for end in ends:
        if not 0 < end < len(text) or text[end].isspace() or joins(text, end):
            continue
        span = bisect_right(starts, end - 1) - 1
        if span >= 0 and end < whole[span][1]:
            continue
        last = end - 1
        while last > 0 and text[last].isspace():
            last -= 1
        if loose or not (text[end] in _ENDS_PIECE or _opens(text, last)):
            found.append(end)
    return found


def sentence_ends(text: str, language: str, enclosed: bool = False) -> list[int]:
    """Positions in front of a sentence, by sentencex, and of a line.

    Args:
        text: any.
        language: a code that sentencex knows.
        enclosed: find sentences in quotes and brackets too.
    """
    segment = _segmenter()
    plain = re.sub("[\ud800-\udfff]", "\ufffd", text)  # sentencex takes no lone surrogates
    if enclosed:
        plain = _ENCLOSING.sub(" ", plain)
    lines = [match.span() for match in _LINE_BREAK.finditer(text)]
    ends: list[int] = []
    start = 0
    for stop, following in [*lines, (len(text), len(text))]:
        width = _WINDOW
        while start < stop:
            parts = segment(language, plain[start : min(stop, start + width)])
            is_last = start + width >= stop
            if not is_last and len(parts) == 1:
                width *= 2
                continue
            # The last sentence of a window goes on in the next one.
            for part in parts if is_last else parts[:-1]:
                start += len(part)
                if start < stop:
                    ends.append(_before_opener(text, start))
            width = _WINDOW
        ends.append(following)
        start = following
    return sorted(set(ends))


def unwrapped(text: str) -> str:
    """The text with spaces for the line breaks that only wrap its paragraphs, as many files have.

    All lines of a wrapped paragraph but its last are full: the next word would have made them
    longer than any line of the text is. Fewer than three such breaks may be chance, and lines of a
    script without spaces cannot be told.
    """
    parts = re.split(r"(\r?\n)", text)
    lines, breaks = parts[::2], parts[1::2]
    longest = max(map(len, lines))
    if not _WIDTHS[0] <= longest <= _WIDTHS[1]:
        return text
    soft: list[int] = []
    paragraph: list[int] = []
    is_full = True
    for index, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        if not line.strip() or not following.strip() or following[0].isspace():
            soft += paragraph if is_full else []
            paragraph, is_full = [], True
            continue
        word = following.split(maxsplit=1)[0]
        has_spaces = line.rstrip()[-1] < "\u2e80" > word
        is_full = is_full and has_spaces and len(line.rstrip()) + 1 + len(word) > longest
        paragraph.append(index)
    if len(soft) < _LEAST_WRAPS:
        return text
    for index in soft:
        breaks[index] = " "
    return "".join(part for pair in zip(lines, [*breaks, ""], strict=True) for part in pair)


def _before_opener(text: str, end: int) -> int:
    """A sentence's end, moved in front of marks that open the next sentence."""
    while end > 0 and _opens(text, end - 1):
        end -= 1
    return end


def _opens(text: str, index: int) -> bool:
    """Whether the mark at an index opens what follows."""
    if text[index] not in _OPENS_AFTER_SPACE:
        return text[index] in _OPENS
    before = text[index - 1] if index else " "
    return before.isspace() or before in _OPENS or before in _OPENS_AFTER_SPACE


def clause_ends(text: str) -> list[int]:
    """Positions behind `, ; : —` and their CJK forms."""
    return [match.end() for match in _CLAUSE.finditer(text)]


def spaces(text: str) -> list[int]:
    """Positions behind white space."""
    return [match.end() for match in _SPACE.finditer(text)]


def word_ends(text: str, words: re.Pattern[str]) -> list[int]:
    """Positions between a tokenizer's words, but not between an ideograph and its hiragana."""
    ends = {match.end() for match in words.finditer(text)}
    return [
        end
        for end in sorted(ends)
        if end == len(text)
        or not ("\u4e00" <= text[end - 1] <= "\u9fff" and "\u3041" <= text[end] <= "\u309f")
    ]


def joins(text: str, index: int) -> bool:
    """Whether the characters before and at an index are of one grapheme cluster.

    Source: the rules GB6 to GB13 of Unicode's annex 29, without prepended marks; a Devanagari
    conjunct is one cluster.
    """
    if not 0 < index < len(text):
        return False
    before, after = text[index - 1], text[index]
    if after < "\u0300":
        return False
    if after in "\u0e33\u0eb3\u200c\u200d\uff9e\uff9f" or unicodedata.category(after)[0] == "M":
        return before > "\x1f" and not "\x7f" <= before <= "\x9f" and before not in "\u2028\u2029"
    if before == "\u200d" or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True
    if "\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff":
        run = index
        while run > 0 and "\U0001f1e6" <= text[run - 1] <= "\U0001f1ff":
            run -= 1
        return (index - run) % 2 == 1
    if unicodedata.combining(before) == 9:
        return unicodedata.category(after)[0] == "L"
    return _hangul(before) + _hangul(after) in _SYLLABLE


_SYLLABLE = {"LL", "LV", "LS", "LU", "VV", "VT", "SV", "ST", "TT", "UT"}


def _hangul(character: str) -> str:
    """L, V or T of a conjoining jamo, S or U of a syllable without or with a final, or nothing."""
    if "\u1100" <= character <= "\u115f" or "\ua960" <= character <= "\ua97c":
        return "L"
    if "\u1160" <= character <= "\u11a7" or "\ud7b0" <= character <= "\ud7c6":
        return "V"
    if "\u11a8" <= character <= "\u11ff" or "\ud7cb" <= character <= "\ud7fb":
        return "T"
    if "\uac00" <= character <= "\ud7a3":
        return "U" if (ord(character) - 0xAC00) % 28 else "S"
    return ""
