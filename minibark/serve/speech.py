"""`POST /v1/audio/speech`: a request to sound that leaves as it is made."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from ..files import reason, shown
from ..options import knobs
from ..speech.shared import ClosedError
from ..speech.split import MissingExtraError
from ..stages import Stages
from ..voice import VoiceError
from .errors import RequestError, going_down
from .requests import SpeechRequest, bad_value, parse
from .saying import Saying
from .sound import FORMATS
from .stats import Served, Stats
from .voices import ServedVoices
from .work import Desk, GoneError, Job, Part

T = TypeVar("T")
_BODY_S = 30.0  # for a body to come
_LINGER_S, _LINGER_BYTES = 2.0, 4 << 20  # for the rest of a body that is refused
_STALLED_S = 300.0  # after which a listener who takes nothing is taken for gone
_STALLED_AT_END_S = 10.0  # the same while the server goes down
_MOST_WARNING = 400  # characters of the header


@dataclass
class House:
    """What requests share.

    Attributes:
        stages: the Bark that speaks; None while it loads.
        voices: those that can be named; None while it loads.
        model: the name under which it is listed.
        desk: who is served when.
        stats: what has become of requests.
        tell: says a line to whoever runs the server.
        most_bytes: of a body.
        log: takes a line for each request that was served.
        is_debug: whether failures are told with where they came from.
    """

    model: str
    desk: Desk
    stats: Stats
    tell: Callable[[str], None]
    most_bytes: int
    log: Callable[[str], None]
    is_debug: bool = False
    stages: Stages | None = None
    voices: ServedVoices | None = None

    def ready(self) -> tuple[Stages, ServedVoices]:
        """The Bark and its voices; RequestError: 503, it loads still."""
        if self.stages is None or self.voices is None:
            raise RequestError(503, "the model is being loaded", code="loading", retry_after_s=2)
        return self.stages, self.voices

    def failed(self, error: Exception) -> None:
        """Tell of what is our fault."""
        tip = "" if self.is_debug else " (--debug shows where)"
        self.tell(f"{type(error).__name__}: {reason(error)}{tip}")
        if self.is_debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                self.tell(f"| {line}")


async def read_body(request: Request, desk: Desk, most_bytes: int) -> bytes:
    """The body, of whatever length it says it is.

    Raises:
        RequestError: 413 it is larger, found while it comes; 400 it did not come in time; 503 the
            server goes down meanwhile.
    """
    said = request.headers.get("content-length", "0")
    body, chunks = bytearray(), request.stream()
    try:
        async with desk.patience(_BODY_S, 0):
            if said.isascii() and said.isdigit() and len(said) < 20 and int(said) > most_bytes:
                if "expect" not in request.headers:  # else nothing comes unasked
                    await _let_pass(chunks)
                raise _too_large(most_bytes)
            async for chunk in chunks:
                body += chunk
                if len(body) > most_bytes:
                    await _let_pass(chunks)
                    raise _too_large(most_bytes)
    except TimeoutError:
        if desk.is_closing:
            raise going_down() from None
        message = f"the body did not come within {_BODY_S:.0f} s"
        raise RequestError(400, message, code="slow_body") from None
    return bytes(body)


async def _let_pass(chunks: AsyncIterator[bytes]) -> None:
    """Read some of what is refused: who still sends when we hang up hears no reason."""
    n_bytes = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_LINGER_S):
            async for chunk in chunks:
                n_bytes += len(chunk)
                if n_bytes > _LINGER_BYTES:
                    return


def media_type(request: Request) -> str:
    """What the body is said to be, without parameters, in small letters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_request(request: Request, house: House) -> SpeechRequest:
    """The speech request in a body of JSON; errors are those of `read_body` and `parse`."""
    kind = media_type(request)
    if kind != "application/json":  # which a page of another site cannot send unasked
        message = "Content-Type must be application/json"
        raise RequestError(400, f"{message}, got '{shown(kind, 60)}'", code="bad_type")
    return parse(await read_body(request, house.desk, house.most_bytes))


def _too_large(most_bytes: int) -> RequestError:
    message = f"the body may have {most_bytes} bytes; say a longer text in parts"
    return RequestError(413, message, code="too_large")


