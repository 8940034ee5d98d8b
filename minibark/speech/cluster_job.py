"""The clips of a job, made by the machines of a Ray cluster.

    driver: manifest -> lines of which no clip is done, in chunks -> Ray Data -> workers
            bar, errors.jsonl <- records of clips that are there <- ID.wav and ID.json, by a worker

Ray only hands chunks out. Which clips there are to make and what is done come from the manifest and
the folder, as on one machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from ..files import reason
from ..options import Options
from ..sampling import OnStep
from ..stages import Stages
from .batch import MOST_ROWS
from .bulk import Job
from .clips import Clip, Task
from .cluster import ClusterError, Crew, leave, ray_package
from .manifest import BadLine, Line, seed_of
from .roll import Roll
from .worker import Orders, Worker, orders_of

_RETRIES = 2  # of a chunk whose worker was lost; then its lines are tried once more one by one
_GROUPS = 4  # of rows in a chunk, at most
_SHARES = 4  # chunks for each worker, at least, where that leaves full groups of rows
_GONE_S = 20.0


class ClusterJob(Job):
    """A job whose clips are made by workers of the Ray cluster that is connected.

    Attributes: those of `Job`.
    """

    def __init__(
        self,
        stages: Stages,
        manifest: str | os.PathLike[str] | Iterable[Line | BadLine],
        folder: str | os.PathLike[str],
        *,
        crew: Crew,
        opened: Callable[[], Stages],
        rows: int = MOST_ROWS,
        one_piece: bool = False,
        audio_format: str = "wav",
        **settings: Any,
    ) -> None:
        """Read and check everything, as `Job` does, whose other arguments and errors these are.

        Args:
            stages: what checks lines; its model is that of the workers, its device need not be.
            manifest: as of `Job`.
            folder: one that all machines see under the same path.
            crew: who works.
            opened: opens the Bark of a worker; it is pickled, and what it names must be there on
                every machine.
            rows: how many clips of a worker go through the model together.
            one_piece: as of `Job`.
            audio_format: as of `Job`.
            **settings: `voice`, `options`, `plan`, `model`, `shard` and `again` of `Job`.
        """
        common: dict[str, Any] = {
            "rows": rows,
            "one_piece": one_piece,
            "audio_format": audio_format,
        }
        super().__init__(stages, manifest, folder, **common, **settings)
        self._crew, self._opened, self._rows = crew, opened, rows

    def run(self, on_step: OnStep | None = None) -> Generator[dict[str, Any] | BadLine]:
        """As `Job.run`; `on_step` is told how many of the workers have made something.

        A chunk whose worker is lost is given to it again once it is back, or the machine. Where
        that happens three times, its lines are handed out one by one, and those that end a worker
        three times more are bad lines. Where this is left before its end, Ray is shut down.

        Raises:
            ClusterError: a machine cannot make clips; the text says which and why.
            OSError: the folder cannot be written any more; what is done is kept.
        """
        if not self._tasks:
            return
        begin = time.perf_counter()
        left = {task.line.id: task for task in self._tasks}
        roll = Roll(self._folder.path)
        is_whole = False
        try:
            for size in (self._size(), 1):
                if not left:
                    break
                told_now = self._told(list(left.values()), size, roll, on_step)
                with contextlib.closing(told_now):
                    for told in told_now:
                        if (made := self._take(told, left)) is not None:
                            yield self._note(made, begin)
                for made in self._found(left):
                    yield self._note(made, begin)
            for task in left.values():
                why = (
                    "its workers were lost again and again (killed, or out of memory); "
                    "give workers more memory, or fewer rows with --rows, and run the same again"
                )
                yield self._note(BadLine(task.line.number, task.line.id, why), begin)
            is_whole = True
        finally:
            if not is_whole:
                leave()
            roll.wait(_GONE_S)
            if not is_whole:
                for made in self._found(left):
                    self._note(made, begin)
            self._folder.sweep()
            roll.close()

    def _size(self) -> int:
        """How many lines a chunk has: some groups of rows, and enough chunks for all."""
        n = len(self._tasks)
        fair = max(self._rows, n // (self._crew.n * _SHARES))
        return max(1, min(_GROUPS * self._rows, fair, -(-n // self._crew.n)))

    def _told(
        self, tasks: Sequence[Task], size: int, roll: Roll, on_step: OnStep | None
    ) -> Generator[dict[str, Any]]:
        """What workers tell of these lines.

        Raises:
            ClusterError: a worker cannot work.
        """
        ray = ray_package()
        chunks = [{"chunk": orders_of(some, self._places(some))} for some in _chunks(tasks, size)]
        data, n = ray.data, min(self._crew.n, len(chunks))
        context = data.DataContext.get_current()
        context.max_errored_blocks = -1  # what comes of lines without a clip is for us to say
        context.target_max_block_size = 1  # a record is told as soon as it is there
        context.print_on_execution_start = False
        lines = data.from_items(chunks, override_num_blocks=len(chunks))
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to say these two, and announces one.
            warnings.simplefilter("ignore", DeprecationWarning)
            made = lines.map_batches(
                Worker,
                fn_constructor_args=[self._orders(roll)],
                batch_size=1,
                compute=data.ActorPoolStrategy(size=n, max_tasks_in_flight_per_actor=1),
                num_cpus=self._crew.cores,
                num_gpus=1 if self._crew.on_gpu else None,
                max_restarts=-1,
                max_task_retries=_RETRIES,
            )
        workers: set[str] = set()
        try:
            with contextlib.closing(iter(made.iter_rows())) as rows:
                for row in rows:
                    told = json.loads(row["told"])
                    workers.add(who := told.pop("worker"))
                    if on_step:
                        on_step("workers", min(len(workers), n), n)
                    if "trouble" in told:
                        raise ClusterError(f"the worker {who} cannot make clips: {told['trouble']}")
                    yield told
        except ray.exceptions.RayError as error:
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            raise ClusterError(
                f"Ray gave up ({reason(error.__class__(text))[:300]}); what is done is kept, and "
                "the same command goes on"
            ) from error

    def _orders(self, roll: Roll) -> Orders:
        return Orders(
            opened=self._opened,
            folder=self._folder.path.absolute(),
            roll=roll.name,
            suffix=self._suffix,
            checksum=self._common["checksum"],
            precision=self._common["precision"],
            rows=self._rows,
            one_piece=self._one_piece,
            threads=None if self._crew.on_gpu else self._crew.cores,
        )

    def _places(self, tasks: Sequence[Task]) -> dict[str, str]:
        """The absolute paths of voices that are files and none of the checkpoint's."""
        names = {task.line.voice for task in tasks} - {None, *self._stages.voices}
        return {name: os.path.abspath(os.path.expanduser(name)) for name in names if name}

    def _take(self, told: dict[str, Any], left: dict[str, Task]) -> Clip | BadLine | None:
        """What was told of one of the lines that are left; None if that is known already."""
        bad = BadLine(**told["bad"]) if "bad" in told else None
        record = told.get("record", {})
        if left.pop(bad.id if bad else record["id"], None) is None:
            return None
        return bad or Clip(record, b"", record["seconds"])

    def _found(self, left: dict[str, Task]) -> Iterator[Clip]:
        """Clips that are there, though the worker was lost before it told of them."""
        for name in self._folder.ids() & left.keys():
            record = self._folder.record(name)
            if record and left[name].record.items() <= record.items():
                del left[name]
                yield Clip(record, b"", record["seconds"])


def _chunks(tasks: Sequence[Task], size: int) -> list[list[Task]]:
    """What is handed out at once: texts with the same options and of like length."""
    together: dict[Options | None, list[Task]] = {}
    for task in tasks:
        same = None if task.ids is None else dataclasses.replace(task.line.options, seed=None)
        together.setdefault(same, []).append(task)
    chunks = []
    for same, alike in together.items():
        alike.sort(key=lambda task: (task.expected_s, task.line.number))
        step = 1 if same is None else size
        chunks += [alike[i : i + step] for i in range(0, len(alike), step)]
    # Neither short nor long ones first, so that the time gone tells the time left.
    return sorted(chunks, key=lambda chunk: seed_of(chunk[0].line.id, 0))
