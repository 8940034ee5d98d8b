"""The text as the model reads it: words, their pieces and the slots that those have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..tokenizer import Tokenizer

MOST_CUT = 300  # words without a slot that are shown
MOST_TEXT = 20_000  # characters of a text that are shown


@dataclass(frozen=True)
class Word:
    """A word or mark of the text.

    Attributes:
        text: as it was read.
        pieces: its word pieces.
        ids: theirs, before the text's offset.
        slot: where in the prompt the first of them is.
        is_unknown: whether the vocabulary lacks it.
        n_cut: how many of its last pieces found no slot, and so are not spoken.
    """

    text: str
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    slot: int
    is_unknown: bool
    n_cut: int

    @property
    def n_slots(self) -> int:
        """How many slots it has."""
        return len(self.ids) - self.n_cut

    @property
    def is_spoken(self) -> bool:
        """Whether it has a letter or figure, and a slot, and can be read."""
        return self.n_slots > 0 and not self.is_unknown and any(map(str.isalnum, self.text))


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it.

    Attributes:
        given: as it was given; None where ids were.
        text: as it was read; of ids, their pieces.
        words: its words, with their slots.
    """

    given: str | None
    text: str
    words: tuple[Word, ...]

    @property
    def n_ids(self) -> int:
        """How many word pieces it has, with a slot or without."""
        return sum(len(word.ids) for word in self.words)


def shown_words(words: Sequence[Word]) -> tuple[Sequence[Word], int]:
    """The words that are worth showing, and how many more there are.

    All that have a slot are, and the first `MOST_CUT` after them.
    """
    n = sum(word.n_slots > 0 for word in words) + MOST_CUT  # those without one come last
    return words[:n], max(0, len(words) - n)


def placed_words(
    words: Iterable[tuple[str, Sequence[int]]], tokenizer: Tokenizer, n_slots: int
) -> tuple[Word, ...]:
    """The words that `Tokenizer.words` gives, in a prompt of so many slots."""
    return tuple(_placed(words, tokenizer, n_slots))


def words_of_ids(ids: Sequence[int], tokenizer: Tokenizer, n_slots: int) -> tuple[Word, ...]:
    """The same of ids: a piece that begins with ## goes on with a word. Ids without piece too."""
    groups: list[list[int]] = []
    for index in ids:
        if groups and index < len(tokenizer) and tokenizer.vocab[index].startswith("##"):
            groups[-1].append(index)
        else:
            groups.append([index])
    named = [("".join(_piece(i, tokenizer).removeprefix("##") for i in g), g) for g in groups]
    return tuple(_placed(named, tokenizer, n_slots))


def _placed(
    words: Iterable[tuple[str, Sequence[int]]], tokenizer: Tokenizer, n_slots: int
) -> Iterator[Word]:
    unknown, slot = tuple(tokenizer.encode("[UNK]")), 0
    pieces: dict[tuple[int, ...], tuple[str, ...]] = {}  # words come again and again
    for text, given in words:
        ids = tuple(given)
        if ids not in pieces:
            pieces[ids] = tuple(_piece(index, tokenizer) for index in ids)
        yield Word(
            text,
            pieces[ids],
            ids,
            slot,
            ids == unknown and text != "[UNK]",
            min(len(ids), max(0, slot + len(ids) - n_slots)),
        )
        slot += len(ids)


def _piece(index: int, tokenizer: Tokenizer) -> str:
    return tokenizer.vocab[index] if index < len(tokenizer) else f"<{index}>"