class Speech:
    """The endpoint, an ASGI application."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; when its listener goes, so does the work."""
        answer = _Answer(send, self._house.desk)
        work: asyncio.Future[None] | None = None
        gone: asyncio.Future[None] | None = None
        try:
            arrived = time.perf_counter()
            house = self._house
            house.ready()
            asked = await read_request(Request(scope, receive), house)
            work = asyncio.ensure_future(self._speak(asked, answer, arrived))
            gone = asyncio.ensure_future(_disconnected(receive))
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not (work.done() or answer.has_ended):
                raise GoneError
            await work
        except (GoneError, ClientDisconnect):
            self._house.stats.count("gone")
        except asyncio.CancelledError:  # the server ends by force
            await self._refuse(going_down(), answer, scope, receive)
            raise
        except Exception as error:
            await self._refuse(error, answer, scope, receive)
        finally:
            for task in filter(None, (work, gone)):
                task.cancel()
            if work is not None:
                await asyncio.wait((work,))

    async def _speak(self, asked: SpeechRequest, answer: _Answer, arrived: float) -> None:
        house = self._house
        stages, voices = house.ready()
        if asked.speakers:
            found = ((who, voices.find(name, "speaker")) for who, name in asked.speakers.items())
            names = dict(found)
        else:
            names = {"": voices.find(asked.voice)}
        # Before the wait, in which a voice may be deleted.
        loaded = {who: await asyncio.to_thread(voices.load, name) for who, name in names.items()}
        async with house.desk.place() as waited_s:
            start = time.perf_counter()
            async with house.desk.work(Saying(stages, asked, loaded).parts) as job:
                first_s, n_samples = await _send(job, asked, answer, stages.sample_rate, arrived)
            work_s, audio_s = time.perf_counter() - start, n_samples / stages.sample_rate
        house.stats.served(Served(first_s, waited_s, audio_s, work_s))
        who = ", ".join(shown(name, 40) for name in names.values() if name) or "no voice"
        house.log(
            f"{len(asked.text)} characters, {who}: {audio_s:.1f} s of {asked.audio_format} in "
            f"{work_s:.1f} s, the first after {first_s:.1f} s"
        )

    async def _refuse(
        self, error: Exception, answer: _Answer, scope: Scope, receive: Receive
    ) -> None:
        """Answer with what went wrong or, where sound has gone out, end without an end."""
        refusal = refusal_of(error)
        self._house.stats.count(refusal.status)
        if refusal.status == 500:
            self._house.failed(error)
        if not answer.has_begun:
            await refusal.response()(scope, receive, answer.send)
        elif answer.is_sse:
            await answer.event({"type": "error", **refusal.document()})
            await answer.end()


def refusal_of(error: Exception) -> RequestError:
    """What a client is told of an error."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ClosedError):
        return going_down()
    if isinstance(error, MissingExtraError):
        return RequestError(500, shown(error, 500), code="missing_extra")
    if isinstance(error, FileNotFoundError | VoiceError):
        message = "a file of the model is missing or damaged; the server's log says which"
        return RequestError(500, message, code="bad_file")
    if not isinstance(error, ValueError):
        return RequestError(500, "something went wrong here; the server's log says what")
    about = str(error).partition(" ")[0]
    return bad_value(about if about in dict(knobs()) else "input", shown(error, 500))


async def listened(work: asyncio.Future[T], receive: Receive) -> T:
    """What comes of work; GoneError: the listener has gone before."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise GoneError
        return await work
    finally:
        work.cancel(), gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(
    job: Job, asked: SpeechRequest, answer: _Answer, sample_rate: int, arrived: float
) -> tuple[float, int]:
    """Send the sound of a job: when the first of it went out, in seconds, and its samples."""
    first_s, n_samples, usage = 0.0, 0, Counter(input_tokens=0, output_tokens=0)
    warnings: list[str] = []
    while (part := await job.next()) is not None:
        warnings += part.warnings
        n_samples += part.n_samples
        usage.update(input_tokens=part.n_text_tokens, output_tokens=part.n_tokens)
        if part.content:
            if not answer.has_begun:
                first_s = time.perf_counter() - arrived
                await answer.begin(asked, part, sample_rate)
            await answer.sound(part)
    if answer.is_sse:
        done: dict[str, Any] = {"usage": {**usage, "total_tokens": usage.total()}}
        if warnings:
            done["warnings"] = warnings
        await answer.event({"type": "speech.audio.done", **done})
    await answer.end()
    return first_s, n_samples


class _Answer:
    """The answer as it goes out: sound, or events that have it."""

    def __init__(self, send: Send, desk: Desk) -> None:
        self._send, self._desk = send, desk
        self.has_begun = self.has_ended = self.is_sse = False

    async def send(self, message: Message) -> None:
        """Send; GoneError: there is nobody any more, or nobody who takes it."""
        try:
            async with self._desk.patience(_STALLED_S, _STALLED_AT_END_S):
                await self._send(message)
        except OSError as error:  # TimeoutError is one
            raise GoneError from error

    async def begin(self, asked: SpeechRequest, first: Part, sample_rate: int) -> None:
        """Send the head, which says nothing of a length unless all the sound is there."""
        self.has_begun, self.is_sse = True, asked.is_sse
        headers = {
            "content-type": "text/event-stream" if asked.is_sse else FORMATS[asked.audio_format],
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # nginx would hold sound back
            "x-sample-rate": str(sample_rate),
            "x-seed": str(first.seed),
        }
        if first.warnings:
            words = shown(ascii("; ".join(first.warnings))[1:-1], _MOST_WARNING)
            headers["x-warning"] = words
        if first.is_all and not asked.is_sse:
            headers["content-length"] = str(len(first.content))
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": 200, "headers": raw})

    async def sound(self, part: Part) -> None:
        """Send bytes of sound."""
        if self.is_sse:
            audio = base64.b64encode(part.content).decode()
            await self.event({"type": "speech.audio.delta", "audio": audio})
        elif part.is_all:
            await self.end(part.content)
        else:
            await self.send(_body(part.content, True))

    async def event(self, document: dict[str, Any]) -> None:
        """Send a server-sent event."""
        await self.send(_body(f"data: {json.dumps(document)}\n\n".encode(), True))

    async def end(self, content: bytes = b"") -> None:
        """Send the end, if it has not gone out."""
        if not self.has_ended:
            self.has_ended = True
            await self.send(_body(content, False))


def _body(content: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
