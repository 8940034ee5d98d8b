"""WordPiece with the BERT multilingual cased rules: text -> ids.

    text -> collapse whitespace -> cut out literal specials such as [SEP]
         -> drop control characters -> words, each punctuation mark and CJK character alone
         -> greedy longest pieces, the later ones of a word marked ##

Case and accents are kept, nothing is normalized and no [CLS] or [SEP] is added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import MAX_TEXT_BYTES, reason, replacing

_UNKNOWN = "[UNK]"
_SPECIALS = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_MAX_WORD_CHARS = 100

# Hexadecimal code points, frozen at the Unicode 8.0 of the reference: unicodedata is newer and
# differs between Python versions, so it would give other ids. The reference also skips 2B820-2B91F.
_PUNCTUATION = (
    "21-2F 3A-40 5B-60 7B-7E A1 A7 AB B6-B7 BB BF 37E 387 55A-55F 589-58A 5BE 5C0 5C3 5C6 5F3-5F4 "
    "609-60A 60C-60D 61B 61E-61F 66A-66D 6D4 700-70D 7F7-7F9 830-83E 85E 964-965 970 AF0 DF4 E4F "
    "E5A-E5B F04-F12 F14 F3A-F3D F85 FD0-FD4 FD9-FDA 104A-104F 10FB 1360-1368 1400 166D-166E "
    "169B-169C 16EB-16ED 1735-1736 17D4-17D6 17D8-17DA 1800-180A 1944-1945 1A1E-1A1F 1AA0-1AA6 "
    "1AA8-1AAD 1B5A-1B60 1BFC-1BFF 1C3B-1C3F 1C7E-1C7F 1CC0-1CC7 1CD3 2010-2027 2030-2043 "
    "2045-2051 2053-205E 207D-207E 208D-208E 2308-230B 2329-232A 2768-2775 27C5-27C6 27E6-27EF "
    "2983-2998 29D8-29DB 29FC-29FD 2CF9-2CFC 2CFE-2CFF 2D70 2E00-2E2E 2E30-2E42 3001-3003 "
    "3008-3011 3014-301F 3030 303D 30A0 30FB A4FE-A4FF A60D-A60F A673 A67E A6F2-A6F7 A874-A877 "
    "A8CE-A8CF A8F8-A8FA A8FC A92E-A92F A95F A9C1-A9CD A9DE-A9DF AA5C-AA5F AADE-AADF AAF0-AAF1 "
    "ABEB FD3E-FD3F FE10-FE19 FE30-FE52 FE54-FE61 FE63 FE68 FE6A-FE6B FF01-FF03 FF05-FF0A "
    "FF0C-FF0F FF1A-FF1B FF1F-FF20 FF3B-FF3D FF3F FF5B FF5D FF5F-FF65 10100-10102 1039F 103D0 "
    "1056F 10857 1091F 1093F 10A50-10A58 10A7F 10AF0-10AF6 10B39-10B3F 10B99-10B9C 11047-1104D "
    "110BB-110BC 110BE-110C1 11140-11143 11174-11175 111C5-111C9 111CD 111DB 111DD-111DF "
    "11238-1123D 112A9 114C6 115C1-115D7 11641-11643 1173C-1173E 12470-12474 16A6E-16A6F 16AF5 "
    "16B37-16B3B 16B44 1BC9F 1DA87-1DA8B"
)
_CJK = "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F"
_DROPPED = (  # control, format, private use, U+FFFD, and lone surrogates (D800-DFFF)
    "0-8 B-C E-1F 7F-9F AD 600-605 61C 6DD 70F 180E 200B-200F 202A-202E 2060-2064 2066-206F "
    "D800-F8FF FEFF FFF9-FFFB FFFD 110BD 1BCA0-1BCA3 1D173-1D17A E0001 E0020-E007F F0000-FFFFD "
    "100000-10FFFD"
)


def _characters(table: str) -> str:
    """The inside of a regular-expression class for a table of hexadecimal ranges."""
    bounds = (entry.partition("-") for entry in table.split())
    return "".join(f"\\U{first:0>8}-\\U{last or first:0>8}" for first, _, last in bounds)


class Tokenizer:
    """Text to WordPiece ids and back; an id is a position in the vocabulary.

    Args:
        vocab: the pieces in id order; a piece that starts with ## continues a word.

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
        alone = _characters(f"{_PUNCTUATION} {_CJK}")
        self._special = re.compile(f"({specials})")
        self._dropped = re.compile(f"[{_characters(_DROPPED)}]+")
        self._word = re.compile(f"[{alone}]|[^ {alone}]+")

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
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        text = re.sub(r"\s+", " ", text).strip()
        ids: list[int] = []
        for index, part in enumerate(self._special.split(text)):
            is_special = index % 2 == 1
            words = [part] if is_special else self._word.findall(self._dropped.sub("", part))
            for word in words:
                ids += self._encode_word(word)
        return ids

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
        if len(word) > _MAX_WORD_CHARS:
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
