"""Texts as people have them: what cannot be read in them, and how to make it readable.

Bark's vocabulary has 119,547 pieces and no typographic quote. What it lacks becomes [UNK], in the
reference too, so nothing is changed unless the caller, or the checkpoint, asks for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial

from .files import shown, warn
from .tokenizer import MAX_WORD_CHARS, Tokenizer

LEVELS = ("off", "plain", "all")
"""How far a text is made plain: not; what the vocabulary lacks; that, and marks dropped."""

_SPELLINGS = {
    '"': "“”„‟«»″〝〞＂",
    "'": "‘’‚‛‹›′ʼ`´＇",
    "-": "‐‑‒−–—―⸺",
    "...": "…",
    ".": "．｡",
    " ": "•·‣▪●\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
    "\u205f\u3000",
    "<": "⟨〈",
    ">": "⟩〉",
    "/": "⁄∕",
    "x": "×",
    "ss": "ß",
    "ae": "æ",
    "oe": "œ",
    "o": "ø",
}
"""What reads the same, by what it is written as."""

_PLAIN = {ord(odd): usual for usual, odds in _SPELLINGS.items() for odd in odds}
# A dash that stands for a pause keeps its distance from the words.
_PLAIN |= {ord(dash): " - " for dash in "—―⸺"}

_SPEECH_TAGS = r"speak|break|prosody|voice|emphasis|say-as|phoneme|sub|mstts:[\w-]+|amazon:[\w-]+"
_OTHER_TAGS = "audio|mark|lang|desc|metadata|p|s|w|b|i|em|strong|br|div|span"
_TAG_FORM = r"</?(?:{})(?=[\s/>])[^<>]{{0,500}}>"
_SSML = re.compile(_TAG_FORM.format(_SPEECH_TAGS), re.IGNORECASE)
_TAG = re.compile(_TAG_FORM.format(f"{_SPEECH_TAGS}|{_OTHER_TAGS}"), re.IGNORECASE)
_MARKDOWN: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE), r"\1"),
    (re.compile(r"!\[([^\[\]\n]{0,300})\]\([^()\s]{1,2000}\)"), r"\1"),
    (re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\s]{1,2000}\)"), r"\1"),
    (re.compile(r"(\*\*|__)(?=\S)(.{1,500}?)(?<=\S)\1"), r"\2"),
    (re.compile(r"`([^`\n]{1,300})`"), r"\1"),
)
_LOOSE_MARKS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"^[ \t]*(?:[-*+•](?=[ \t])|>+|[-*_=]{3,}[ \t]*$)[ \t]*", re.MULTILINE), ""),
    (re.compile(r"(?<![\w*])([*_])(?=[^\s*_])([^*_\n]{1,300}?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"~~(?=\S)(.{1,500}?)(?<=\S)~~"), r"\1"),
)
# Pictures and what joins and colours them; notes of music (2669-266F) are Bark's own marks.
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u231a-\u23ff\u25a0-\u25ff\u2600-\u2668\u2670-\u27bf\u2b00-\u2bff"
    "\ufe0e\ufe0f\u200d\u20e3\U000e0020-\U000e007f]+"
)
_SHOWN_BUT_DROPPED = re.compile("[\ufffd\ud800-\uf8ff\U000f0000-\U0010fffd]")


def plain(text: str, tokenizer: Tokenizer, level: str = "plain") -> str:
    """The text as the vocabulary has it.

    Args:
        text: any.
        tokenizer: what must be able to read it.
        level: `"off"` changes nothing. `"plain"` writes what the vocabulary lacks as something it
            has: typographic quotes, dashes, ellipses, ligatures, unusual spaces and letters in
            parts; what it has stays. `"all"` also drops emoji and the marks of Markdown and SSML.
    """
    if level == "off":
        return text
    if level == "all":
        text = _without_marks(text)
    if _lost(tokenizer.words(text), tokenizer):
        text = "".join(
            map(partial(_readable, tokenizer=tokenizer), unicodedata.normalize("NFC", text))
        )
    return text


def _lost(
    words: Iterable[tuple[str, list[int]]], tokenizer: Tokenizer, is_cut: bool = False
) -> list[str]:
    """Those of `Tokenizer.words` that no piece stands for; in a text that is cut, long ones are."""
    unknown = tokenizer.encode("[UNK]")
    lost = [word for word, ids in words if ids == unknown and word != "[UNK]"]
    if not is_cut:
        return lost
    return [word for word in lost if not all(map(tokenizer.reads, _parts(word)))]


def _parts(word: str) -> list[str]:
    starts = range(0, len(word), MAX_WORD_CHARS)
    return [word[start : start + MAX_WORD_CHARS] for start in starts]


def _without_marks(text: str) -> str:
    for pattern, instead in (*_MARKDOWN, *_LOOSE_MARKS):
        text = pattern.sub(instead, text)
    return _EMOJI.sub(" ", _TAG.sub(" ", text))


def _readable(character: str, tokenizer: Tokenizer) -> str:
    """A character that the vocabulary lacks as what it stands for, if it has that."""
    if character.isspace() or tokenizer.reads(character):
        return character
    for other in (
        _PLAIN.get(ord(character), ""),
        unicodedata.normalize("NFKC", character).translate(_PLAIN),
        # A letter without its accents, where the vocabulary has no such letter at all.
        "".join(
            c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
        ),
    ):
        if other and all(tokenizer.reads(word) for word, _ in tokenizer.words(other)):
            return other
    return character


def readable_ids(text: str, tokenizer: Tokenizer, level: str = "off") -> list[int]:
    """The ids of what `readable` makes of a text; its arguments and errors."""
    return [index for _, ids in readable_words(text, tokenizer, level)[1] for index in ids]


def readable(text: str, tokenizer: Tokenizer, level: str = "off", *, is_cut: bool = False) -> str:
    """The text made plain as told (`plain`); a warning says what cannot be read in it.

    Args:
        text: what is to be said.
        tokenizer: of the model.
        level: as of `plain`.
        is_cut: whether the text will be cut into pieces, and words that are too long with it.

    Raises:
        ValueError: there is nothing to say.
    """
    return readable_words(text, tokenizer, level, is_cut=is_cut)[0]


def readable_words(
    text: str, tokenizer: Tokenizer, level: str = "off", *, is_cut: bool = False
) -> tuple[str, list[tuple[str, list[int]]]]:
    """What `readable` gives, and its words with their ids as `Tokenizer.words` does; its errors."""
    if not text.strip():
        raise ValueError("the text is empty; give at least one word")
    text = plain(text, tokenizer, level)
    words = list(tokenizer.words(text))
    if not words:
        raise ValueError(
            "the text holds nothing that can be read (only control characters, emoji?)"
        )
    lost = _lost(words, tokenizer, is_cut) + _SHOWN_BUT_DROPPED.findall(text)
    if lost:
        _warn_of_lost(lost, len(words), plain(text, tokenizer) != text)
    is_markdown = any(pattern.search(text) for pattern, _ in _MARKDOWN)
    if is_markdown or _SSML.search(text):
        warn(
            f"the text looks like {'Markdown' if is_markdown else 'SSML'}, whose marks Bark reads "
            "as if they were words; normalize='all' (--plain-text=all) drops them"
        )
    return text, words


def _warn_of_lost(lost: Sequence[str], n_words: int, is_curable: bool) -> None:
    kinds = list(dict.fromkeys(lost))
    named = ", ".join(map(_shown, kinds[:5]))
    more = f" and {len(kinds) - 5} others" if len(kinds) > 5 else ""
    cure = (
        "normalize='plain' (--plain-text) makes some readable"
        if is_curable
        else "write it otherwise"
    )
    warn(
        f"{len(lost)} of the {n_words} words and marks of the text cannot be read by this model: "
        f"{named}{more}; {cure}"
    )


def _shown(word: str) -> str:
    """A word in quotes, shortened; what has no picture as its code point."""
    if len(word) == 1 and not word.isprintable():
        return f"U+{ord(word):04X}"
    return repr(shown(word, 20))
