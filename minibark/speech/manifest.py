"""Manifests: what is to be said, a JSON object a line, from an untrusted file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..files import reason, repeated, shown
from ..options import Options, hint_of, knobs
from .plan import LongOptions

_MAX_LINE_BYTES = 1 << 20
_MAX_ID_BYTES = 200  # file systems allow names of 255
_NOT_IN_NAMES = '/\\:*?"<>|'  # somewhere they are no part of a file's name
# Devices, on Windows, with whatever behind a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.I)
_MAX_DIGITS = 400  # no number of more is any option's
_OPTIONS = [name for name, _ in knobs(Options)]
_PLANS = [name for name, _ in knobs(LongOptions)]
KEYS = ("id", "text", "voice", *_OPTIONS, *_PLANS)
"""What a line may have."""
# What the command line calls some of them, without its dashes.
_FLAGS = {
    knob.flag.strip("-").replace("-", "_"): name
    for kind in (Options, LongOptions)
    for name, knob in knobs(kind)
    if knob.flag
}


class ManifestError(ValueError):
    """A manifest, or one line of it, that cannot be used."""


@dataclass(frozen=True)
class Line:
    """What one clip is to be.

    Attributes:
        number: of the line, from 1.
        id: what its files are called.
        text: what to say.
        voice: a name or path; None is none.
        options: how to generate; `seed` is a number.
        plan: how to say it if it needs several pieces.
        has_seed: whether the line gives the seed itself.
    """

    number: int
    id: str
    text: str
    voice: str | None
    options: Options
    plan: LongOptions
    has_seed: bool


@dataclass(frozen=True)
class BadLine:
    """A line of which no clip can be made.

    Attributes:
        number: of the line, from 1.
        id: if it has one that can be read.
        reason: one line.
    """

    number: int
    id: str
    reason: str


def read_manifest(
    manifest: str | os.PathLike[str] | BinaryIO,
    voice: str | None = None,
    options: Options | None = None,
    plan: LongOptions | None = None,
) -> Iterator[Line | BadLine]:
    """The lines of a manifest, a path or what is open to be read, blank ones left out.

    A line is a JSON object with `id`, `text` and, where it is to be otherwise than told here, any
    of `voice` and the fields of `Options` and `LongOptions`. Without a seed it has one made of its
    id and of `options.seed` (0 if None).

    An id is a file's name on every system: it neither begins with a dot nor ends in one, has none
    of /, backslash, : * ? " < > and |, is none of Windows' devices (CON, NUL, COM1 ...), and
    differs from the others by more than case.

    Raises:
        ManifestError: the file has no lines.
        OSError: it cannot be read.
    """
    options, plan = options or Options(), plan or LongOptions()
    first: dict[str, int] = {}  # the line on which an id comes first
    for number, content in _contents(manifest):
        name = ""
        try:
            document = _document(content)
            name = _id(document)
            twin = first.setdefault(folded(name), number)
            if twin != number:
                _refuse(
                    f"its id {name!r} names the same file as that of line {twin}, on some systems"
                )
            yield _line(number, name, document, voice, options, plan)
        except ValueError as error:
            yield BadLine(number, name, reason(error))


def folded(name: str) -> str:
    """What ids are that name one file on some system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def share_of(name: str, n: int) -> int:
    """Which of n machines, from 1, has an id; the same on all of them."""
    return _hash(folded(name)) % n + 1


def seed_of(name: str, seed: int, attempt: int = 0) -> int:
    """The seed of an id in a job with this seed, and those of further attempts; below 2**48."""
    return _hash(f"{seed} {attempt} {name}") % 2**48


