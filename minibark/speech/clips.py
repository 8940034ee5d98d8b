"""Clips with records: texts of one piece as rows of one batch, longer ones by themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..audio import encode_audio
from ..cpu.abilities import give_memory_back
from ..files import is_out_of_memory, reason, warn
from ..options import Options
from ..pipeline import Audio, Row
from ..sampling import OnStep
from ..stages import Stages
from ..text import readable
from ..voice import PARTS, Voice
from .batch import MOST_ROWS
from .continuous import ContinuousBatch
from .faults import fault_of
from .manifest import BadLine, Line, seed_of
from .pieces import Spoken, cut, is_one
from .reading import Reading
from .split import CHARACTERS_PER_S, MissingExtraError, spoken_length
from .ticket import Ticket, told_of_memory

_NO_AUDIO = "no audio came of it: another seed, a higher min_eos_p or another wording may help"


@dataclass(frozen=True)
class Task:
    """A clip to be made.

    Attributes:
        line: what it is to be.
        record: what its record says before it is made.
        voice: its voice.
        ids: of the tokenizer; None for a text of several pieces.
        expected_s: about how long the text takes to say.
        is_cut: whether its end is left out.
        notes: what is told of its text.
    """

    line: Line
    record: dict[str, Any]
    voice: Voice | None
    ids: list[int] | None
    expected_s: float
    is_cut: bool
    notes: list[str]


@dataclass(frozen=True)
class Clip:
    """A clip that has been made.

    Attributes:
        record: what it is, and how it was made; plain values.
        sound: the bytes of its file.
        seconds: of sound.
    """

    record: dict[str, Any]
    sound: bytes
    seconds: float


@dataclass(eq=False)
class _Try:
    """A clip that is being made: the newest seed, and the best until now."""

    task: Task
    n_tries: int = 0
    seed: int = 0
    best: tuple[Audio, int, str] = field(default=(np.zeros(0, np.float32), 0, ""))
    spent_s: float = 0.0


class Maker:
    """Makes clips with one Bark."""

    def __init__(
        self, stages: Stages, suffix: str, rows: int = MOST_ROWS, one_piece: bool = False
    ) -> None:
        """`suffix` and `rows` are as for `encode_audio` and `ContinuousBatch`; `one_piece` cuts."""
        self._stages, self._suffix, self._rows = stages, suffix, rows
        self._one_piece = one_piece

    def task(self, line: Line, record: dict[str, Any], voice: Voice | None) -> Task:
        """What is to be done for a line; `record` says what its clip depends on.

        Raises:
            ValueError: a text with nothing to say, or a bad pause in it.
            MissingExtraError: several pieces, without the package that finds sentences.
        """
        stages, notes = self._stages, list[str]()
        with _noting(notes):
            level = line.options.normalize or stages.normalize
            text = readable(line.text, stages.tokenizer, level, is_cut=not self._one_piece)
        limit = stages.config.generation.max_input_semantic_length
        expected_s, ids = spoken_length(text) / CHARACTERS_PER_S, stages.tokenizer.encode(text)
        if self._one_piece:
            if n_lost := max(0, len(ids) - limit):
                notes.append(f"{n_lost} of the {len(ids)} tokens of the text are cut off")
            return Task(line, record, voice, ids[:limit], expected_s, n_lost > 0, notes)
        pieces = cut(text, stages.tokenizer, limit, line.plan)
        return Task(line, record, voice, ids if is_one(pieces) else None, expected_s, False, notes)

    def make(
        self, tasks: Sequence[Task], on_step: OnStep | None = None
    ) -> Iterator[Clip | BadLine]:
        """The clip of each task as soon as it is made, in an order of its own.

        Texts of one piece are rows of one batch: where one ends, the next joins. What goes wrong is
        made again with another seed; not so where the line gives the seed: it gets what `generate`
        makes of it.
        """
        batch = ContinuousBatch(self._stages.pipeline, self._rows, patience=self._rows)
        waiting, at_work = deque(self._in_order(tasks)), dict[Ticket, _Try]()
        while waiting or at_work:
            while waiting and batch.n_waiting < batch.most:
                task = waiting.popleft()
                with self._failing(task) as failed:
                    if task.ids is None:
                        yield self._in_pieces(task, on_step)
                    else:
                        self._begin(_Try(task), batch, at_work, on_step)
                yield from failed
            for ticket in batch.advance():
                one = at_work.pop(ticket)
                with self._failing(one.task) as failed:
                    if self._is_good(one, ticket):
                        audio, seed, wrong = one.best
                        how = one.spent_s, seed, one.n_tries, wrong
                        yield self._made(one.task, audio, *how)
                    else:
                        self._begin(one, batch, at_work, on_step)
                yield from failed

    def _in_order(self, tasks: Sequence[Task]) -> list[Task]:
        """Texts with the same options together, those of like length beside each other.

        Else neither short nor long ones come first, so that the time gone tells the time left; only
        that the shortest come last, so that no long one is left by itself at the end.
        """
        alike: dict[Options, list[Task]] = {}
        for task in tasks:
            if task.ids is not None:
                options = dataclasses.replace(task.line.options, seed=None)
                alike.setdefault(options, []).append(task)
        order: list[Task] = []
        for some in alike.values():
            some.sort(key=lambda task: (task.expected_s, task.line.number))
            last, some = some[: 2 * self._rows], some[2 * self._rows :]
            groups = [some[i : i + self._rows] for i in range(0, len(some), self._rows)]
            groups.sort(key=lambda group: seed_of(group[0].line.id, 0))
            order += [task for group in (*groups, reversed(last)) for task in group]
        for task in tasks:
            if task.ids is None:
                order.insert(seed_of(task.line.id, 0) % (len(order) + 1), task)
        return order

    def _begin(
        self,
        one: _Try,
        batch: ContinuousBatch,
        at_work: dict[Ticket, _Try],
        on_step: OnStep | None,
    ) -> None:
        line = one.task.line
        one.seed, one.n_tries = _seed(line, one.n_tries), one.n_tries + 1
        stream = torch.Generator(self._stages.device).manual_seed(one.seed)
        row = Row(torch.tensor(one.task.ids, device="cpu"), one.task.voice, stream)
        at_work[batch.add(row, line.options, on_step)] = one

    def _is_good(self, one: _Try, ticket: Ticket) -> bool:
        """Whether a row that is done is to be kept; else it is to be made again."""
        if ticket.error:
            raise ticket.error
        assert ticket.voice is not None
        begin, task, options = time.perf_counter(), one.task, ticket.options
        audio = self._stages.pipeline.decode(ticket.voice.fine)
        config = self._stages.config
        wrong = fault_of(ticket.voice, audio, task.expected_s, config, options, task.is_cut)
        if one.n_tries == 1 or not wrong or not len(one.best[0]):
            one.best = audio, one.seed, wrong
        one.spent_s += ticket.spent_s + time.perf_counter() - begin
        return not wrong or task.line.has_seed or one.n_tries > task.line.plan.retries

    @contextlib.contextmanager
    def _failing(self, task: Task) -> Iterator[list[BadLine]]:
        """What goes wrong with one clip ends that one; the list has it then."""
        failed: list[BadLine] = []
        try:
            yield failed
        except Exception as error:
            kinds = (ValueError, FloatingPointError, MissingExtraError)
            if not isinstance(error, kinds) and not is_out_of_memory(error):
                raise
            failed.append(BadLine(task.line.number, task.line.id, reason(error)))

    def _in_pieces(self, task: Task, on_step: OnStep | None) -> Clip | BadLine:
        """One text of several pieces, as `generate_long` says it."""
        begin = time.perf_counter()
        with _noting([]):  # `task.notes` has them
            reading = Reading(self._stages, task.line.options, task.line.plan)
            reading.text(task.line.text, task.voice)
        said = self._said(reading, on_step)
        wrong = "; ".join(f"piece {i} {one.fault}" for i, one in enumerate(said, 1) if one.fault)
        parts = [reading.with_silences(*one) for one in enumerate(said)]
        is_empty = not any(len(one.audio) for one in said)
        audio = np.zeros(0, np.float32) if is_empty else np.concatenate(parts)
        spent_s, tries = time.perf_counter() - begin, max(one.tries for one in said)
        return self._made(task, audio, spent_s, _seed(task.line, 0), tries, wrong, len(said))

    def _said(self, reading: Reading, on_step: OnStep | None) -> list[Spoken]:
        """All pieces; fewer at once if memory runs out."""
        while True:
            try:
                with _noting([]):  # the record has them
                    return list(reading.pieces(on_step, self._rows))
            except Exception as error:
                if self._rows == 1 or not is_out_of_memory(error):
                    raise
                self._rows //= 2
                warn(told_of_memory(error, self._rows))

    def _made(
        self,
        task: Task,
        audio: Audio,
        spent_s: float,
        seed: int,
        tries: int,
        wrong: str,
        n_pieces: int = 1,
    ) -> Clip | BadLine:
        if not len(audio):
            return BadLine(task.line.number, task.line.id, _NO_AUDIO)
        seconds = len(audio) / self._stages.sample_rate
        sound = encode_audio(audio, self._stages.sample_rate, self._suffix)
        give_memory_back()  # a few ms; else what rows leave behind adds up to a fifth of it all
        how = {
            "seed": seed,
            "tries": tries,
            "pieces": n_pieces,
            "seconds": round(seconds, 3),
            "bytes": len(sound),
            "sha256": hashlib.sha256(sound).hexdigest(),
            "wall_s": round(spent_s, 3),
            "fault": wrong,
            "warnings": task.notes,
            "device": str(self._stages.device),
            "version": __version__,
        }
        return Clip({**task.record, **how}, sound, seconds)


def voice_checksum(voice: Voice) -> str:
    """SHA-256, in hex, of a voice's tokens."""
    total = hashlib.sha256()
    for part in PARTS:
        tokens = getattr(voice, part)
        total.update(f"{part} {tuple(tokens.shape)}".encode() + tokens.numpy().tobytes())
    return total.hexdigest()


def _seed(line: Line, attempt: int) -> int:
    """The seed of an attempt; the first is the line's own."""
    first = line.options.seed
    assert isinstance(first, int)
    return seed_of(line.id, first, attempt) if attempt else first


@contextlib.contextmanager
def _noting(notes: list[str]) -> Iterator[None]:
    """Keep the block's warnings as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes += [str(one.message) for one in caught if one.category is UserWarning]
