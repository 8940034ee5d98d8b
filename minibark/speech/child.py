"""One process of a `ProcessPipeline`: how it is asked, and what it does.

    speak: rows, states of their streams, options  ->  step, step, ..., done or error
    decode: codes                                  ->  done or error
    drop: what is at work

Tensors go as arrays: torch would hand them over in shared memory, a file for each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..files import reason
from ..pipeline import Row
from ..stages import Stages
from ..voice import Voice
from .shared import ClosedError, SharedPipeline, spoken

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]

END_S = 5.0  # for a process to end by itself


class LostError(RuntimeError):
    """A process ended, killed or out of memory, while it spoke a text."""


class Child:
    """A process and those who wait for its answers.

    Attributes:
        n_rows: that it is at.
        is_over: whether it has ended.
    """

    def __init__(
        self,
        stages: Stages,
        most: int,
        threads: int,
        ready: SimpleQueue[Exception | None],
        on_end: Callable[[Child], None],
    ) -> None:
        """Start it; OSError: there is no room for one more.

        Args:
            stages: a Bark, which is opened again there.
            most: rows that are spoken together.
            threads: of torch.
            ready: gets None once it has begun, or why it cannot.
            on_end: called in a thread when it has ended.
        """
        self.n_rows, self.is_over = 0, False
        self._ready, self._on_end = ready, on_end
        self._waiting: dict[int, SimpleQueue[tuple[str, Any]]] = {}
        self._sending, self._has_begun = threading.Lock(), False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, most, threads), name="minibark rows", daemon=True
        )
        # What a terminal or a service manager sends goes to all; the first process decides.
        with _blocked("SIGINT", "SIGTERM", "SIGHUP"):
            self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, args=(stages,), daemon=True).start()

    def ask(
        self, number: int, what: str, order: tuple[Any, ...], is_told: bool
    ) -> SimpleQueue[tuple[str, Any]]:
        """Hand an order over; where its answers come: steps, and at last what is done or wrong."""
        answers = self._waiting[number] = SimpleQueue()
        self._send((number, what, order, is_told))
        if self.is_over:
            answers.put(("error", _lost_error()))
        return answers

    def forget(self, number: int) -> None:
        """Let an order go, if it is at work still."""
        if self._waiting.pop(number, None) is not None:
            self._send((number, "drop", (), False))

    def hang_up(self) -> None:
        """Let the process end itself, whatever it is at; nothing waits for that."""
        # Closed alone, the connection would live on in the thread that reads it.
        with contextlib.suppress(OSError, ValueError):
            line = socket.socket(fileno=os.dup(self._connection.fileno()))
            with line:
                line.shutdown(socket.SHUT_RDWR)

    def end(self, deadline: float) -> None:
        """See that it has ended by a moment of `time.monotonic`, and at once if it only loads."""
        self._reap(max(0.0, deadline - time.monotonic()) if self._has_begun else 0.0)

    def _reap(self, seconds: float) -> None:
        """Wait for its end so long, then kill it."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _send(self, message: object) -> None:
        content = ForkingPickler.dumps(message)
        with self._sending, contextlib.suppress(OSError):  # it has ended
            self._connection.send_bytes(content)

    def _listen(self, stages: Stages) -> None:
        why: Exception | None = None
        try:
            self._send(stages)  # in this thread, since it waits until the process reads
        except Exception as error:
            why = error
            self.hang_up()
        with contextlib.suppress(Exception):  # whatever comes instead of an answer is its end
            while True:
                number, kind, content = self._connection.recv()
                if number is None:
                    self._has_begun, why = content is None, content
                    self._ready.put(content)
                    continue
                ends = kind != "step"
                answers = (self._waiting.pop if ends else self._waiting.get)(number, None)
                if answers is not None:
                    answers.put((kind, content))
        self.is_over = True
        self._reap(END_S)
        self._connection.close()
        if not self._has_begun:
            status = self._process.exitcode or 0
            what = "it was killed, or memory ran out"
            if status >= 0:
                what = f"it ended with status {status}; what it wrote is above"
            self._ready.put(why or LostError(what))
        for answers in list(self._waiting.values()):
            answers.put(("error", _lost_error()))
        self._on_end(self)


@contextlib.contextmanager
def _blocked(*names: str) -> Iterator[None]:
    """Signals that a process does not get which this thread starts meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in names])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lost_error() -> LostError:
    return LostError("the process that spoke it has ended (killed, or out of memory); ask again")


def arrays_of(voice: Voice) -> Arrays:
    """Its three token streams."""
    return voice.semantic.numpy(), voice.coarse.numpy(), voice.fine.numpy()


def voice_of(arrays: Arrays) -> Voice:
    """The voice of three token streams."""
    return Voice(*map(torch.from_numpy, arrays))


# ---- in the process


class _DroppedError(Exception):
    """Nobody waits for the answer."""


def _work(connection: Connection, most: int, threads: int) -> None:
    """Answer orders until the connection is closed."""
    torch.set_num_threads(threads)
    sending, dropped = threading.Lock(), set[int]()

    def send(number: int | None, kind: str, what: Any) -> None:
        with sending, contextlib.suppress(OSError):
            connection.send((number, kind, what))

    def answer(number: int, what: str, order: tuple[Any, ...], is_told: bool) -> None:
        def on_step(*step: object) -> None:
            if number in dropped:
                raise _DroppedError
            if is_told:
                send(number, "step", step)

        try:
            if what == "decode":
                send(number, "done", pipeline.decode(torch.from_numpy(order[0])))
                return
            parts, states, options = order
            streams = [torch.Generator() for _ in states]
            for stream, state in zip(streams, states, strict=True):
                stream.set_state(torch.from_numpy(state))
            rows = [
                Row(torch.from_numpy(ids), arrays and voice_of(arrays), streams[place])
                for ids, arrays, place in parts
            ]
            voices = pipeline.speak(rows, options, on_step)
            states = [stream.get_state().numpy() for stream in streams]
            send(number, "done", ([arrays_of(voice) for voice in voices], states))
        except ClosedError:
            os._exit(1)  # its thread has ended; another process takes its place
        except Exception as error:
            error.add_note(f"In a process of the model:\n{traceback.format_exc()}")
            send(number, "error", _portable(error))
        finally:
            dropped.discard(number)

    try:
        pipeline = SharedPipeline(spoken(connection.recv()), most)
        answering = ThreadPoolExecutor(2 * most)
    except Exception as error:
        send(None, "ready", _portable(error))
        os._exit(1)
    send(None, "ready", None)
    with contextlib.suppress(EOFError, OSError):  # who asked is gone, or has hung up
        while True:
            number, what, order, is_told = connection.recv()
            if what == "drop":
                dropped.add(number)
            else:
                answering.submit(answer, number, what, order, is_told)
    os._exit(0)  # a thread may be inside the model


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same if it cannot be handed over."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # of a class that cannot be made again, whatever that raises
        return RuntimeError(reason(error))
    return error
