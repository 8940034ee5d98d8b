"""In front of every path: whose name and whose page a request comes by, the key, headers."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files import shown
from .errors import RequestError, going_down

_HOST = re.compile(r"\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_HOST.pattern})(?::[0-9]+)?")
SPEECH = "/v1/audio/speech"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


@dataclass(frozen=True)
class Admission:
    """Who is let in.

    Attributes:
        key: which `/v1/`, `/stats` and making a study page ask for; None is none.
        names: of hosts, in small letters and without ports, by which the server may be called; None
            is any. Else a page anywhere could have its own name lead here (DNS rebinding).
        origins: of pages of other places that may use it, `scheme://host[:port]`.
    """

    key: str | None = None
    names: Collection[str] | None = None
    origins: Collection[str] = ()

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Let a request in.

        Raises:
            RequestError: 403 by a name or from a page that is not known, 401 without the key.
        """
        host = headers.get("host", "").lower()
        if self.names is not None and _without_port(host) not in self.names:
            message = f"this server is not called '{shown(host, 60)}'; --allow-host lets it be"
            raise RequestError(403, message, code="bad_host")
        origin = headers.get("origin")
        if origin is not None and method in ("POST", "DELETE") and origin not in self.origins:
            if _origin_host(origin) != host:
                message = (
                    f"pages of '{shown(origin, 60)}' may not do this; --allow-origin lets them"
                )
                raise RequestError(403, message, code="bad_origin")
        if self.key is not None and (path.startswith("/v1/") or path in ("/stats", "/study")):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode(), self.key.encode())
            if scheme.lower() != "bearer" or not is_right:
                message = "the key is missing or wrong; send it as Authorization: Bearer KEY"
                raise RequestError(401, message, code="invalid_api_key")


class Door:
    """Lets requests in, gives answers the headers that browsers heed; no way in while closing."""

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        is_closing: Callable[[], bool],
        count: Callable[[int], None],
    ) -> None:
        """`count` is told the status of each speech request that is refused here."""
        self._app, self._admission, self._is_closing = app, admission, is_closing
        self._count = count
        left_out = {b"cross-origin-resource-policy"} if admission.origins else set()
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
            # The path is the scope's: a URL is put together with what the Host header says.
            self._admission.check(scope["method"], scope["path"], Headers(scope=scope))
            if scope["method"] == "POST" and self._is_closing():
                raise going_down()
        except RequestError as error:
            if (scope["method"], scope["path"]) == ("POST", SPEECH):
                self._count(error.status)
            await error.response()(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def checked_origin(origin: str) -> str:
    """An origin as browsers send it; ValueError: it is none."""
    if not _ORIGIN.fullmatch(origin.lower()):
        raise ValueError(
            "--allow-origin must be scheme://host or scheme://host:port, without a path, "
            f"got '{shown(origin, 60)}'"
        )
    return origin.lower()


def checked_host(name: str) -> str:
    """A host's name as `Admission` compares it; ValueError: it is none."""
    if not _HOST.fullmatch(name.lower()):
        raise ValueError(f"--allow-host must be a name alone, got '{shown(name, 60)}'")
    return name.lower()


def _origin_host(origin: str) -> str | None:
    """What a page's own Host header is; None: it has no origin."""
    scheme, mark, host = origin.lower().partition("://")
    return host if mark and scheme in ("http", "https") else None


def _without_port(host: str) -> str:
    name, mark, port = host.rpartition(":")
    return name if mark and port.isdigit() else host
