"""One pipeline for many threads, whose rows go through the model together."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from ..options import Options
from ..pipeline import Audio, Pipeline, Row
from ..sampling import OnStep
from ..stages import Stages
from ..voice import Voice
from .batch import MOST_ROWS
from .continuous import ContinuousBatch
from .ticket import Ticket

TOLD_AGAIN_S = 0.5  # after which a listener whose rows wait is asked whether he is there still


class ClosedError(ValueError):
    """The pipeline has been closed: it takes no rows, or has let these go."""


def spoken(stages: Stages) -> Pipeline:
    """The pipeline of a Bark that has said a word, so that what is made at the first is there."""
    options = Options(seed=0, max_duration_s=0.5)
    ids = torch.tensor(stages.tokenizer.encode("Hello."), device="cpu")
    row = Row(ids, None, options.generator(stages.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (voice,) = stages.pipeline.speak([row], options)
        stages.pipeline.decode(voice.fine)
    return stages.pipeline


class SharedPipeline(Pipeline):
    """A pipeline whose `speak` any number of threads may call at once; a context manager.

    One thread of its own drives a `ContinuousBatch`: the rows of all callers are rows of one batch,
    join it as they come and leave it as they end. Each is what it is alone. `decode` runs in that
    thread too, between pieces of the batch's work: torch has a team of threads for each thread that
    calls it, and teams would take the processor from one another. Where torch has one thread there
    are no teams, and callers decode beside the rows' work. Single stages are the other pipeline's
    and run in the caller's thread. It stands where that one does:

        bark.pipeline = shared = SharedPipeline(bark.pipeline)

    A forked process has no such thread: there `speak` is refused, and one is to be made anew, or
    the process is to be started by spawn.
    """

    def __init__(self, pipeline: Pipeline, most: int = MOST_ROWS) -> None:
        """`most` is as for `ContinuousBatch`; ValueError for what is no positive whole number."""
        vars(self).update(vars(pipeline))  # the same modules, locks and recordings
        self._batch = ContinuousBatch(pipeline, most)
        self._callers: dict[Ticket, SimpleQueue[tuple[str, int, int] | Ticket]] = {}
        self._codes: deque[tuple[Tensor, Future[Audio]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._must_drop = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="minibark rows", daemon=True)
        self._thread.start()

    def __enter__(self) -> SharedPipeline:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(finish=kind is None)

    @property
    def n_waiting(self) -> int:
        """Rows that have not begun."""
        return self._batch.n_waiting

    @property
    def n_live(self) -> int:
        """Rows at work."""
        return self._batch.n_live

    def speak(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Voice]:
        """The three token streams of each row; waits until all are done.

        Args:
            rows: as for `Pipeline.speak`; rows without a stream, or with one stream, follow one
                another.
            options: of all these rows.
            on_step: told of the progress of each row, in the caller's thread, and while there is
                none of the last again. If it raises, the rows are let go at the next boundary, and
                nothing waits for that.

        Raises:
            ClosedError: it has been closed, or was made before this process was forked.
            ValueError: coarse windows that the model has no room for.
            Exception: what went wrong with the first row that failed; the others are let go.
        """
        if os.getpid() != self._process:  # before the lock, which another thread may have held
            raise ClosedError(
                "the pipeline's thread is in the process that this one was forked from; make a "
                "SharedPipeline here, or start processes by spawn"
            )
        events: SimpleQueue[tuple[str, int, int] | Ticket] = SimpleQueue()

        def tell(stage: str, done: int, total: int) -> None:
            events.put((stage, done, total))

        left: list[Ticket] = []
        try:
            with self._changed:
                if self._is_closed:
                    raise ClosedError("the pipeline has been closed; it takes no more texts")
                for row in rows:
                    ticket = self._batch.add(row, options, tell if on_step else None)
                    self._callers[ticket] = events
                    left.append(ticket)
                self._changed.notify()
            tickets = list(left)
            last = ("semantic", 0, 1)
            while left:
                try:
                    event = events.get(timeout=TOLD_AGAIN_S if on_step else None)
                except Empty:
                    event = last
                if isinstance(event, Ticket):
                    left.remove(event)
                    if event.error:
                        raise event.error
                elif on_step:
                    last = event
                    on_step(*event)
        finally:
            with self._changed:
                for ticket in left:
                    self._batch.drop(ticket)
                    self._callers.pop(ticket, None)
                self._changed.notify()
        return [ticket.voice for ticket in tickets if ticket.voice]

    def decode(self, codes: Tensor) -> Audio:
        """The audio of codes (n_fine_codebooks, T); waits for a piece of the rows' work at most.

        ClosedError: it is closed meanwhile, and what is there is let go.
        """
        is_ours = os.getpid() == self._process and torch.get_num_threads() > 1
        audio = self._queued(codes) if is_ours else None
        return super().decode(codes) if audio is None else audio.result()

    def _queued(self, codes: Tensor) -> Future[Audio] | None:
        audio: Future[Audio] = Future()
        with self._changed:
            if self._is_closed:
                return None
            self._codes.append((codes, audio))
            self._changed.notify()
        return audio

    def close(self, finish: bool = True) -> None:
        """Take no more rows, and wait until those that are there are done or, else, let go.

        Those who wait for rows that are let go get a `ClosedError`. In a forked process there is
        nothing to close.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            self._is_closed = True
            self._must_drop |= not finish
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        error: Exception = ClosedError("the pipeline has been closed; the text was not finished")
        try:
            while self._wait():
                while self._codes:  # first, since somebody is to hear it
                    self._decode_one()
                for ticket in self._batch.advance():
                    self._answer(ticket)
        except BaseException as fault:
            error = RuntimeError(f"the thread that makes rows has ended: {fault}")
            error.__cause__ = fault
        with self._changed:
            self._is_closed = True
            left = list(self._callers)
        for _, audio in self._codes:
            audio.set_exception(error)
        for ticket in left:
            self._batch.drop(ticket)
            ticket.error = error
            self._answer(ticket)

    def _decode_one(self) -> None:
        codes, audio = self._codes.popleft()
        try:
            audio.set_result(super().decode(codes))
        except Exception as error:
            audio.set_exception(error)

    def _wait(self) -> bool:
        """Wait for something to do; whether there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_work())
            return not self._must_drop and self._has_work()

    def _has_work(self) -> bool:
        return bool(self._codes or self._batch.n_waiting or self._batch.n_live)

    def _answer(self, ticket: Ticket) -> None:
        with self._changed:
            events = self._callers.pop(ticket, None)
        if events:
            events.put(ticket)
