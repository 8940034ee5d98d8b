"""The paths of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..speech.processes import NO_PROCESS, ProcessPipeline
from ..speech.shared import SharedPipeline
from .door import SPEECH, Admission, Door
from .errors import RequestError, going_down, json_response
from .speech import House, Speech, media_type, read_body
from .studies import Studies

ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that clients expect; every name is the one model."""

_OF_OPENAI_S_CLIENT = [
    f"x-stainless-{name}"
    for name in (
        *("arch", "async", "custom-poll-interval", "helper-method", "lang", "os"),
        *("package-version", "poll-helper", "retry-count", "runtime", "runtime-version", "timeout"),
    )
]
_MOST_UPLOAD_BYTES = 1 << 20
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
Handler = Callable[[Request], Awaitable[Response]]


def build(
    house: House,
    *,
    admission: Admission | None = None,
    uploads: bool = False,
    lifespan: Any = None,
) -> Starlette:
    """The application.

    Args:
        house: what requests share.
        admission: who is let in; None is everybody.
        uploads: whether voices can be sent.
        lifespan: what to do around the running server, as Starlette has it.
    """
    started = int(time.time())
    admission = admission or Admission()
    front: list[Middleware] = []
    if admission.origins:
        front.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(admission.origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["authorization", "content-type", *_OF_OPENAI_S_CLIENT],
                expose_headers=["x-seed", "x-sample-rate", "x-warning", "retry-after"],
            )
        )
    front.append(
        Middleware(
            Door,
            admission=admission,
            is_closing=lambda: house.desk.is_closing,
            count=house.stats.count,
        )
    )

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
        if request.method == "POST":
            return await add_voice(request)
        listed = house.ready()[1].listed()
        return json_response({"object": "list", "voices": listed, "data": listed})

    async def add_voice(request: Request) -> Response:
        if not uploads:
            raise RequestError(404, "this server takes no voices; start it with --uploads")
        if media_type(request) != "application/octet-stream":
            message = "send the .npz as the body, with Content-Type: application/octet-stream"
            raise RequestError(400, message, code="bad_type")
        content = await read_body(request, house.desk, _MOST_UPLOAD_BYTES)
        name = request.query_params.get("name", "")
        length_s = await asyncio.to_thread(house.ready()[1].add, name, content)
        return json_response({"id": name, "object": "voice", "seconds": round(length_s, 2)})

    async def remove_voice(request: Request) -> Response:
        house.ready()[1].remove(request.path_params["name"])
        return json_response({"id": request.path_params["name"], "deleted": True})

    async def health(request: Request) -> Response:
        pipeline = house.ready()[0].pipeline
        if house.desk.is_closing:
            raise going_down()
        if isinstance(pipeline, ProcessPipeline) and not pipeline.is_able:
            raise RequestError(503, NO_PROCESS, code="loading", retry_after_s=10)
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
        if isinstance(pipeline, (SharedPipeline, ProcessPipeline)):
            queue |= {"rows": pipeline.n_live, "rows_waiting": pipeline.n_waiting}
        return json_response({"model": house.model, "queue": queue, **house.stats.document()})

    app = Starlette(
        routes=[
            *(Route(f"/{path}", _asset(*file)) for path, file in _PAGE.items()),
            Route(SPEECH, Speech(house), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/audio/models", models),
            Route("/v1/audio/voices", voices, methods=["GET", "POST"]),
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
    app.router.redirect_slashes = False
    return app


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
    known = {
        404: ("there is nothing at this path", "not_found"),
        405: ("this path has no such method", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, ("the request cannot be read", "bad_request"))
    response = RequestError(error.status_code, message, code=code).response()
    response.headers.update(error.headers or {})
    return response


def _failed(house: House) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def failed(request: Request, error: Exception) -> Response:
        house.failed(error)
        message = "something went wrong here; the server's log says what"
        return RequestError(500, message).response()

    return failed
