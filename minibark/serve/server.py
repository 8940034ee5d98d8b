"""The running server: it binds, loads, serves, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ..bark import Bark
from ..files import reason, shown
from ..pipeline import Pipeline
from ..speech.processes import ProcessPipeline
from ..speech.shared import SharedPipeline, spoken
from .app import build
from .door import LOOPBACK_NAMES, Admission
from .speech import House
from .stats import Stats
from .voices import ServedVoices
from .work import Desk

_IDLE_S = 20  # after which a connection without a request is closed
_FLUSH_S = 10  # at the end, for what listeners have not taken yet of sound that is made


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        model: the name under which it is listed.
        host: where to listen.
        port: where to listen; 0 is any that is free.
        voice: who speaks where a request names nobody; None is nobody in particular.
        most_running: requests that are spoken together.
        most_waiting: requests that wait; beyond them 429.
        n_processes: that the model runs in; 1 is this one.
        key: which requests must bring; None is none.
        names: by which it may be called beside its own, such as a proxy's.
        origins: pages of other places that may use it.
        uploads: whether voices can be sent.
        most_bytes: of a request's body.
        is_quiet: whether nothing is said of requests that were served.
        is_debug: whether failures are told with where they came from.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8080
    voice: str | None = None
    most_running: int = 8
    most_waiting: int = 32
    n_processes: int = 1
    key: str | None = None
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    uploads: bool = False
    most_bytes: int = 1 << 18
    is_quiet: bool = False
    is_debug: bool = False


def run(settings: Settings, open_bark: Callable[[], Bark], tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let what runs end; a second signal ends it at once.

    A thread may then be inside the model still, or load it: the interpreter had better not be taken
    down around it.

    Args:
        settings: how.
        open_bark: opens the model; it is called in a thread once the port is taken.
        tell: says a line to whoever runs the server.

    Raises:
        OSError: the port cannot be had.
        Exception: what `open_bark` raises.
    """
    listener = _bound(settings.host, settings.port)
    place = _address(listener)
    if not _is_loopback(listener) and settings.key is None:
        tell(f"warning: whoever reaches {place} can use it; --api-key sets a key")
    house = House(
        settings.model,
        Desk(settings.most_running, settings.most_waiting),
        Stats(),
        tell,
        settings.most_bytes,
        log=(lambda line: None) if settings.is_quiet else tell,
        is_debug=settings.is_debug,
    )
    loading = _Loading(settings, open_bark, house, place)
    app = build(
        house,
        admission=Admission(settings.key, _names(settings, listener), settings.origins),
        uploads=settings.uploads,
        lifespan=loading.lifespan,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_FLUSH_S,
        lifespan="on",
        ws="none",
        http="h11",
        loop="asyncio",
    )
    server = _Server(config, house)
    loading.on_error = server.end
    with listener:
        server.run([listener])
    if house.stages is not None:
        pipeline = house.stages.pipeline
        if isinstance(pipeline, (SharedPipeline, ProcessPipeline)):
            pipeline.close(finish=False)  # nothing runs but after a second signal
    if loading.error is not None:
        raise loading.error


class _Server(uvicorn.Server):
    """Ends by way of the desk: what runs is heard to its end, what comes meanwhile gets a 503."""

    def __init__(self, config: uvicorn.Config, house: House) -> None:
        super().__init__(config)
        self._house = house
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Future[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on sockets that listen."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal, which is not passed on: the process ends with 0."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Begin to end or, the second time, end; to be called in the loop's thread."""
        if self._ending is not None:
            self.force_exit = self.should_exit = True
        else:
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        if self._house.stages is not None and self._house.desk.n_running:
            n = self._house.desk.n_running
            self._house.tell(f"going down once {n} running request{'s' * (n > 1)} ended")
        await self._house.desk.close()
        self.should_exit = True


class _Loading:
    """Loads the model beside the running server."""

    def __init__(
        self, settings: Settings, open_bark: Callable[[], Bark], house: House, place: str
    ) -> None:
        self._settings, self._open, self._house, self._place = settings, open_bark, house, place
        self.error: BaseException | None = None
        self.on_error: Callable[[], None] = lambda: None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load while the server runs."""
        loop = asyncio.get_running_loop()

        def load() -> None:
            try:
                bark = self._open()
                voices = ServedVoices(bark, self._settings.voice)
                bark.pipeline = self._pipeline(bark)
            except BaseException as error:
                self.error = error
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self.on_error)
                return
            self._house.stages, self._house.voices = bark, voices
            self._house.tell(f"{self._settings.model} listens on http://{self._place}/")

        threading.Thread(target=load, name="minibark-loading", daemon=True).start()
        yield

    def _pipeline(self, bark: Bark) -> Pipeline:
        """One for many threads, which has spoken once."""
        n, most = self._settings.n_processes, self._settings.most_running
        if n > 1:
            return ProcessPipeline(bark, n, most, self._house.tell)
        return SharedPipeline(spoken(bark), most)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise OSError(
            f"cannot listen on '{shown(host, 100)}': it is no address and no name of this machine; "
            "--host 127.0.0.1 is this machine alone"
        ) from None
    found.sort(key=lambda one: one[0] != socket.AF_INET)  # as most clients try them
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        is_address = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        tip = "--host must be an address of this machine" if is_address else "choose another --port"
        place = f"[{host}]:{port}" if ":" in host else f"{shown(host, 100)}:{port}"
        why = os.strerror(error.errno) if error.errno else reason(error)
        raise OSError(f"cannot listen on {place}: {why}; {tip}") from None
    return listener


def _names(settings: Settings, listener: socket.socket) -> frozenset[str] | None:
    """By which hosts may call it; None: any, since who listens to the network has many."""
    if not settings.names and not _is_loopback(listener):
        return None
    own = settings.host.strip("[]").lower()
    own = f"[{own}]" if ":" in own else own
    return frozenset((*LOOPBACK_NAMES, own, *(name.lower() for name in settings.names)))


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
