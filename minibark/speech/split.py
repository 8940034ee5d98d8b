"""A long text in pieces that Bark speaks well.

    text -> silences at [pause:1.5s] -> sentences, by sentencex -> those too long in clauses, words
         -> neighbours packed towards a length of about seven seconds

Bark speaks for 15 seconds at most and forgets what it said before, so both a piece that is too long
and many short ones are bad. How long a text takes to say is measured in characters of Latin script,
of which an ideograph takes the time of three, and a kana or a Hangul syllable that of two: for the
same sentence in Bark's 13 languages that differs by a third, and the number of tokens by a factor
of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ..tokenizer import MAX_WORD_CHARS, Tokenizer
from .cuts import (
    MissingExtraError,
    allowed,
    clause_ends,
    joins,
    marks,
    sentence_ends,
    sentences,
    slices,
    spaces,
    unwrapped,
    word_ends,
)

__all__ = ["MissingExtraError", "Piece", "sentences", "split", "spoken_length"]

GOAL = 110  # characters, 7.3 s
CHARACTERS_PER_S = 15
MAX_PAUSE_S = 60.0
_STRETCH = 1.6  # a piece is at most this many times its goal: 11.7 s

_PAUSE = re.compile(r"(\[\s*pause\b[^\[\]]*\]?)", re.IGNORECASE)
_SECONDS = re.compile(r"\[\s*pause\s*[:：\s]\s*([0-9]{1,9}(?:\.[0-9]*)?)\s*(ms|s)\s*\]", re.I)
_THREE = re.compile("[0-9\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_TWO = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")
_PARAGRAPH = re.compile(r"(?:\n[^\S\n]*\n|\u2029)\s*")
_LINE = re.compile(r"[\n\v\f\r\x85\u2028]")
_STOPPED = re.compile(r"[^\w\s]\s*$")


@dataclass(frozen=True)
class Piece:
    """What Bark says at once.

    Attributes:
        text: with something to say, white space collapsed.
        n_tokens: ids that the tokenizer gives for it.
        expected_s: about how long it takes to say, seconds.
        pause_before_s: silence in front of it; of the first piece alone.
        pause_after_s: silence behind it, seconds.
    """

    text: str
    n_tokens: int
    expected_s: float
    pause_before_s: float = 0.0
    pause_after_s: float = 0.0


def split(
    text: str, tokenizer: Tokenizer, *, goal: int = GOAL, limit: int = 256, language: str = "en"
) -> list[Piece]:
    """Pieces of a text, which joined are the text up to white space and pauses.

    Sentences stay whole and are packed towards the goal. One that is longer than 1.6 goals or over
    the limit is cut at clause marks, else at spaces, else (CJK) between words of the tokenizer. A
    `[mark]`, `♪ what is sung ♪` and a word are cut only where they are too long by themselves; a
    word of more than 100 characters is, for the tokenizer cannot read it. Headings and paragraphs
    begin pieces where that leaves none too short; line breaks that only wrap a paragraph do not.

    `[pause:1.5s]`, `[pause 1.5s]` and `[pause:500ms]` are up to 60 s of silence; several in a row
    add up. A piece of nothing but punctuation comes only of a run longer than a piece.

    Args:
        text: any length.
        tokenizer: the model's.
        goal: length to aim at, in characters of Latin script; 15 are a second.
        limit: the most tokens of a piece, `max_input_semantic_length` of the model.
        language: a code that sentencex knows, which chooses its abbreviations.

    Raises:
        ValueError: nothing to say (no letter, digit or ♪), a bad pause, or a goal or limit under 1.
        MissingExtraError: the text needs more than one piece, and sentencex is not installed.
    """
    for name, value in (("goal", goal), ("limit", limit)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    splitter = _Splitter(tokenizer, goal, limit, language)
    before_s, parts = _at_pauses(unwrapped(text))
    pieces: list[Piece] = []
    for part, silence_s in parts:
        texts = [" ".join(raw.split()) for raw in splitter.pieces(part.strip())]
        for index, one in enumerate(texts):
            n_tokens, expected_s = len(tokenizer.encode(one)), spoken_length(one) / CHARACTERS_PER_S
            first_s = 0.0 if pieces else before_s
            after_s = silence_s if index == len(texts) - 1 else 0.0
            pieces.append(Piece(one, n_tokens, expected_s, first_s, after_s))
    return pieces


def spoken_length(text: str) -> int:
    """How long a text takes to say, in characters of Latin script, of which 15 are a second."""
    n_three, n_two = len(_THREE.findall(text)), len(_TWO.findall(text))
    return len(" ".join(text.split())) + 2 * n_three + n_two


def _says(text: str) -> bool:
    return "♪" in text or any(map(str.isalnum, text))


def _at_pauses(text: str) -> tuple[float, list[tuple[str, float]]]:
    """The silence in front of a text, and its parts with the silence behind each.

    A part without anything to say joins its neighbour.
    """
    before_s, led = 0.0, ""
    parts: list[tuple[str, float]] = []
    for index, found in enumerate(_PAUSE.split(text)):
        if index % 2:
            silence_s = _seconds(found)
            if parts:
                parts[-1] = parts[-1][0], parts[-1][1] + silence_s
            else:
                before_s += silence_s
        elif _says(found):
            parts.append((led + found, 0.0))
            led = ""
        elif parts:
            parts[-1] = parts[-1][0] + " " + found, parts[-1][1]
        else:
            led += found + " "
    if not parts:
        only = " but pauses" if before_s else ""
        raise ValueError(f"there is nothing to say{only}; give at least one word")
    return before_s, parts


def _seconds(mark: str) -> float:
    match = _SECONDS.fullmatch(mark)
    seconds = float(match[1]) / (1000 if match[2].lower() == "ms" else 1) if match else -1
    if not 0 <= seconds <= MAX_PAUSE_S:
        raise ValueError(
            f"bad pause {mark[:40]!r}: expected [pause:1.5s] or [pause:500ms], "
            f"from 0 to {MAX_PAUSE_S:.0f} s"
        )
    return seconds


class _Atom(NamedTuple):
    """What is not cut, and what it costs to end a piece behind it.

    The unit is the cost of a piece of no length. MUST: there is no choice.
    """

    text: str
    length: int
    gap: int  # 1 for white space behind it
    n_tokens: int
    cost: float
    says: bool


_MUST = -1e6
_HEADING, _PARAGRAPH_END, _LINE_END, _SENTENCE = -1.4, -0.8, -0.2, 0.0
_INNER_SENTENCE, _CLAUSE, _SPACE, _WORD, _ANYWHERE = 0.15, 0.3, 0.8, 1.2, 2.0
_SAYS_NOTHING = 10.0
_N_LEVELS = 5


@dataclass(frozen=True)
class _Splitter:
    tokenizer: Tokenizer
    goal: int
    limit: int
    language: str
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest", int(_STRETCH * self.goal))

    def pieces(self, text: str) -> list[str]:
        """The texts of a part without pauses."""
        whole = self._whole(text)
        if self._fits(text):  # the same with and without sentencex
            ends = [match.end() for match in _PARAGRAPH.finditer(text)]
        else:
            ends = sentence_ends(text, self.language)
        atoms: list[_Atom] = []
        for sentence in slices(text, allowed(text, ends, whole)):
            atoms += self._divided(sentence, self._cost_behind(sentence), 0)
        return self._pack(atoms)

    def _fits(self, text: str) -> bool:
        """Whether a text can be a piece."""
        return spoken_length(text) <= self.longest and self._can_be_read(text)

    def _can_be_read(self, text: str) -> bool:
        text = " ".join(text.split())
        words = self.tokenizer.word_pattern.findall(text) if len(text) > MAX_WORD_CHARS else ()
        is_read = all(len(word) <= MAX_WORD_CHARS for word in words)
        return is_read and len(self.tokenizer.encode(text)) <= self.limit

    def _cost_behind(self, sentence: str) -> float:
        end = len(sentence.rstrip())
        if _PARAGRAPH.search(sentence, end):
            return _PARAGRAPH_END if _STOPPED.search(sentence[max(0, end - 40) :]) else _HEADING
        return _LINE_END if _LINE.search(sentence, end) else _SENTENCE

    def _whole(self, text: str) -> list[tuple[int, int]]:
        return [(start, end) for start, end in marks(text) if self._fits(text[start:end])]

    def _divided(self, text: str, cost: float, level: int) -> Iterator[_Atom]:
        """The atoms of a text, which is cut by a finer level only where it must be."""
        if self._fits(text):
            yield self._atom(text, cost)
            return
        if level == _N_LEVELS:
            yield from self._characters(text, cost)
            return
        inner, ends = self._ends(text, level)
        is_loose = level == _N_LEVELS - 1
        parts = slices(text, allowed(text, ends, self._whole(text), is_loose))
        if inner >= _SPACE:
            parts = self._grouped(parts)
        for part in parts[:-1]:
            yield from self._divided(part, inner, level + 1)
        yield from self._divided(parts[-1], cost, level + 1)

    def _ends(self, text: str, level: int) -> tuple[float, list[int]]:
        if level == 0:
            return _INNER_SENTENCE, sentence_ends(text, self.language, enclosed=True)
        if level == 1:
            return _CLAUSE, clause_ends(text)
        if level == 2:
            return _SPACE, spaces(text)
        words = word_ends(text, self.tokenizer.word_pattern)
        return (_WORD, words) if level == 3 else (_ANYWHERE, sorted({*words, *spaces(text)}))

    def _grouped(self, parts: list[str]) -> list[str]:
        """Short parts together, so that there are fewer to pack; each group fits."""
        least = min(self.goal, self.limit, MAX_WORD_CHARS) // 8
        groups: list[str] = []
        room = 0
        for part in parts:
            if len(part) <= room:
                groups[-1] += part
                room -= len(part)
            else:
                groups.append(part)
                room = least - len(part)
        return groups

    def _characters(self, text: str, cost: float) -> Iterator[_Atom]:
        """Equal parts of a word, each as good as a piece; no grapheme cluster is cut if it fits."""
        starts = [i for i, character in enumerate(text) if i == 0 or not character.isspace()]
        for bounds in ([i for i in starts if not joins(text, i)], starts):
            n_clusters = len(bounds)
            n_parts = max(len(text) // MAX_WORD_CHARS, spoken_length(text) // self.longest) + 1
            while True:
                n_parts = min(n_parts, n_clusters)
                parts = slices(text, [bounds[k * n_clusters // n_parts] for k in range(n_parts)])
                if n_parts == n_clusters or all(map(self._fits, parts)):
                    break
                n_parts += n_parts // 4 + 1
            if all(map(self._can_be_read, parts)):
                break
        yield from (self._atom(part, _MUST) for part in parts[:-1])
        yield self._atom(parts[-1], cost)

    def _atom(self, text: str, cost: float) -> _Atom:
        n_tokens = len(self.tokenizer.encode(text))
        gap = int(text[-1].isspace())
        return _Atom(text, spoken_length(text), gap, n_tokens, cost, _says(text))

    def _pack(self, atoms: list[_Atom]) -> list[str]:
        """The cheapest way to cut between atoms: lengths near the goal, at good places."""
        best, starts = [0.0], [0]
        musts = [self._must_end(*pair) for pair in pairwise(atoms)]
        for end in range(1, len(atoms) + 1):
            cheapest, first = float("inf"), end - 1
            length, n_tokens, says = -atoms[end - 1].gap, 0, False
            for start in range(end - 1, -1, -1):
                atom = atoms[start]
                length += atom.length + atom.gap
                n_tokens += atom.n_tokens
                says = says or atom.says
                too_long = length > self.longest or n_tokens > self.limit
                if start < end - 1 and (too_long or musts[start]):
                    break
                cost = best[start] + (length / self.goal - 1) ** 2 + _SAYS_NOTHING * (not says)
                if cost < cheapest:
                    cheapest, first = cost, start
            best.append(cheapest + (atoms[end - 1].cost if end < len(atoms) else 0))
            starts.append(first)
        pieces = []
        end = len(atoms)
        while end:
            pieces.append("".join(atom.text for atom in atoms[starts[end] : end]))
            end = starts[end]
        return pieces[::-1]

    def _must_end(self, atom: _Atom, following: _Atom) -> bool:
        """Whether two atoms are of one word, which would be read otherwise than in parts."""
        if atom.cost == _MUST:
            return True
        last, first = atom.text[-1], following.text[0]
        return not last.isspace() and bool(self.tokenizer.word_pattern.fullmatch(last + first))
