"""The body of a speech request: untrusted JSON to checked values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any, NoReturn, TypeVar

from ..files import repeated, shown
from ..options import Knobs, Options, hint_of, knobs
from ..speech.plan import LongOptions
from .errors import RequestError
from .sound import FORMATS

STREAM_FORMATS = ("audio", "sse")
_OPENAI = ("model", "input", "voice", "response_format", "speed", "stream_format", "instructions")
_MOST_SPEAKERS = 64

K = TypeVar("K", bound=Knobs)


@dataclass(frozen=True)
class SpeechRequest:
    """What a listener asks for.

    Attributes:
        text: what to say, any length; with `speakers` a dialog, lines `NAME: text`.
        voice: its name; None is the server's default. It is not looked at in a dialog.
        speakers: the voice of each speaker; none where it is no dialog.
        audio_format: one of `FORMATS`.
        is_sse: whether sound goes out as server-sent events.
        options: how to generate.
        plan: how to say a long text.
    """

    text: str
    voice: str | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)
    audio_format: str = "mp3"
    is_sse: bool = False
    options: Options = field(default_factory=Options)
    plan: LongOptions = field(default_factory=LongOptions)


def parse(body: bytes) -> SpeechRequest:
    """The request in a body of JSON.

    Raises:
        RequestError: 400 not JSON, 422 an unknown key or a bad value; `param` names it.
    """
    document = _document(body)
    ours = [name for kind in (Options, LongOptions) for name, _ in knobs(kind)]
    known = [*_OPENAI, "speaker", *ours]
    for name in document:
        if name not in known:
            hint = hint_of(name, known)
            message = f"unknown key '{shown(name, 60)}'; {hint}"
            raise RequestError(422, message, param=shown(name, 60), code="unknown_parameter")
    given = {name: value for name, value in document.items() if value is not None}
    _refuse(given)
    return SpeechRequest(
        text=_text(given.get("input"), "input", 1 << 30),
        voice=voice_name(given["voice"], "voice") if "voice" in given else None,
        speakers=_speakers(given.get("speaker")),
        audio_format=_one_of(given, "response_format", tuple(FORMATS), "mp3"),
        is_sse=_one_of(given, "stream_format", STREAM_FORMATS, "audio") == "sse",
        options=_knobs_of(Options, given),
        plan=_knobs_of(LongOptions, given),
    )


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(
            body.decode("utf-8-sig"), parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else shown(str(error), 200)
        raise RequestError(400, f"the body must be JSON in UTF-8: {why}", code="bad_json") from None
    if not isinstance(document, dict):
        raise RequestError(400, "the body must be a JSON object", code="bad_json")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := repeated(pairs)) is not None:
        raise ValueError(f"it has {shown(twice, 60)!r} twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(given: Mapping[str, Any]) -> None:
    """Refuse what OpenAI's endpoint has and this one has not, by name."""
    if given.get("response_format") == "aac":
        message = f"aac is not made here; response_format is one of {', '.join(FORMATS)}"
        raise RequestError(422, message, param="response_format", code="unsupported_format")
    speed = given.get("speed", 1)
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or speed != 1:
        message = f"speed can only be 1: Bark has no other, got {brief(speed)}"
        raise RequestError(422, message, param="speed", code="unsupported_speed")
    for name in ("model", "instructions"):  # which change nothing
        if name in given:
            _text(given[name], name, 100_000, may_be_empty=True)


def _text(value: object, name: str, longest: int, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        got = "nothing" if value is None else brief(value)
        raise bad_value(name, f"{name} must be a string, got {got}")
    if not may_be_empty and not value.strip():
        raise bad_value(name, f"{name} is empty; give at least one word")
    if len(value) > longest:
        raise bad_value(name, f"{name} may have {longest} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise bad_value(name, f"{name} holds half of a surrogate pair: no text") from None
    return value


def voice_name(value: object, param: str) -> str:
    """The name in a voice: a string, or `{"id": string}`."""
    if isinstance(value, dict) and set(value) == {"id"}:
        value = value["id"]
    if not isinstance(value, str):
        raise bad_value(param, f'{param} must be a name or {{"id": name}}, got {brief(value)}')
    return _text(value, param, 200)


def _speakers(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not 1 <= len(value) <= _MOST_SPEAKERS:
        message = f"speaker must be an object, name to voice, of 1 to {_MOST_SPEAKERS}"
        raise bad_value("speaker", f"{message}, got {brief(value)}")
    for name in value:
        _text(name, "speaker", 200, may_be_empty=True)
    return {name: voice_name(voice, "speaker") for name, voice in value.items()}


def _one_of(given: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = given.get(name, default)
    if value not in choices or not isinstance(value, str):
        raise bad_value(name, f"{name} must be one of {', '.join(choices)}, got {brief(value)}")
    return value


def _knobs_of(kind: type[K], given: Mapping[str, Any]) -> K:
    ours = {name: given[name] for name, _ in knobs(kind) if name in given}
    for name, value in ours.items():
        try:
            kind.from_dict({name: value})
        except ValueError as error:
            raise bad_value(name, str(error)) from None
    return kind.from_dict(ours)


def bad_value(param: str, message: str) -> RequestError:
    """422 for a field."""
    return RequestError(422, message, param=param, code="invalid_value")
