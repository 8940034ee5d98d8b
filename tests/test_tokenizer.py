import json
import re
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibark.tokenizer import Tokenizer

DATA = Path(__file__).parents[1].parent / "shared" / "data"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = {
    "de": "Grüß Gott, schöne Straße! „Übermäßig“ groß – 3,50 €.",
    "en": "Well... isn't it re-usable? [laughs] ♪ It's 12:30, e.g. O'Neil's. ♪",
    "es": "¿Qué tal, señor? ¡Mañana será otro día!",
    "fr": "L'été dernier, où étais-tu ? « Çà et là », dit-elle…",
    "hi": "नमस्ते, आप कैसे हैं। मैं ठीक हूँ॥ १२३",
    "it": "Perché no? È già così, città e libertà.",
    "ja": "こんにちは、世界。「カタカナ・テスト」ー々〆ヶ東京ﾊﾛｰ！",
    "ko": "안녕하세요, 세계! 반갑습니다. 한국어 漢字",
    "pl": "Zażółć gęślą jaźń, proszę; źdźbło.",
    "pt": "Não há pão, avó? Ação já começou.",
    "ru": "Привет, мир! Ёлка и чай — это всё.",
    "tr": "İstanbul'da ığdır şöyle güzel; IĞDIR çocuğu.",
    "zh": "人工智慧正在改變世界。“你好”，３.１４％㐀龥𠀀",
}
FRAGMENTS = [
    *(word for sentence in SENTENCES.values() for word in sentence.split()),
    *SPECIALS,
    *("[", "]", "[MASK", "[ MASK ]", "[mask]", "[MA\0SK]", "[PAD][PAD]", "aa[SEP]b", "##", "##a"),
    *("😀", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "☎\ufe0f", "e\u0301", "क\u094d\u200dष", "\u0301"),
    *("\0", "\x07", "\x1f", "\x7f", "\x85", "\xad", "\u200b", "\ufeff", "\ufffd", "\ue000"),
    *("\u180e", "\u2028", "\u3000", "\xa0", "\t", "\r\n", "\x1c", "\u0378", "\ufffe", "\U0001e95e"),
    *("\u4dc0", "\u9fff", "\U0002b81f", "\U0002b820", "\U0002b920", "\U0002ceb0", "\U0002f800"),
    *("a" * 99, "a" * 100, "a" * 101, "é" * 100, "e\u0301" * 50, "e\u0301" * 51, "x" * 1000),
]
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=12).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda separator: separator.join(parts))
)


def collapse(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def made_vocab() -> list[str]:
    text = " ".join([*SENTENCES.values(), "aé e\u0301 😀 ☎"])
    characters = sorted(set(text) - {" ", "漢", "ź"})
    starts = {word[:n] for word in re.findall(r"\w+", text) for n in (2, 3, 5)}
    ends = {f"##{word[-n:]}" for word in re.findall(r"\w+", text) for n in (2, 4)}
    pieces = {*characters, *(f"##{c}" for c in characters), *starts, *ends}
    return [*SPECIALS, *sorted(pieces)]


def reference_of(vocab: list[str]) -> tokenizers.Tokenizer:
    ids = {piece: index for index, piece in enumerate(vocab)}
    reference = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    reference.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    reference.add_special_tokens([piece for piece in SPECIALS if piece in ids])
    return reference


MADE = Tokenizer(made_vocab())
REFERENCE = reference_of(made_vocab())


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    path = DATA / "bert-base-multilingual-cased" / "vocab.txt"
    if not path.exists():
        pytest.skip(f"needs the real vocabulary at {path}")
    return Tokenizer.from_file(path)


@settings(deadline=None, derandomize=True, max_examples=600)
@given(TEXT)
@example("")
@example(" \t\n ")
@example("[MASK][UNK] [SEP]a[CLS")
def test_same_pieces_as_the_tokenizers_library(text: str) -> None:
    expected = REFERENCE.encode(collapse(text))
    assert MADE.tokenize(text) == expected.tokens
    assert MADE.encode(text) == expected.ids


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES.keys())
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_same_pieces_in_every_language_of_bark(sentence: str, form: Literal["NFC", "NFD"]) -> None:
    text = unicodedata.normalize(form, sentence)
    pieces = MADE.tokenize(text)
    assert pieces == REFERENCE.encode(text).tokens
    assert len(set(pieces) - {"[UNK]"}) >= 4


