"""WordPiece with the BERT multilingual cased rules: text -> ids.

    text -> collapse whitespace -> cut out literal specials such as [SEP]
         -> drop control characters -> words, each punctuation mark and CJK character alone
         -> greedy longest pieces, the later ones of a word marked ##

Case and accents are kept, nothing is normalized and no [CLS] or [SEP] is added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .bert_characters import CJK, DROPPED, PUNCTUATION, characters
from .files import MAX_TEXT_BYTES, reason, replacing

_UNKNOWN = "[UNK]"
_SPECIALS = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_CHARS = 100


class Tokenizer:
    """Text to WordPiece ids and back; an id is a position in the vocabulary.

    Args:
        vocab: the pieces in id order; a piece that starts with ## continues a word.

    Attributes:
        word_pattern: matches a word, where white space is all single spaces.

    Raises:
        ValueError: the vocabulary is empty, lacks [UNK], or has a blank or repeated piece.

    Source: huggingface/tokenizers 0.23: BertNormalizer, BertPreTokenizer, WordPiece.
    """

    def __init__(self, vocab: Sequence[str]) -> None:
        """Check and index the vocabulary."""
        self.vocab = tuple(vocab)
        self._ids = {piece: index for index, piece in enumerate(self.vocab)}
        for index, piece in enumerate(self.vocab):
            if not piece or "\n" in piece or "\r" in piece:
                raise ValueError(f"piece {index} is {piece!r}; expected one line, not blank")
            if self._ids[piece] != index:
                raise ValueError(f"pieces {index} and {self._ids[piece]} are both {piece!r}")
        if _UNKNOWN not in self._ids:
            raise ValueError(f"no {_UNKNOWN} among {len(self)} pieces; is it BERT's vocab.txt?")
        self._longest = max(map(len, self.vocab))
        specials = "|".join(re.escape(piece) for piece in _SPECIALS if piece in self._ids)
        alone = characters(f"{PUNCTUATION} {CJK}")
        self._special = re.compile(f"({specials})")
        self._dropped = re.compile(f"[{characters(DROPPED)}]+")
        self.word_pattern = re.compile(f"[{alone}]|[^ {alone}]+")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a vocab.txt: UTF-8, one piece a line, ended by LF or CRLF.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not UTF-8, or its pieces are not a vocabulary.
        """
        try:
            if Path(path).stat().st_size > MAX_TEXT_BYTES:
                raise ValueError(f"it is larger than {MAX_TEXT_BYTES >> 20} MiB")
            text = Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
            return cls(text.split("\n") if text else ())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no vocabulary at {path}; `hf download suno/bark-small vocab.txt` fetches Bark's"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path} is not a vocab.txt: {reason(error)}") from error

    @classmethod
    def characters(cls) -> Tokenizer:
        """A tokenizer of 193 pieces for random models: printable ASCII, one piece each."""
        printable = [chr(code) for code in range(0x21, 0x7F)]
        return cls([*_SPECIALS, *printable, *(f"##{character}" for character in printable)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a vocab.txt that `from_file` reads back, whole or not at all."""
        with replacing(path) as part:
            part.write_bytes("".join(f"{piece}\n" for piece in self.vocab).encode("utf-8"))

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.vocab)

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.vocab)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, each in [0, vocab_size), without [CLS] and [SEP].

        A literal special such as "[MASK]" is one id. Control and private-use characters, U+FFFD and
        lone surrogates are dropped. A word over 100 characters, or with no pieces, is one [UNK].

        Raises:
            TypeError: text is not a str.

        Source: suno-ai/bark bark/generation.py, _normalize_whitespace and _tokenize.
        """
        return [index for _, ids in self.words(text) for index in ids]

    def words(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """The words, marks and specials of a text, each with its ids; as `encode`, joined."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        text = re.sub(r"\s+", " ", text).strip()
        for index, part in enumerate(self._special.split(text)):
            is_special = index % 2 == 1
            words = [part] if is_special else self.word_pattern.findall(self._dropped.sub("", part))
            for word in words:
                yield word, self._encode_word(word)

    def reads(self, word: str) -> bool:
        """Whether the vocabulary has pieces for a word."""
        return self._encode_word(word) != [self._ids[_UNKNOWN]]

    def tokenize(self, text: str) -> list[str]:
        """The pieces that `encode` gives the ids of."""
        return [self.vocab[index] for index in self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces joined by spaces, the ## ones glued to what precedes them.

        Raises:
            ValueError: an id is outside [0, vocab_size).
        """
        pieces = []
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(f"id {index} is outside [0, {len(self)}); is an offset still on?")
            pieces.append(self.vocab[index])
        return " ".join(pieces).replace(" ##", "")

    def _encode_word(self, word: str) -> list[int]:
        """The longest piece that starts the word, then the longest ## piece, and so on."""
        if len(word) > MAX_WORD_CHARS:
            return [self._ids[_UNKNOWN]]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                index = self._ids.get(prefix + word[start:end])
                if index is not None:
                    ids.append(index)
                    start = end
                    break
            else:
                return [self._ids[_UNKNOWN]]
        return ids
