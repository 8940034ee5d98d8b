"""Study pages of what was said: made when somebody asks for one, and kept for a while."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response

from ..bark import Bark
from ..checkpoint.voices import VoiceLike
from ..sampling import OnStep
from ..speech.reading import Reading
from ..stages import Stages
from ..study import page, trace
from .errors import RequestError, json_response
from .requests import SpeechRequest, bad_value
from .speech import House, listened, read_request, refusal_of
from .work import GoneError, Part

_MOST_PAGES = 8


class Studies:
    """`POST /study` makes a page, `GET /study/ID` shows it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._pages: OrderedDict[str, bytes] = OrderedDict()

    async def make(self, request: Request) -> Response:
        """A page of the utterance that a speech request with a seed gets; answers where it is.

        Raises:
            RequestError: as a speech request; 422 a dialog, no seed, a text of several pieces.
        """
        bark, voices = self._house.ready()
        asked = await read_request(request, self._house)
        if asked.speakers:
            raise bad_value("speaker", "a study page shows one speaker; leave speaker out")
        if asked.options.seed is None:
            raise bad_value("seed", "give the seed of what is to be shown; x-seed tells it")
        name = voices.find(asked.voice)
        voice: VoiceLike = name  # the page names the model's own; an uploaded one may be deleted
        if name not in bark.voices:
            voice = await asyncio.to_thread(voices.load, name)
        desk, showing = self._house.desk, _Showing(bark, asked, voice)
        try:
            async with desk.place(), desk.work(showing.parts) as job:
                part = await listened(asyncio.ensure_future(job.next()), request.receive)
        except GoneError:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:  # told as the speech endpoint tells it
            refusal = refusal_of(error)
            if refusal.status == 500:
                self._house.failed(error)
            raise refusal from error
        assert part is not None
        place = secrets.token_urlsafe(16)
        self._pages[place] = part.content
        while len(self._pages) > _MOST_PAGES:
            self._pages.popitem(last=False)
        return json_response({"url": f"study/{place}"})

    async def show(self, request: Request) -> Response:
        """A page that was made; RequestError: 404, there is none, or none any more."""
        content = self._pages.get(request.path_params["place"])
        if content is None:
            raise RequestError(404, "this study page is not kept any more; make it again")
        # The page has its own policy, which knows the digests of its style and script.
        headers = {"cache-control": "no-store", "content-security-policy": "frame-ancestors 'none'"}
        return Response(content, headers=headers, media_type="text/html")


class _Showing:
    """What a job's thread does."""

    def __init__(self, bark: Stages, asked: SpeechRequest, voice: VoiceLike) -> None:
        self._bark, self._asked, self._voice = bark, asked, voice

    def parts(self, on_step: OnStep) -> Iterator[Part]:
        """The page, at once; errors are those of `Reading` and `trace`."""
        on_step("", 0, 0)
        bark, asked, voice = self._bark, self._asked, self._voice
        assert isinstance(bark, Bark)
        n = len(Reading(bark, asked.options, asked.plan).text(asked.text, voice).turns)
        if n > 1:
            raise bad_value("input", f"a study page shows one piece; this text has {n}")
        seen = trace(bark, asked.text, voice, on_step=on_step, **vars(asked.options))
        yield Part(page(seen).encode())