def test_every_code_point_is_dropped_split_or_kept_as_in_the_tokenizers_library() -> None:
    vocab = ["[UNK]", "a", "b", "ab"]
    ours, reference = Tokenizer(vocab), reference_of(vocab)
    assert len({tuple(ours.encode(f"a{c}b")) for c in "\0 ,x"}) == 4
    for start in range(0, 0x110000, 0x4000):
        codes = [c for c in range(start, start + 0x4000) if not 0xD800 <= c < 0xE000]
        text = collapse(" ".join(f"a{chr(code)}b" for code in codes))
        if ours.encode(text) != reference.encode(text).ids:
            words = (collapse(f"a{chr(code)}b") for code in codes)
            wrong = [word for word in words if ours.encode(word) != reference.encode(word).ids]
            pytest.fail(f"differs from tokenizers on {wrong!a}")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["ab"]),
        ("aab aac", ["aa", "##b", "aa", "##c"]),
        ("abc abd aca", ["ab", "##c", "[UNK]", "[UNK]"]),
        ("Ab é e\u0301", ["[UNK]", "é", "e\u0301"]),
        ("a,ab", ["a", ",", "ab"]),
        ("世界a", ["世", "[UNK]", "a"]),
        (" \n a \t\x1c a ", ["a", "a"]),
        ("a\0b a\u200bb a\ufffdb a\ue000b", ["ab"] * 4),
        ("a[SEP]b [ SEP ]", ["a", "[SEP]", "[UNK]", "[UNK]", "[UNK]", "[UNK]"]),
        ("[SEP\ud800]", ["[UNK]"] * 3),
        ("[MASK]", ["[UNK]"] * 3),
        ("a\ud800b \udfff \udc80a\udc80", ["ab", "a"]),
        ("aa" * 50, ["aa"] + ["##aa"] * 49),
        ("aa" * 50 + "b", ["[UNK]"]),
        ("", []),
    ],
)
def test_pieces_by_hand(text: str, pieces: list[str]) -> None:
    vocab = ["[UNK]", "[SEP]", "a", "aa", "ab", "##aa", "##b", "##c", "é", "e\u0301", ",", "世"]
    tokenizer = Tokenizer(vocab)
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.encode(text) == [vocab.index(piece) for piece in pieces]


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(categories=None), max_size=30))
def test_lone_surrogates_are_dropped(text: str) -> None:
    without = "".join("\0" if 0xD800 <= ord(c) < 0xE000 else c for c in text)
    assert MADE.encode(text) == MADE.encode(without)


def test_special_literals_are_cut_out_before_anything_is_dropped() -> None:
    assert MADE.tokenize("[MASK]") == ["[MASK]"]
    assert "[MASK]" not in MADE.tokenize("[MA\0SK]")


def test_real_vocabulary_gives_the_recorded_ids(real: Tokenizer) -> None:
    path = DATA / "reference" / "tokenizer_cases.json"
    if not path.exists():
        pytest.skip(f"needs the recorded cases at {path}")
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert len(cases) > 5
    for text, ids in cases:
        assert real.encode(text) == ids, text


