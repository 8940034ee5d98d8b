"""One process of a `ProcessPipeline`: how it is asked, and what it does.

("speak", rows, states of their streams, options)  ->  step, step, ..., done or error
("decode", codes)                                  ->  done or error
("drop",)  ("end",)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from ..files import reason
from ..options import Options
from ..pipeline import Pipeline, Row
from ..stages import Stages
from .shared import SharedPipeline

_END_S = 5.0  # for a process to end by itself


class LostError(RuntimeError):
    """A process ended, killed or out of memory, while it spoke a text."""


class Child:
    """A process and those who wait for its answers."""

    def __init__(
        self, content: bytes, most: int, threads: int, on_end: Callable[[Child, bool], None]
    ) -> None:
        self.n_rows = 0
        self._on_end, self._ready = on_end, SimpleQueue[Exception | None]()
        self._waiting: dict[int, SimpleQueue[tuple[str, Any]]] = {}
        self._sending, self._is_over = threading.Lock(), False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, content, most, threads), name="minibark rows", daemon=True
        )
        self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, name="minibark answers", daemon=True).start()

    def wait_until_ready(self) -> None:
        """RuntimeError: it could not begin."""
        if (error := self._ready.get()) is not None:
            raise RuntimeError(
                f"a process of the model could not begin: {reason(error)}"
            ) from error

    def ask(
        self, number: int, what: str, order: tuple[Any, ...], is_told: bool
    ) -> SimpleQueue[tuple[str, Any]]:
        """Hand an order over; where its answers come: steps, and at last what is done or wrong."""
        answers = self._waiting[number] = SimpleQueue()
        self._send((number, what, order, is_told))
        if self._is_over:
            answers.put(("error", _lost_error()))
        return answers

    def forget(self, number: int) -> None:
        """Let an order go, if it is at work still."""
        if self._waiting.pop(number, None) is not None:
            self._send((number, "drop", (), False))

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._send((0, "end", (), False))
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending, contextlib.suppress(OSError, ValueError):  # it has ended
            self._connection.send_bytes(pickle.dumps(message))

    def _listen(self) -> None:
        was_ready = False
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, kind, content = pickle.loads(self._connection.recv_bytes())
                if number is None:
                    was_ready = content is None
                    self._ready.put(content)
                    continue
                ends = kind != "step"
                answers = (self._waiting.pop if ends else self._waiting.get)(number, None)
                if answers is not None:
                    answers.put((kind, content))
        self._is_over = True
        self._connection.close()
        self._ready.put(_lost_error())
        for answers in list(self._waiting.values()):
            answers.put(("error", _lost_error()))
        self._on_end(self, was_ready)


def _lost_error() -> LostError:
    return LostError("the process that spoke it has ended (killed, or out of memory); ask again")


# ---- in the process


class _DroppedError(Exception):
    """Nobody waits for the answer."""


def _work(connection: Connection, content: bytes, most: int, threads: int) -> None:
    """Answer orders until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first decides
    torch.set_num_threads(threads)
    sending, dropped = threading.Lock(), set[int]()

    def send(number: int | None, kind: str, what: Any) -> None:
        try:
            message = pickle.dumps((number, kind, what))
        except Exception:
            message = pickle.dumps((number, kind, RuntimeError(reason(what))))
        with sending, contextlib.suppress(OSError):
            connection.send_bytes(message)

    def answer(number: int, what: str, order: tuple[Any, ...], is_told: bool) -> None:
        def on_step(*step: object) -> None:
            if number in dropped:
                raise _DroppedError
            if is_told:
                send(number, "step", step)

        try:
            if what == "decode":
                send(number, "done", pipeline.decode(*order))
                return
            parts, states, options = order
            streams = [torch.Generator() for _ in states]
            for stream, state in zip(streams, states, strict=True):
                stream.set_state(state)
            rows = [Row(ids, voice, streams[place]) for ids, voice, place in parts]
            voices = pipeline.speak(rows, options, on_step)
            send(number, "done", (voices, [stream.get_state() for stream in streams]))
        except Exception as error:
            send(number, "error", error)
        finally:
            dropped.discard(number)

    try:
        pipeline = SharedPipeline(_loaded(content), most)
        answering = ThreadPoolExecutor(2 * most)
    except Exception as error:
        send(None, "ready", error)
        os._exit(1)
    send(None, "ready", None)
    what = ""
    with contextlib.suppress(EOFError, OSError):  # who asked is gone
        while what != "end":
            number, what, order, is_told = pickle.loads(connection.recv_bytes())
            if what == "drop":
                dropped.add(number)
            elif what != "end":
                answering.submit(answer, number, what, order, is_told)
    os._exit(0)  # a thread may be inside the model


def _loaded(content: bytes) -> Pipeline:
    """The pipeline of a Bark that has spoken: what is made at the first word is there."""
    stages: Stages = pickle.loads(content)
    ids = torch.tensor(stages.tokenizer.encode("Hello."))
    row = Row(ids, None, torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (voice,) = stages.pipeline.speak([row], Options(max_duration_s=0.5))
        stages.pipeline.decode(voice.fine)
    return stages.pipeline
