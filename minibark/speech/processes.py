"""One pipeline over several processes, each with the model and a share of the cores.

    callers' threads   speak, decode, drop  ->   n processes, a `SharedPipeline` in each
                       <-  step, done, error

Rows of one batch read weights together, but steps of a narrow model are too small for two cores,
and Python lets one thread at a time prepare them. Processes have neither limit, and n times the
memory.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ..decoding import own_stream
from ..files import reason
from ..options import Options
from ..pipeline import Audio, Pipeline, Row
from ..sampling import OnStep
from ..stages import Stages
from ..voice import Voice
from .batch import positive
from .child import END_S, Child, LostError, arrays_of, voice_of
from .shared import TOLD_AGAIN_S, ClosedError

NO_PROCESS = "no process of the model could begin; it is tried again"
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # before a process that could not begin is tried again


class ProcessPipeline(Pipeline):
    """A pipeline whose `speak` and `decode` any number of threads may call; a context manager.

    Rows go to the process that has the fewest. Each is what it is alone, as in `SharedPipeline`;
    calls whose rows draw from one stream, or from torch's own, follow one another. A process that
    is lost loses the rows that it had, and another takes its place. Single stages are the other
    pipeline's and run in the caller's thread. It is for a CPU.
    """

    def __init__(
        self, stages: Stages, n: int, most: int, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        """Start n processes and wait until all of them have loaded and spoken a word.

        Args:
            stages: a Bark, which is opened again in each of them.
            n: how many; each gets its share of the threads that torch has here.
            most: rows that are spoken together in each.
            tell: told when a process is lost.

        Raises:
            ValueError: no positive whole numbers, or not on a CPU.
            RuntimeError: a process could not begin; the text says why.
            OSError: there is no room for one more process.
        """
        vars(self).update(vars(stages.pipeline))
        if self.choice.device.type != "cpu":
            raise ValueError(f"several processes are for a CPU, not for {self.choice.device}")
        positive(n, "n"), positive(most, "most")
        self._process, self._tell = os.getpid(), tell
        self._order = stages, most, max(1, torch.get_num_threads() // n)
        self._lock, self._numbers = threading.Condition(), itertools.count()
        self._is_closed, self._n_starting = False, 0
        self._children: list[Child] = []  # all that have been started and not ended
        self._workers: list[Child] = []  # those that take rows
        self._streams_in_use = set[torch.Generator]()
        ready = SimpleQueue[Exception | None]()
        try:
            for _ in range(n):
                self._start(ready)
            # Before multiprocessing's own, which ends processes as if they were lost.
            atexit.register(self.close, finish=False)
            for _ in range(n):
                _check(ready.get())
            if not all(map(self._took_up, [*self._children])):
                _check(LostError("it ended at once"))
        except BaseException:
            self.close(finish=False)
            raise

    def __enter__(self) -> ProcessPipeline:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(finish=kind is None)

    @property
    def n_waiting(self) -> int:
        """Rows that have not begun; those that processes have are counted as begun."""
        return 0

    @property
    def n_live(self) -> int:
        """Rows at work."""
        return sum(worker.n_rows for worker in [*self._workers])

    @property
    def is_able(self) -> bool:
        """Whether there is a process that takes rows."""
        return bool(self._workers)

    def speak(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Voice]:
        """The three token streams of each row; waits until all are done.

        Args:
            rows: as for `SharedPipeline.speak`.
            options: of all these rows.
            on_step: as there. If it raises, streams stay where they were.

        Raises:
            ClosedError, ValueError, Exception: as there.
            LostError: their process ended, or there is none just now.
        """
        own = own_stream(self.choice.device)
        given = [row.generator or own for row in rows]
        streams = list(dict.fromkeys(given))  # rows may share one
        parts = [
            (row.ids.numpy(), row.voice and arrays_of(row.voice), streams.index(one))
            for row, one in zip(rows, given, strict=True)
        ]
        with self._alone_with(streams):
            states = [stream.get_state().numpy() for stream in streams]
            voices, states = self._ask("speak", len(rows), (parts, states, options), on_step)
            for stream, state in zip(streams, states, strict=True):
                stream.set_state(torch.from_numpy(state))
        return [voice_of(arrays) for arrays in voices]

    def decode(self, codes: Tensor) -> Audio:
        """The audio of codes (n_fine_codebooks, T); errors are those of `speak`."""
        audio: Audio = self._ask("decode", 1, (codes.numpy(),), None)
        return audio

    def close(self, finish: bool = True) -> None:
        """Take no more, and wait until what there is is done or, else, let it go."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
            if finish:
                self._lock.wait_for(lambda: not self.n_live)
            children, self._children, self._workers = self._children, [], []
        for child in children:
            child.hang_up()
        deadline = time.monotonic() + END_S
        for child in children:
            child.end(deadline)
        atexit.unregister(self.close)

    @contextlib.contextmanager
    def _alone_with(self, streams: Sequence[torch.Generator]) -> Iterator[None]:
        """Nobody else draws from these meanwhile."""
        with self._lock:
            self._lock.wait_for(lambda: self._streams_in_use.isdisjoint(streams))
            self._streams_in_use.update(streams)
        try:
            yield
        finally:
            with self._lock:
                self._streams_in_use.difference_update(streams)
                self._lock.notify_all()

    def _ask(self, what: str, n_rows: int, order: tuple[Any, ...], on_step: OnStep | None) -> Any:
        """What a process answers."""
        if os.getpid() != self._process:
            raise ClosedError("the processes belong to the one that this was forked from")
        with self._lock:
            self._lock.wait_for(lambda: self._workers or self._is_closed or not self._n_starting)
            if self._is_closed:
                raise ClosedError("the pipeline has been closed; it takes no more texts")
            if not self._workers:
                raise LostError(NO_PROCESS)
            worker, number = min(self._workers, key=lambda one: one.n_rows), next(self._numbers)
            worker.n_rows += n_rows
        try:
            answers = worker.ask(number, what, order, on_step is not None)
            last = ("semantic", 0, 1)
            while True:
                try:
                    kind, content = answers.get(timeout=TOLD_AGAIN_S if on_step else None)
                except Empty:
                    kind, content = "step", last
                if kind == "done":
                    return content
                if kind == "error" and isinstance(content, LostError) and self._is_closed:
                    raise ClosedError("the pipeline has been closed; the text was not finished")
                if kind == "error":
                    raise content
                if on_step:
                    last = content
                    on_step(*content)
        finally:
            worker.forget(number)
            with self._lock:
                worker.n_rows -= n_rows
                self._lock.notify_all()

    # ---- processes

    def _start(self, ready: SimpleQueue[Exception | None]) -> Child:
        child = Child(*self._order, ready, self._lost)
        with self._lock:
            self._children.append(child)
        return child

    def _took_up(self, child: Child) -> bool:
        """Let rows go to a process, unless it has ended since, or all is to end."""
        with self._lock:
            if child.is_over or self._is_closed:
                return False
            self._workers.append(child)
            return True

    def _lost(self, child: Child) -> None:
        """Put another process in the place of one that took rows and has ended."""
        with self._lock:
            if child not in self._workers:
                return
            self._workers.remove(child)
            self._children.remove(child)
        self._tell("a process of the model has ended (killed, or out of memory); another begins")
        pause_s = _PAUSE_S
        while not self._replaced():
            with self._lock:
                if self._lock.wait_for(lambda: self._is_closed, pause_s):
                    return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _replaced(self) -> bool:
        """Whether another process has begun, or none is wanted any more."""
        ready, child = SimpleQueue[Exception | None](), None
        with self._lock:
            if self._is_closed:
                return True
            self._n_starting += 1
        try:
            child = self._start(ready)
            _check(ready.get())
        except (RuntimeError, OSError) as error:
            if not self._is_closed:
                self._tell(f"{reason(error)}; it is tried again")
        else:
            if self._took_up(child):
                return True
        finally:
            with self._lock:
                self._n_starting -= 1
                self._lock.notify_all()
        if child is not None:
            with self._lock:
                if child in self._children:
                    self._children.remove(child)
            child.hang_up()
            child.end(time.monotonic())
        return self._is_closed


def _check(error: Exception | None) -> None:
    """RuntimeError: a process could not begin."""
    if error is not None:
        raise RuntimeError(f"a process of the model could not begin: {reason(error)}") from error