def test_real_vocabulary_gives_the_ids_of_transformers(real: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    real.save(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)

    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(TEXT)
    def check(text: str) -> None:
        assert real.encode(text) == reference.encode(collapse(text), add_special_tokens=False)

    check()
    for sentence in SENTENCES.values():
        assert real.encode(sentence) == reference.encode(sentence, add_special_tokens=False)


def test_real_vocabulary_has_the_size_and_specials_of_bark(real: Tokenizer) -> None:
    assert len(real) == real.vocab_size == 119_547
    assert [real.vocab.index(piece) for piece in SPECIALS] == [0, 100, 101, 102, 103]


def test_decode_joins_pieces() -> None:
    ids = [MADE.vocab.index(piece) for piece in ("Gr", "##ü", "##ß", ",", "[SEP]", "a", "##a")]
    assert MADE.decode(ids) == "Grüß , [SEP] aa"
    assert MADE.decode([]) == ""
    assert MADE.decode(MADE.encode("Привет мир")) == "Привет мир"


def test_characters_encode_all_printable_ascii() -> None:
    tokenizer = Tokenizer.characters()
    assert list(tokenizer.vocab[:5]) == SPECIALS
    text = " ".join(f"a{chr(code)}b {chr(code)}" for code in range(0x21, 0x7F))
    assert "[UNK]" not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("Hi, é") == ["H", "##i", ",", "[UNK]"]
    assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"


@pytest.mark.parametrize(
    "vocab", [MADE.vocab, Tokenizer.characters().vocab, ("[UNK]", "\u2028", "\x85", "\x1c")]
)
def test_save_and_from_file_round_trip(vocab: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("old", encoding="utf-8")
    Tokenizer(vocab).save(path)
    assert Tokenizer.from_file(str(path)).vocab == vocab
    assert [file.name for file in tmp_path.iterdir()] == ["vocab.txt"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="surrogates"):
        Tokenizer(["[UNK]", "\ud800"]).save(path)
    assert path.read_text(encoding="utf-8") == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        MADE.save(tmp_path / "folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "vocab.txt"]


def test_real_vocabulary_round_trips(real: Tokenizer, tmp_path: Path) -> None:
    real.save(tmp_path / "vocab.txt")
    original = DATA / "bert-base-multilingual-cased" / "vocab.txt"
    assert (tmp_path / "vocab.txt").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("content", ["[UNK]\na\n##b", "[UNK]\na\n##b\n", "[UNK]\r\na\r\n##b\r\n"])
def test_from_file_takes_any_line_end(content: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content.encode())
    assert Tokenizer.from_file(path).vocab == ("[UNK]", "a", "##b")


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ([], r"no \[UNK\] among 0 pieces"),
        (["a", "b"], r"no \[UNK\] among 2 pieces"),
        (["[UNK]", "a", "b", "a"], "pieces 1 and 3 are both 'a'"),
        (["[UNK]", ""], "piece 1 is ''"),
        (["[UNK]", "a\nb"], r"piece 1 is 'a\\nb'"),
        (["[UNK]", "a\r"], r"piece 1 is 'a\\r'"),
    ],
)
def test_a_bad_vocabulary_is_refused(vocab: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(vocab)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vocab\.txt.*no \[UNK\] among 0 pieces"),
        (b"[UNK]\n\xff\xfe\n", r"vocab\.txt.*utf-8"),
        (b"[UNK]\na\na\n", r"vocab\.txt.*pieces 1 and 2"),
        (b"[UNK]\n\nb\n", r"vocab\.txt.*piece 1 is ''"),
    ],
)
def test_a_bad_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt.*hf download suno/bark-small"):
        Tokenizer.from_file(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("text", [None, b"Hello", 7, ["Hello"]])
def test_text_that_is_not_a_str_is_refused(text: Any) -> None:
    with pytest.raises(TypeError, match=type(text).__name__):
        MADE.encode(text)


@pytest.mark.parametrize("index", [-1, len(MADE), 10_048 + 119_547])
def test_ids_outside_the_vocabulary_are_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"id {index} is outside \[0, {len(MADE)}\)"):
        MADE.decode([0, index])