def _hash(text: str) -> int:
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def _contents(manifest: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, and never much of the file at once."""
    n_lines, number = 0, 0
    with contextlib.ExitStack() as stack:
        if isinstance(manifest, str | os.PathLike):
            name = os.fspath(manifest)
            file: BinaryIO = stack.enter_context(Path(os.path.expanduser(name)).open("rb"))
        else:
            file, name = manifest, "the manifest"
        while content := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                content = content.removeprefix(b"\xef\xbb\xbf")
            rest = content
            while len(rest) > _MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(_MAX_LINE_BYTES + 1)
            if content.strip():
                n_lines += 1
                yield number, content
    if not n_lines:
        raise ManifestError(
            f'{name} is empty; give lines such as {{"id": "hello", "text": "Hello."}}'
        )


def _document(content: bytes) -> dict[str, Any]:
    """The JSON object of a line."""
    if len(content) > _MAX_LINE_BYTES:
        _refuse(f"it is longer than {_MAX_LINE_BYTES >> 20} MiB; give each clip a line of its own")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"it is not UTF-8 ({error}); save the manifest as UTF-8")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_int=_whole)
    except RecursionError:
        _refuse("its JSON is nested too deeply")
    except json.JSONDecodeError as error:
        _refuse(f"it is not JSON ({error.msg} at character {error.pos + 1})")
    if not isinstance(document, dict):
        _refuse(f'it must be an object such as {{"id": "a", "text": "A."}}, got {_kind(document)}')
    return document


def _whole(digits: str) -> int:
    """A whole number; Python has words of its own for more digits than it reads."""
    if len(digits) > _MAX_DIGITS:
        _refuse(f"it has a number of {len(digits)} digits; give at most {_MAX_DIGITS}")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := repeated(pairs)) is not None:
        _refuse(f"it has {shown(twice, 40)!r} twice")
    return dict(pairs)


def _id(document: dict[str, Any]) -> str:
    """The id, if a file can be called so."""
    if "id" not in document:
        _refuse("it has no id; give it one, which becomes the name of its file")
    name = document["id"]
    if not isinstance(name, str):
        _refuse(f'its id must be a string such as "{shown(name, 20)}", got {_kind(name)}')
    wrong = ""
    if not name or name != name.strip() or not name.isprintable():
        wrong = "is empty, has white space around it or characters that do not print"
    elif name.startswith(".") or name.endswith("."):
        wrong = "begins or ends with a dot"
    elif found := set(name) & set(_NOT_IN_NAMES):
        wrong = f"has {min(found)}"
    elif _DEVICE.match(name):
        wrong = "is a device of Windows"
    elif len(name.encode("utf-8")) > _MAX_ID_BYTES:
        wrong = f"has more than {_MAX_ID_BYTES} bytes"
    if wrong:
        _refuse(f"its id {shown(name, 60)!r} {wrong}, and cannot be the name of a file; change it")
    return name


def _line(
    number: int,
    name: str,
    document: dict[str, Any],
    voice: str | None,
    options: Options,
    plan: LongOptions,
) -> Line:
    for key in document:
        if key not in KEYS:
            meant = _FLAGS.get(key.strip("-").replace("-", "_"))
            hint = f"did you mean {meant}?" if meant else hint_of(key, KEYS)
            _refuse(f"it has an unknown key {shown(key, 60)!r}; {hint}")
    text, voice = document.get("text"), document.get("voice", voice)
    if not isinstance(text, str) or not text.strip():
        given = repr(shown(text, 20)) if isinstance(text, str) else _kind(text)
        _refuse(f"its text must be a string of at least one word, got {given}")
    if not isinstance(voice, str | None):
        _refuse(f"its voice must be a name or the path of an .npz file, got {_kind(voice)}")
    own = {key: document[key] for key in _OPTIONS if key in document}
    has_seed = own.get("seed") is not None
    if not has_seed:
        job_seed = options.seed if isinstance(options.seed, int) else 0
        own["seed"] = seed_of(name, job_seed)
    plans = {key: document[key] for key in _PLANS if key in document}
    if None in plans.values():
        _refuse("an option of long texts must not be null; leave it out")
    replaced = dataclasses.replace(options, **own), dataclasses.replace(plan, **plans)
    return Line(number, name, text, voice, *replaced, has_seed)


def _refuse(why: str) -> NoReturn:
    raise ManifestError(why)


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    kinds = {type(None): "null or nothing", bool: "a boolean", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "a number")
