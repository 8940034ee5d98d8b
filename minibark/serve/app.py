"""The paths of the server."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files import reason
from ..speech.shared import SharedPipeline
from .errors import RequestError, json_response, unavailable
from .speech import House, Speech, read_body
from .studies import Studies

ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that clients expect; every name is the one model."""

_MOST_UPLOAD_BYTES = 1 << 20
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}

Handler = Callable[[Request], Awaitable[Response]]


class Door:
    """In front of every path: the key, headers that browsers heed, and no way in while closing."""

    def __init__(self, app: ASGIApp, house: House, key: str | None, is_shared: bool) -> None:
        """`is_shared` lets pages of other places have the answers."""
        self._app, self._house, self._key = app, house, key
        left_out = {b"cross-origin-resource-policy"} if is_shared else set()
        self._headers = [pair for pair in _HEADERS.items() if pair[0] not in left_out]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])
                names = {name for name, _ in own}
                message["headers"] = [*own, *(one for one in self._headers if one[0] not in names)]
            await send(message)

        try:
            self._check(Request(scope))
        except RequestError as error:
            await error.response()(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _check(self, request: Request) -> None:
        path = request.url.path
        if not path.startswith("/v1/") and path not in ("/stats", "/study"):
            return
        if self._key is not None:
            given = request.headers.get("authorization", "")
            expected = f"Bearer {self._key}"
            if not hmac.compare_digest(given.encode(), expected.encode()):
                message = "the key is missing or wrong; send it as Authorization: Bearer KEY"
                raise RequestError(401, message, code="invalid_api_key")
        if self._house.desk.is_closing and request.method == "POST":
            raise unavailable("the server is going down")


def build(
    house: House,
    *,
    key: str | None = None,
    origins: Sequence[str] = (),
    uploads: bool = False,
    lifespan: Any = None,
) -> Starlette:
    """The application.

    Args:
        house: what requests share.
        key: which `/v1/`, `/stats` and making a study page ask for; None is none.
        origins: of pages of other places that may use it.
        uploads: whether voices can be sent.
        lifespan: what to do around the running server, as Starlette has it.
    """
    started = int(time.time())
    front: list[Middleware] = []
    if origins:
        front.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["authorization", "content-type"],
                expose_headers=["x-seed", "x-sample-rate"],
            )
        )
    front.append(Middleware(Door, house=house, key=key, is_shared=bool(origins)))

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "minibark"}

    studies = Studies(house)
    names = list(dict.fromkeys((house.model, *ALIASES)))

    async def models(request: Request) -> Response:
        listed = [entry(name) for name in names]
        return json_response({"object": "list", "data": listed, "models": listed})

    async def model(request: Request) -> Response:
        if request.path_params["name"] not in names:
            raise RequestError(404, "no such model; GET /v1/models lists them", param="model")
        return json_response(entry(request.path_params["name"]))

    async def voices(request: Request) -> Response:
        listed = house.ready()[1].listed()
        return json_response({"object": "list", "voices": listed, "data": listed})

    async def add_voice(request: Request) -> Response:
        if not uploads:
            raise RequestError(404, "this server takes no voices; start it with --uploads")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/octet-stream":
            message = "send the .npz as the body, with Content-Type: application/octet-stream"
            raise RequestError(400, message, code="bad_type")
        content = await read_body(request, _MOST_UPLOAD_BYTES)
        name = request.query_params.get("name", "")
        length_s = await asyncio.to_thread(house.ready()[1].add, name, content)
        return json_response({"id": name, "object": "voice", "seconds": round(length_s, 2)})

    async def remove_voice(request: Request) -> Response:
        house.ready()[1].remove(request.path_params["name"])
        return json_response({"id": request.path_params["name"], "deleted": True})

    async def health(request: Request) -> Response:
        house.ready()
        if house.desk.is_closing:
            raise unavailable("the server is going down")
        return json_response({"status": "ok", "model": house.model})

    async def stats(request: Request) -> Response:
        desk = house.desk
        queue = {
            "running": desk.n_running,
            "waiting": desk.n_waiting,
            "most_running": desk.most_running,
            "most_waiting": desk.most_waiting,
        }
        pipeline = house.stages.pipeline if house.stages is not None else None
        if isinstance(pipeline, SharedPipeline):
            queue |= {"rows": pipeline.n_live, "rows_waiting": pipeline.n_waiting}
        return json_response({"model": house.model, "queue": queue, **house.stats.document()})

    return Starlette(
        routes=[
            *(Route(f"/{path}", _asset(*file)) for path, file in _PAGE.items()),
            Route("/v1/audio/speech", Speech(house), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/audio/models", models),
            Route("/v1/audio/voices", voices, methods=["GET"]),
            Route("/v1/audio/voices", add_voice, methods=["POST"]),
            Route("/v1/audio/voices/{name}", remove_voice, methods=["DELETE"]),
            Route("/study", studies.make, methods=["POST"]),
            Route("/study/{place}", studies.show),
            Route("/health", health),
            Route("/stats", stats),
        ],
        middleware=front,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _of_starlette,
            Exception: _failed(house),
        },
        lifespan=lifespan,
    )


def _asset(name: str, media_type: str) -> Handler:
    content = (Path(__file__).parent / "page" / name).read_bytes()

    async def asset(request: Request) -> Response:
        return Response(content, headers={"cache-control": "no-cache"}, media_type=media_type)

    return asset


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _of_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is nothing at this path", 405: "this path has no such method"}
    message = messages.get(error.status_code, "the request cannot be read")
    return RequestError(error.status_code, message, code="not_found").response()


def _failed(house: House) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def failed(request: Request, error: Exception) -> Response:
        house.tell(f"{type(error).__name__}: {reason(error)}")
        message = "something went wrong here; the server's log says what"
        return RequestError(500, message).response()

    return failed
