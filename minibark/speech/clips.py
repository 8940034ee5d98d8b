"""Clips with records: texts of one piece in groups of like length, longer ones by themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..audio import encode_audio
from ..files import reason
from ..options import Options
from ..pipeline import Audio, Row
from ..sampling import OnStep
from ..stages import Stages
from ..text import readable
from ..voice import PARTS, Voice
from .batch import MOST_ROWS
from .faults import fault_of
from .manifest import BadLine, Line, seed_of
from .pieces import cut, is_one
from .reading import Reading
from .split import CHARACTERS_PER_S, MissingExtraError, spoken_length

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


class Maker:
    """Makes clips with one Bark."""

    def __init__(
        self, stages: Stages, suffix: str, rows: int = MOST_ROWS, one_piece: bool = False
    ) -> None:
        """`suffix` as for `encode_audio`; `rows` go together; `one_piece` cuts long texts off."""
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
            text = readable(line.text, stages.tokenizer, level)
        limit = stages.config.generation.max_input_semantic_length
        expected_s, ids = spoken_length(text) / CHARACTERS_PER_S, stages.tokenizer.encode(text)
        if self._one_piece:
            if n_lost := max(0, len(ids) - limit):
                notes.append(f"{n_lost} of the {len(ids)} tokens of the text are cut off")
            return Task(line, record, voice, ids[:limit], expected_s, n_lost > 0, notes)
        pieces = cut(text, stages.tokenizer, limit, line.plan)
        return Task(line, record, voice, ids if is_one(pieces) else None, expected_s, False, notes)

    def groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """What is made together: texts of like length, with the same options but for the seed."""
        groups = [[task] for task in tasks if task.ids is None]
        together: dict[Options, list[Task]] = {}
        for task in tasks:
            if task.ids is not None:
                options = dataclasses.replace(task.line.options, seed=None)
                together.setdefault(options, []).append(task)
        for alike in together.values():
            alike.sort(key=lambda task: (task.expected_s, task.line.number))
            groups += [alike[i : i + self._rows] for i in range(0, len(alike), self._rows)]
        # Neither short nor long ones first, so that the time gone tells the time left.
        return sorted(groups, key=lambda group: seed_of(group[0].line.id, 0))

    def make(
        self, group: Sequence[Task], on_step: OnStep | None = None
    ) -> Iterator[Clip | BadLine]:
        """The clips of a group of `groups`; where it fails, what is left is made one by one."""
        as_planned = self._in_pieces if group[0].ids is None else self._as_rows
        left = {task.line.number: task for task in group}
        try:
            for task, made in as_planned(group, on_step):
                del left[task.line.number]
                yield made
        except (ValueError, FloatingPointError, MissingExtraError) as error:
            for task in left.values():
                if len(group) == 1:
                    yield BadLine(task.line.number, task.line.id, reason(error))
                else:
                    yield from self.make([task], on_step)

    def _as_rows(
        self, group: Sequence[Task], on_step: OnStep | None
    ) -> Iterator[tuple[Task, Clip | BadLine]]:
        """Texts of one piece, together; what goes wrong is made again with another seed.

        Not so where the line gives the seed: it gets what `generate` makes of it.
        """
        pipeline, options = self._stages.pipeline, group[0].line.options
        best: dict[int, tuple[Audio, int, str]] = {}
        spent_s = {task.line.number: 0.0 for task in group}
        wanting, attempt = list(group), 0
        while wanting:
            begin = time.perf_counter()
            seeds = [_seed(task.line, attempt) for task in wanting]
            rows = [self._row(task, seed) for task, seed in zip(wanting, seeds, strict=True)]
            voices = pipeline.speak(rows, options, on_step)
            share_s = (time.perf_counter() - begin) / len(wanting)
            failed = []
            for task, seed, voice in zip(wanting, seeds, voices, strict=True):
                begin, number = time.perf_counter(), task.line.number
                audio = pipeline.decode(voice.fine)
                wrong = fault_of(
                    voice, audio, task.expected_s, self._stages.config, options, task.is_cut
                )
                if number not in best or not wrong or not len(best[number][0]):
                    best[number] = audio, seed, wrong
                spent_s[number] += share_s + time.perf_counter() - begin
                if wrong and not task.line.has_seed and attempt < task.line.plan.retries:
                    failed.append(task)
                    continue
                audio, seed, wrong = best.pop(number)
                yield (
                    task,
                    self._made(task, audio, spent_s[number], seed, attempt + 1, wrong),
                )
            wanting, attempt = failed, attempt + 1

    def _row(self, task: Task, seed: int) -> Row:
        stream = torch.Generator(self._stages.device).manual_seed(seed)
        return Row(torch.tensor(task.ids), task.voice, stream)

    def _in_pieces(
        self, group: Sequence[Task], on_step: OnStep | None
    ) -> Iterator[tuple[Task, Clip | BadLine]]:
        """One text of several pieces, as `generate_long` says it."""
        (task,) = group
        begin = time.perf_counter()
        with _noting([]):  # `task.notes` has those of the text, the record those of the sound
            reading = Reading(self._stages, task.line.options, task.line.plan)
            reading.text(task.line.text, task.voice)
            said = list(reading.pieces(on_step, self._rows))
        wrong = "; ".join(f"piece {i} {one.fault}" for i, one in enumerate(said, 1) if one.fault)
        parts = [reading.with_silences(*one) for one in enumerate(said)]
        is_empty = not any(len(one.audio) for one in said)
        audio = np.zeros(0, np.float32) if is_empty else np.concatenate(parts)
        spent_s, tries = time.perf_counter() - begin, max(one.tries for one in said)
        yield (
            task,
            self._made(task, audio, spent_s, _seed(task.line, 0), tries, wrong, len(said)),
        )

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
        how = {
            "seed": seed,
            "tries": tries,
            "pieces": n_pieces,
            "seconds": round(seconds, 3),
            "wall_s": round(spent_s, 3),
            "fault": wrong,
            "warnings": task.notes,
            "device": str(self._stages.device),
            "version": __version__,
        }
        sound = encode_audio(audio, self._stages.sample_rate, self._suffix)
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
