"""One pipeline over several processes, each with the model and a share of the cores.

    callers' threads   speak, decode, drop  ->   n processes, a `SharedPipeline` in each
                       <-  step, done, error

Rows of one batch read weights together, but steps of a narrow model are too small for two cores,
and Python lets one thread at a time prepare them. Processes have neither limit, and n times the
memory.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty
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
from .child import Child, LostError, arrays_of, voice_of
from .shared import TOLD_AGAIN_S, ClosedError


class ProcessPipeline(Pipeline):
    """A pipeline whose `speak` and `decode` any number of threads may call; a context manager.

    Rows go to the process that has the fewest. Each is what it is alone, as in `SharedPipeline`. A
    process that is lost loses the rows that it had, and another takes its place. Single stages are
    the other pipeline's and run in the caller's thread. It is for a CPU.
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
        """
        vars(self).update(vars(stages.pipeline))
        if self.choice.device.type != "cpu":
            raise ValueError(f"several processes are for a CPU, not for {self.choice.device}")
        positive(n, "n"), positive(most, "most")
        self._process, self._tell = os.getpid(), tell
        self._order = stages, most, max(1, torch.get_num_threads() // n)
        self._lock, self._numbers = threading.Condition(), itertools.count()
        self._is_closed, self._n_starting = False, 0
        self._workers: list[Child] = []
        try:
            starting = [Child(*self._order, self._lost) for _ in range(n)]
            self._workers += starting
            for worker in starting:
                worker.wait_until_ready()
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

    def speak(
        self, rows: Sequence[Row], options: Options, on_step: OnStep | None = None
    ) -> list[Voice]:
        """The three token streams of each row; waits until all are done.

        Args:
            rows: as for `SharedPipeline.speak`.
            options: of all these rows.
            on_step: as there.

        Raises:
            ClosedError, ValueError, Exception: as there.
            LostError: their process ended.
        """
        own = own_stream(self.choice.device)
        given = [row.generator or own for row in rows]
        streams = list(dict.fromkeys(given))  # rows may share one
        parts = [
            (row.ids.numpy(), row.voice and arrays_of(row.voice), streams.index(one))
            for row, one in zip(rows, given, strict=True)
        ]
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
            if finish:
                self._lock.wait_for(lambda: not any(worker.n_rows for worker in self._workers))
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def _ask(self, what: str, n_rows: int, order: tuple[Any, ...], on_step: OnStep | None) -> Any:
        """What a process answers."""
        if os.getpid() != self._process:
            raise ClosedError("the processes belong to the one that this was forked from")
        with self._lock:
            self._lock.wait_for(lambda: self._workers or self._is_closed or not self._n_starting)
            if self._is_closed:
                raise ClosedError("the pipeline has been closed; it takes no more texts")
            if not self._workers:
                raise LostError("all processes of the model have ended; start anew")
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

    def _lost(self, worker: Child, was_ready: bool) -> None:
        """Put another process in the place of one that ended."""
        with self._lock:
            if self._is_closed or worker not in self._workers or not was_ready:
                return
            self._workers.remove(worker)
            self._n_starting += 1
        self._tell("a process of the model has ended (killed, or out of memory); another begins")
        other: Child | None = None
        try:
            other = Child(*self._order, self._lost)
            other.wait_until_ready()
        except (RuntimeError, OSError) as error:
            self._tell(f"it could not begin: {reason(error)}")
            other = None
        with self._lock:
            self._n_starting -= 1
            if other is not None and not self._is_closed:
                self._workers.append(other)
                other = None
            self._lock.notify_all()
        if other is not None:
            other.end()
