"""Who is served when, and sound on its way from the thread that makes it to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from ..sampling import OnStep
from .errors import RequestError, going_down

_MOST_AHEAD = 16  # pieces that wait for a slow listener


class GoneError(Exception):
    """The listener has gone, so nobody wants the rest."""


@dataclass(frozen=True)
class Part:
    """Sound of one piece of the text.

    Attributes:
        content: its bytes, which may be none yet.
        n_samples: how much sound it is.
        n_text_tokens: of its text.
        n_tokens: semantic tokens of it.
        seed: which made it.
        is_all: whether it is a file, and nothing comes after it.
        warnings: what its listener had better know, a sentence each.
    """

    content: bytes
    n_samples: int = 0
    n_text_tokens: int = 0
    n_tokens: int = 0
    seed: int = 0
    is_all: bool = False
    warnings: tuple[str, ...] = ()


class Job:
    """One request's sound, made in a thread that does nothing else meanwhile."""

    def __init__(self, make: Callable[[OnStep], Iterator[Part]]) -> None:
        """`make` is called in the thread; its callback raises when the listener has gone."""
        self._make, self._loop = make, asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_MOST_AHEAD)
        self._gone = threading.Event()
        self.ended = asyncio.Event()

    def start(self, threads: Executor) -> None:
        """Begin in one of these threads, of which one must be free."""
        threads.submit(self._run)

    def stop(self) -> None:
        """Let the work end at its next step; `ended` tells when it has."""
        self._gone.set()

    async def next(self) -> Part | None:
        """The next part; None after the last.

        Raises:
            Exception: what the work ended with.
        """
        part = await self._parts.get()
        if isinstance(part, BaseException):
            raise part
        self._room.release()
        return part

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for part in self._make(self._on_step):
                self._hand_over(part)
        except BaseException as error:
            end = error
        with contextlib.suppress(RuntimeError):  # the loop was closed by force
            self._loop.call_soon_threadsafe(self._parts.put_nowait, end)
            self._loop.call_soon_threadsafe(self.ended.set)

    def _on_step(self, stage: str, done: int, total: int) -> None:
        if self._gone.is_set():
            raise GoneError

    def _hand_over(self, part: Part) -> None:
        while not self._room.acquire(timeout=0.2):
            self._on_step("", 0, 0)
        self._on_step("", 0, 0)
        self._loop.call_soon_threadsafe(self._parts.put_nowait, part)


class Desk:
    """Lets some requests work and some wait, and refuses the others at once.

    Attributes:
        n_running: requests that are being worked at.
        n_waiting: requests that wait.
        threads: one for each request that runs. They stay: torch and the allocator keep memory for
            every thread that there ever was.
    """

    def __init__(self, most_running: int, most_waiting: int) -> None:
        self.most_running, self.most_waiting = most_running, most_waiting
        self.n_running = self.n_waiting = 0
        self.threads = ThreadPoolExecutor(most_running, "minibark-listener")
        self._free = asyncio.Semaphore(most_running)
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._typical_s = 5.0  # that a request takes
        self._patience: dict[asyncio.Timeout, float] = {}

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """A place to work at, after seconds of waiting, which are given.

        Raises:
            RequestError: 429 too many wait already, 503 the server is going down.
        """
        self._refuse_while_closing()
        if self._free.locked() and self.n_waiting >= self.most_waiting:
            wait_s = (self.n_waiting + 1) * self._typical_s / self.most_running
            raise RequestError(
                429,
                f"all places are taken ({self.n_running} at work, {self.n_waiting} waiting); come "
                "again later",
                code="queue_full",
                retry_after_s=min(120, max(1, round(wait_s))),
            )
        begin = time.monotonic()
        if self._free.locked():
            await self._turn()
        else:
            await self._free.acquire()
        start = time.monotonic()
        self.n_running += 1
        self._idle.clear()
        try:
            yield start - begin
        finally:
            self._typical_s += 0.2 * (time.monotonic() - start - self._typical_s)
            self.n_running -= 1
            self._free.release()
            if not self.n_running:
                self._idle.set()

    @contextlib.asynccontextmanager
    async def patience(self, usual_s: float, closing_s: float) -> AsyncIterator[None]:
        """Wait so long for a client, or so long once the server goes down; TimeoutError: longer."""
        async with asyncio.timeout(closing_s if self.is_closing else usual_s) as timer:
            self._patience[timer] = closing_s
            try:
                yield
            finally:
                del self._patience[timer]

    @contextlib.asynccontextmanager
    async def work(self, make: Callable[[OnStep], Iterator[Part]]) -> AsyncIterator[Job]:
        """A job in one of the threads, for the block: it has ended when that has."""
        job = Job(make)
        job.start(self.threads)
        try:
            yield job
        finally:
            job.stop()
            await job.ended.wait()

    async def close(self) -> None:
        """Refuse what is new, waits or still comes; return when what runs has ended."""
        self._closing.set()
        now = asyncio.get_running_loop().time()
        for timer, closing_s in self._patience.items():
            timer.reschedule(min(timer.when() or now, now + closing_s))
        await self._idle.wait()

    @property
    def is_closing(self) -> bool:
        """Whether the server is going down."""
        return self._closing.is_set()

    async def _turn(self) -> None:
        """Wait for a free place, or until the server goes down."""
        self.n_waiting += 1
        turn = asyncio.ensure_future(self._free.acquire())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((turn, closing), return_when=asyncio.FIRST_COMPLETED)
            self._refuse_while_closing()
        except BaseException:
            if not turn.cancel() and not turn.cancelled():
                self._free.release()
            raise
        finally:
            closing.cancel()
            self.n_waiting -= 1

    def _refuse_while_closing(self) -> None:
        if self._closing.is_set():
            raise going_down()
