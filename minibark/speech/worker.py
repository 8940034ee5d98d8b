"""One of many workers of a job: it opens a Bark once, and makes the clips of what it is handed.

Nothing here knows Ray, which calls it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..files import reason
from ..options import Options, knobs
from ..stages import Stages
from ..voice import Voice
from .batch import MOST_ROWS
from .clips import Clip, Maker, Task, voice_checksum
from .folder import ClipFolder
from .manifest import Line
from .plan import LongOptions
from .roll import Roll


class WorkerError(ValueError):
    """A machine on which the clips of a job cannot be made."""


@dataclass(frozen=True)
class Orders:
    """What a worker is told once.

    Attributes:
        opened: opens the Bark; whatever it names must be there on every machine.
        folder: where clips go, an absolute path of a folder that all machines share.
        roll: the name of the job's `Roll` in it.
        suffix: as for `encode_audio`.
        checksum: of the checkpoint that the job was begun with.
        precision: of the Bark.
        rows: clips that are made together.
        one_piece: cut long texts off.
        threads: of torch; None leaves them as they are.
        version: of minibark.
    """

    opened: Callable[[], Stages]
    folder: Path
    roll: str
    suffix: str
    checksum: str
    precision: str
    rows: int = MOST_ROWS
    one_piece: bool = False
    threads: int | None = None
    version: str = __version__


class Worker:
    """Makes clips and writes them; of each it tells the record, and nothing that is large.

    What goes wrong with a machine is told as well, and raised by none: so it comes to the driver
    in words, and not as the end of a process.
    """

    def __init__(self, orders: Orders) -> None:
        """Open the Bark."""
        self._orders = orders
        self._voices: dict[str, Voice] = {}
        self._trouble = ""
        try:
            self._begin()
        except Exception as error:
            self._trouble = _named(error)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
        """One row `told` for each clip, as JSON, as soon as it is there.

        `batch["chunk"]` has what `orders_of` gives.
        """
        who = f"{platform.node()}:{os.getpid()}"
        try:
            if self._trouble:
                raise WorkerError(self._trouble)
            for chunk in batch["chunk"]:
                for told in self._made(json.loads(chunk)):
                    yield {"told": [json.dumps({"worker": who, **told})]}
        except Exception as error:
            trouble = self._trouble or _named(error)
            yield {"told": [json.dumps({"worker": who, "trouble": trouble})]}

    def _begin(self) -> None:
        """Check that all is here as it is where the job began.

        Raises:
            WorkerError: it is not.
        """
        orders = self._orders
        if orders.version != __version__:
            _refuse("minibark", __version__, orders.version)
        self._signed = Roll.sign(orders.folder, orders.roll)
        self._folder = ClipFolder(orders.folder, is_held=True)
        if orders.threads:
            torch.set_num_threads(orders.threads)
        self._stages = orders.opened()
        if self._stages.precision != orders.precision:
            _refuse("the precision", self._stages.precision, orders.precision)
        if (checksum := self._stages.checkpoint().checksum()) != orders.checksum:
            _refuse("the model's checksum", checksum[:12], orders.checksum[:12])
        self._maker = Maker(self._stages, orders.suffix, orders.rows, orders.one_piece)

    def _made(self, items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What becomes of some lines; what a worker that was lost has made of them stays."""
        tasks = []
        for item in items:
            record = item["record"]
            done = self._folder.record(record["id"])
            if done and record.items() <= done.items():
                yield {"record": done}
            else:
                voice = self._voice(item["place"], record["voice_checksum"])
                tasks.append(self._maker.task(_line(item), record, voice))
        for made in self._maker.make(tasks):
            if isinstance(made, Clip):
                self._folder.add(made.record, made.sound)
                yield {"record": made.record}
            else:
                yield {"bad": dataclasses.asdict(made)}

    def _voice(self, place: str | None, checksum: str) -> Voice | None:
        if place is None:
            return None
        if checksum not in self._voices:
            voice = self._stages.load_voice(place)
            assert voice is not None
            if (found := voice_checksum(voice)) != checksum:
                _refuse(f"the voice {place!r}", found[:12], checksum[:12])
            self._voices[checksum] = voice
        return self._voices[checksum]


def orders_of(tasks: Sequence[Task], places: Mapping[str, str]) -> str:
    """What a worker needs to make these clips, as JSON; `places` has the absolute paths of voices.

    A record says all that a clip depends on, so it is all but two things of a line.
    """
    return json.dumps(
        [
            {
                "number": task.line.number,
                "has_seed": task.line.has_seed,
                "place": places.get(task.line.voice or "", task.line.voice),
                "record": task.record,
            }
            for task in tasks
        ]
    )


def _line(item: Mapping[str, Any]) -> Line:
    """The line of the manifest that an item of `orders_of` was made from."""
    record = item["record"]
    given = {"seed": record["first_seed"], **record["options"]}
    options = Options(**{name: given[name] for name, _ in knobs(Options)})
    plan = LongOptions(**{name: given[name] for name, _ in knobs(LongOptions)})
    what = record["id"], record["text"], record["voice"]
    return Line(item["number"], *what, options, plan, item["has_seed"])


def _named(error: Exception) -> str:
    known = isinstance(error, ValueError | OSError)
    return reason(error) if known else f"{type(error).__name__}: {reason(error)}"


def _refuse(what: str, here: str, there: str) -> None:
    raise WorkerError(f"{what} is {here}, and {there} where the job began; make them the same")
