"""Step 1: what the teacher reads and says. Writes texts, audio, phones and the vocabulary.

    sentences.json   one object a line: text, kind, split, voice, speed; of all utterances, in order
    audio.i16        their samples one after the other, int16, 24 kHz
    phones.npz       audio_ends (n,), phone_ends (n,), phones (m,), starts (m,), names (p,)
    vocab.txt        the WordPiece vocabulary

An utterance is made from its number alone, so a run that was cut off goes on where it stood, and
two runs give the same data.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import texts
from teacher import SAMPLING_RATE, Teacher, Utterance
from tiny import MAX_SECONDS, N_TEXT, SPEEDS, VOICES, work_argument

from minibark.tokenizer import Tokenizer

N_UNSEEN = 200  # words that no training sentence has
N_HELD_OUT = 1500  # sentences each for test and development
CHUNK = 2000  # utterances between two saved states

_SUFFIXES = "s ed ing er ers est ly al ness ment tion ation sion ity able ful ive ous".split()


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    parser.add_argument("--sentences", type=int, default=90_000, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sentences = compose(args.sentences)
    vocabulary = make_vocabulary(s["text"] for s in sentences if s["split"] == "train")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.save(args.work / "vocab.txt")
    sentences = [s for s in sentences if len(tokenizer.encode(s["text"])) <= N_TEXT]
    synthesize(sentences, args.work, args.processes)


def unseen_words(common: list[str]) -> list[str]:
    """Held-out words: spread over the commonest 8,000, by the hash of the word."""
    ranked = [w for w in common[700:8000] if len(w) >= 5]
    ranked.sort(key=lambda w: hashlib.sha256(w.encode()).digest())
    return sorted(ranked[:N_UNSEEN])


def compose(n: int) -> list[dict[str, Any]]:
    """All sentences, each with its split, voice and speed."""
    rng = random.Random(0)
    common = texts.words(25_000)
    unseen = re.compile(rf"\b({'|'.join(unseen_words(common))})", re.IGNORECASE)
    found = {"example": [], "definition": []}  # type: dict[str, list[str]]
    for kind, text in texts.wordnet():
        if (sentence := texts.natural(text)) is not None:
            found[kind].append(sentence)
    for kind in found:
        found[kind] = list(dict.fromkeys(found[kind]))
        rng.shuffle(found[kind])
    lists = [common[:1000], common[:5000], common, common]
    nouns = [w for w in common[:4000] if len(w) > 2]
    examples, definitions = iter(found["example"]), iter(found["definition"])
    sentences, seen = [], set()
    while len(sentences) < n:
        kind = rng.choices(
            ("example", "definition", "list", "numbers", "everyday"), weights=(40, 22, 22, 8, 10)
        )[0]
        if kind == "list":
            text = texts.word_list(rng, lists)
        elif kind == "numbers":
            text = texts.numbers(rng)
        elif kind == "everyday":
            text = texts.everyday(rng, nouns)
        else:
            taken = next(examples if kind == "example" else definitions, None)
            if taken is None:
                continue
            text = taken
        has_unseen = bool(unseen.search(text))
        text = texts.dress(text, rng)
        if kind in ("example", "definition") and rng.random() < 0.12 and not has_unseen:
            more = texts.dress(texts.everyday(rng, nouns), rng)
            text, kind = (f"{text} {more}" if text[-1] in ".?!" else f"{text}, {more}"), "joined"
        if text in seen:
            continue
        if unseen.search(text):
            # A list with such a word is of no use; natural sentences are what the words are
            # tested in.
            if kind not in ("example", "definition"):
                continue
            split = "unseen"
        else:
            split = "train"
        seen.add(text)
        voice = list(VOICES)[0 if rng.random() < 0.55 else 1]
        speed = rng.choices(SPEEDS, weights=(2, 6, 2))[0]
        sentences.append(
            {"text": text, "kind": kind, "split": split, "voice": voice, "speed": speed}
        )
    rng.shuffle(sentences)
    train = [s for s in sentences if s["split"] == "train"]
    for i, sentence in enumerate(train[: 2 * N_HELD_OUT]):
        sentence["split"] = "test" if i < N_HELD_OUT else "dev"
    # Training must not have a test sentence in other clothes.
    held = {_bare(s["text"]) for s in sentences if s["split"] != "train"}
    return [s for s in sentences if s["split"] != "train" or _bare(s["text"]) not in held]


def _bare(text: str) -> str:
    return " ".join(re.findall("[a-z0-9]+", text.lower()))


def make_vocabulary(sentences: Iterator[str]) -> list[str]:
    """Letters and signs alone, common words and endings whole; held-out words are in letters."""
    counts: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        counts.update(re.findall("[A-Za-z]+", sentence))
    lower = [w for w, _ in counts.most_common() if w.islower() and len(w) > 1][:500]
    capital = [w for w, _ in counts.most_common() if w.istitle() and len(w) > 1][:100]
    signs = [chr(code) for code in range(0x21, 0x7F)]
    alone = [sign for sign in signs if sign.isalnum()]
    pieces = ["[PAD]", "[UNK]", *signs, *(f"##{a}" for a in alone)]
    pieces += [f"##{suffix}" for suffix in _SUFFIXES if len(suffix) > 1]
    return list(dict.fromkeys([*pieces, *lower, *capital]))


_teacher: list[Teacher] = []  # of this process


def _say(sentence: dict[str, Any]) -> Utterance | None:
    if not _teacher:
        _teacher.append(Teacher())
    voice = VOICES[sentence["voice"]]
    try:
        said = _teacher[0].say(sentence["text"], voice, sentence["speed"])
    except ValueError:
        return None
    return said if len(said.audio) <= MAX_SECONDS * SAMPLING_RATE else None


def synthesize(sentences: list[dict[str, Any]], work: Path, n_processes: int) -> None:
    """Have them spoken; those that are too long are left out."""
    state, audio_path = work / "data.json", work / "audio.i16"
    progress = json.loads(state.read_text()) if state.exists() else {"chunks": 0, "bytes": 0}
    chunks = [sentences[i : i + CHUNK] for i in range(0, len(sentences), CHUNK)]
    with multiprocessing.get_context("spawn").Pool(n_processes) as pool:
        for number in range(progress["chunks"], len(chunks)):
            said = pool.map(_say, chunks[number], chunksize=50)
            kept = [(s, u) for s, u in zip(chunks[number], said, strict=True) if u is not None]
            with open(audio_path, "ab") as file:
                file.truncate(progress["bytes"])
                for _, utterance in kept:
                    file.write(utterance.audio.tobytes())
                progress["bytes"] = file.tell()
            part = work / f"data-{number:03}.npz"
            np.savez(
                part,
                sentences=np.array([json.dumps(s) for s, _ in kept]),
                n_samples=np.array([len(u.audio) for _, u in kept]),
                n_phones=np.array([len(u.phones) for _, u in kept]),
                phones=np.concatenate([np.array(u.phones) for _, u in kept]),
                starts=np.concatenate([u.starts[: len(u.phones)] for _, u in kept]),
            )
            progress["chunks"] = number + 1
            state.write_text(json.dumps(progress))
            hours = progress["bytes"] / 2 / SAMPLING_RATE / 3600
            print(f"{number + 1}/{len(chunks)} chunks, {hours:.2f} h of speech", flush=True)
    parts = [dict(np.load(work / f"data-{i:03}.npz")) for i in range(len(chunks))]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    (work / "sentences.json").write_text("\n".join(joined["sentences"].tolist()) + "\n")
    names, phones = np.unique(joined["phones"], return_inverse=True)
    np.savez(
        work / "phones.npz",
        audio_ends=np.cumsum(joined["n_samples"]),
        phone_ends=np.cumsum(joined["n_phones"]),
        phones=phones.astype(np.int16),
        starts=joined["starts"].astype(np.int32),
        names=names,
    )
    splits = collections.Counter(json.loads(s)["split"] for s in joined["sentences"])
    print(f"{len(joined['n_samples'])} sentences: {dict(splits)}; {len(names)} phones")


if __name__ == "__main__":
    main()
