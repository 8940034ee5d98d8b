"""What the teacher reads: natural sentences, word lists, numbers, and the everyday.

Sources, all free to use: WordNet 3 (definitions and examples; Princeton's licence), wordfreq's list
of English words by frequency (CC-BY-SA 4.0), and the patterns below.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import wordfreq

WORDNET = Path("/usr/share/wordnet")  # Debian's package wordnet-base
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLAIN = re.compile(r"[A-Za-z0-9 ,.'?!;:()-]+")
_NAMES = """Anna Ben Carl Clara David Emma Eric Frank George Grace Hannah Harry Helen Henry Ian Jack
James Jane John Julia Kate Laura Leo Linda Lucy Maria Mark Martin Mary Max Michael Mike Nina Oliver
Paul Peter Rose Ruth Sam Sarah Simon Sophie Susan Thomas Tim Tom Victor Alice Suno Bark Bob Daniel
Alex Chris Eve Robert William Rachel Steve Karen Nancy Betty Mr.~Brown Mrs.~Green Doctor~Smith
London Paris Berlin Rome Boston Chicago Texas France Germany Spain China India""".split()
_PATTERNS = """Hello, my name is {name}.|Hi, I am {name}.|Hello {name}!|Hello, {name}, how are you?
How are you today?|I am fine, thank you.|Good morning, {name}.|Good night!|Thank you very much.
Nice to meet you, {name}.|What is your name?|Where do you live?|I live in {name}.|Hello.|Hello!
My name is {name}, and I like {word}.|I like {word} and {word}.|Do you like {word}?|I love {word}!
Please give me the {word}.|Where is the {word}?|Can you see the {word}?|This is a {word}.|Yes.|No.
That is not my {word}.|What a beautiful {word}!|How much is the {word}?|It is {number} o'clock.
The {word} costs {number} dollars.|I have {number} {word} and {number} {word}.|Thanks, {name}!
Chapter {number}.|Page {number}, line {number}.|Call me at {digits}.|The code is {digits}.|Really?
Turn left at the {word}, then right.|See you on {day}, {name}.|It is {day}, the {number} of {month}.
On {day} we go to {name}.|She was born in {year}.|In {year}, everything changed.|Good bye, {name}!
The train leaves at {hour}:{minute}.|We meet at {hour}:{minute} in {name}.|Wait, what?|Oh no!
The {word}, the {word}, and the {word}.|Well, I think so.|I don't know.|It's a {word}, isn't it?
You can't do that!|We're late, let's go.|He said: {word}.|Is it {word} or {word}?|Welcome to {name}.
Once upon a time, there was a {word}.|The quick brown fox jumps over the lazy dog.|Nothing at all.
This is a test.|Testing, one, two, three.|The weather is {word} today.|Text to speech is {word}.
I can speak, and you can hear me.|Can you hear me, {name}?|Let me tell you a story.|The end.
And also, I have other interests, such as {word}.|Sorry, I did not hear you.|Say that again, please.
The {word} is {word}.|She is very {word}.|It was a {word} and {word} {word}.
They are {word}, too."""
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = """January February March April May June July August September October November
December""".split()


def words(n: int) -> list[str]:
    """The n commonest English words of at least two letters (and `a`, `I`), letters only."""
    found = (w for w in wordfreq.top_n_list("en", 2 * n) if re.fullmatch("[a-z]{2,}|a", w))
    return [w for w, _ in zip(found, range(n), strict=False)]


def wordnet(root: Path = WORDNET) -> Iterator[tuple[str, str]]:
    """("example" or "definition", text) of all senses."""
    if not root.is_dir():
        raise FileNotFoundError(f"no WordNet at {root}; `apt-get install wordnet-base` brings it")
    for part in ("noun", "verb", "adj", "adv"):
        for line in (root / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue  # the licence
            gloss = line.partition("|")[2].strip()
            for example in re.findall(r'"([^"]+)"', gloss):
                yield "example", example.strip()
            for definition in gloss.partition('"')[0].split(";"):
                yield "definition", definition.strip()


def natural(text: str) -> str | None:
    """A text as a sentence, or None if it is not one to read."""
    text = re.sub(r"\s+", " ", text).replace("`", "'").strip(" ,;:-")
    n = len(text.split())
    if not _PLAIN.fullmatch(text) or not 3 <= n <= 16 or len(text) > 90 or "--" in text:
        return None
    if re.search(r"[0-9]{3}|[A-Z][A-Z]|\b[A-Za-z]\.|\(|\)", text):
        return None
    return text


def number(rng: random.Random) -> str:
    """A number in figures: small ones are commoner."""
    return str(rng.randrange(rng.choice((13, 100, 100, 1000, 10_000))))


def digit_string(rng: random.Random) -> list[str]:
    """Three to seven figures."""
    return [str(rng.randrange(10)) for _ in range(rng.randint(3, 7))]


def numbers(rng: random.Random) -> str:
    """A text about figures."""
    figures = digit_string(rng)
    kinds: list[Callable[[], str]] = [
        lambda: " ".join(figures),
        lambda: " ".join(DIGITS[int(f)] for f in figures),
        lambda: ", ".join(figures[:5]),
        lambda: " ".join(number(rng) for _ in range(rng.randint(1, 4))),
        lambda: f"{number(rng)} and {number(rng)}",
        lambda: f"{rng.randrange(1000)}.{rng.randrange(100)}",
        lambda: str(rng.randrange(1000, 2100)),
        lambda: f"{rng.randrange(1, 25)}:{rng.randrange(60):02}",
        lambda: f"{number(rng)} times {number(rng)} is {number(rng)}",
    ]
    return rng.choices(kinds, weights=(5, 5, 2, 3, 1, 1, 2, 1, 1))[0]()


def everyday(rng: random.Random, common: list[str]) -> str:
    """One of the patterns, filled in."""
    pattern = rng.choice([p for line in _PATTERNS.splitlines() for p in line.split("|")])
    fill: dict[str, Callable[[], str]] = {
        "name": lambda: rng.choice(_NAMES).replace("~", " "),
        "word": lambda: rng.choice(common),
        "number": lambda: number(rng),
        "digits": lambda: " ".join(digit_string(rng)),
        "day": lambda: rng.choice(_DAYS),
        "month": lambda: rng.choice(_MONTHS),
        "year": lambda: str(rng.randrange(1800, 2030)),
        "hour": lambda: str(rng.randint(1, 12)),
        "minute": lambda: f"{rng.randrange(60):02}",
    }
    return re.sub(r"\{(\w+)\}", lambda match: fill[match[1]](), pattern)


def word_list(rng: random.Random, lists: list[list[str]]) -> str:
    """Three to eight words that mean nothing together, sometimes one or two."""
    n = rng.randint(3, 8) if rng.random() < 0.85 else rng.randint(1, 2)
    return " ".join(rng.choice(rng.choice(lists)) for _ in range(n))


def dress(text: str, rng: random.Random) -> str:
    """Case and closing punctuation as people write them, mostly right."""
    if rng.random() < 0.75:
        text = text[:1].upper() + text[1:]
    elif rng.random() < 0.08:
        text = text.upper()
    if text[-1:] not in ".?!" and rng.random() < 0.85:
        text += rng.choices(".?!", weights=(8, 1, 1))[0]
    return text
