"""What a request is refused with: OpenAI's error object, under a status that clients know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class RequestError(ValueError):
    """A request that gets no sound.

    Attributes:
        status: 400 what cannot be read, 401 the key, 403 the name or the page it comes by, 404 no
            such place or voice, 405 no such method, 409 no room for a voice, 413 too large, 422 a
            value, 429 too many wait, 500 our fault, 503 not now.
        param: the field that is wrong, if one is.
        code: a word for programs.
        retry_after_s: when to come again, seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """OpenAI's error object, without the status."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        about = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": about}

    def response(self) -> Response:
        """The answer; of a body that was given up, one that closes the connection."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status == 413 or self.code == "slow_body":
            headers["connection"] = "close"
        return json_response(self.document(), self.status, headers)


def json_response(
    document: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A document as JSON in ASCII: strings of clients may hold what UTF-8 cannot."""
    return Response(json.dumps(document), status, headers, "application/json")


def going_down() -> RequestError:
    """503: the server is being ended."""
    return RequestError(503, "the server is going down", code="unavailable", retry_after_s=5)
