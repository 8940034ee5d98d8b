"""Many clips, safely: a manifest of texts to a folder of sounds and records.

    manifest -> lines, checked -> those not done, rows that join as others end -> pipeline -> ID.wav
                                                                                        -> ID.json

What a clip is depends on its line, the options and the model alone: not on the rows beside it, nor
on which run of the job makes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..audio import FORMATS, encode_audio
from ..files import reason, shown, warn
from ..options import Options
from ..sampling import OnStep
from ..stages import Stages
from ..voice import Voice
from .batch import MOST_ROWS, positive
from .changes import difference
from .clips import Clip, Maker, Task, voice_checksum
from .folder import ClipFolder
from .manifest import BadLine, Line, ManifestError, read_manifest, share_of
from .plan import LongOptions
from .split import MissingExtraError


class ChangedError(ValueError):
    """Clips that are done are not those that the manifest, the options and the model would give."""


@dataclass(frozen=True)
class Summary:
    """What became of a job, or has until now.

    Attributes:
        n_made: clips made in this run.
        n_kept: clips that were done before it.
        n_bad: lines of which there is no clip; `errors.jsonl` has them.
        n_doubtful: clips made in which something is wrong still; `fault` of their records says it.
        audio_s: seconds of sound made.
        wall_s: seconds that it took.
    """

    n_made: int = 0
    n_kept: int = 0
    n_bad: int = 0
    n_doubtful: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0


class Job:
    """A manifest, a folder, and what is still to be made; a context manager.

    with Job(bark, "manifest.jsonl", "clips", voice="female") as job:
        for made in job.run():
            print(made)

    Attributes:
        n_todo: clips that `run` will make, if nothing goes wrong.
        summary: what has become of the job until now.
        bad: lines of which no clip can be made.
    """

    def __init__(
        self,
        stages: Stages,
        manifest: str | os.PathLike[str] | Iterable[Line | BadLine],
        folder: str | os.PathLike[str],
        *,
        voice: str | None = None,
        options: Options | None = None,
        plan: LongOptions | None = None,
        audio_format: str = "wav",
        model: str | None = None,
        shard: tuple[int, int] = (1, 1),
        rows: int = MOST_ROWS,
        one_piece: bool = False,
        again: bool = False,
    ) -> None:
        """Read and check everything, and begin `errors.jsonl` with what is wrong.

        Args:
            stages: the Bark that speaks.
            manifest: a JSON object a line, as `read_manifest` says; or the lines that it gives,
                for which `voice`, `options` and `plan` are not.
            folder: where `ID.wav` and `ID.json` go; it is made if it is not there.
            voice: of lines that name none: a name or path.
            options: of lines that have none of their own; `seed` is the job's, None is 0.
            plan: the same, for texts of several pieces.
            audio_format: wav, flac, ogg, opus or mp3.
            model: what records call the model; None is the name of the checkpoint.
            shard: (i, n), to do only the lines that fall to machine i of n, from 1.
            rows: how many clips go through a stage together.
            one_piece: cut a long text off, as suno/bark does.
            again: make clips again that are done but would be others now, and let clips be that
                the manifest does not name.

        Raises:
            ManifestError: the manifest has no lines.
            FolderError: the folder has other files, a damaged record, or another job at work.
            ChangedError: something that is done would be otherwise now, or is not in the manifest.
            ValueError: an unknown format, a shard that is none, no rows, or another setting that
                is not of its kind.
            OSError: what cannot be read or written.
        """
        suffix = f".{audio_format}"
        if suffix not in FORMATS:
            formats = ", ".join(name[1:] for name in FORMATS)
            raise ValueError(f"the format must be one of {formats}, got {audio_format!r:.40}")
        _check_settings(voice, options, plan, model, shard)
        positive(rows, "rows")
        encode_audio(np.zeros(1, np.float32), stages.sample_rate, suffix)  # refuses odd rates
        self._stages, self._one_piece = stages, one_piece
        self._maker = Maker(stages, suffix, rows, one_piece)
        self._voices: dict[str | None, tuple[Voice | None, str] | ManifestError] = {}
        if isinstance(manifest, str | os.PathLike):
            manifest = read_manifest(manifest, voice, options, plan)
        found = list(manifest)
        self.bad = [bad for bad in found if isinstance(bad, BadLine) and _is_in(bad, shard)]
        checkpoint = stages.checkpoint()
        self._common = {
            "model": model or checkpoint.name,
            "checksum": checkpoint.checksum(),
            "precision": stages.precision,
        }
        self._suffix = suffix
        self._folder = ClipFolder(folder)
        try:
            lines = [line for line in found if isinstance(line, Line) and _is_in(line, shard)]
            known = {one.id: isinstance(one, Line) for one in reversed(found)}
            todo, kept = self._compare(lines, known, sum(not one.id for one in found), again)
            self._tasks = [task for line in todo if (task := self._task(line)) is not None]
            self._folder.write_errors(self.bad)
        except BaseException:
            self._folder.close()
            raise
        self.n_todo = len(self._tasks)
        self.summary = Summary(n_kept=kept, n_bad=len(self.bad))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    def run(self, on_step: OnStep | None = None) -> Generator[dict[str, Any] | BadLine]:
        """Make what is to be made: the record of each clip once it is on the disk.

        Where none comes of a line, the line and why, which `errors.jsonl` tells by then.

        Raises:
            OSError: the folder cannot be written any more; what is done is kept.
        """
        begin = time.perf_counter()
        for made in self._maker.make(self._tasks, on_step):
            if isinstance(made, Clip):
                self._folder.add(made.record, made.sound)
            yield self._note(made, begin)

    def _note(self, made: Clip | BadLine, begin: float) -> dict[str, Any] | BadLine:
        if isinstance(made, BadLine):
            self.bad.append(made)
            self._folder.add_error(made)
        self._count(made, time.perf_counter() - begin)
        return made if isinstance(made, BadLine) else made.record

    def _count(self, made: Clip | BadLine, wall_s: float) -> None:
        so_far = dataclasses.replace(self.summary, n_bad=len(self.bad), wall_s=wall_s)
        if isinstance(made, Clip):
            so_far = dataclasses.replace(
                so_far,
                n_made=so_far.n_made + 1,
                n_doubtful=so_far.n_doubtful + bool(made.record["fault"]),
                audio_s=so_far.audio_s + made.seconds,
            )
        self.summary = so_far

    # ---- reading and checking

    def _compare(
        self, lines: Sequence[Line], known: Mapping[str, bool], unnamed: int, again: bool
    ) -> tuple[list[Line], int]:
        """The lines of which no clip is done, and how many clips are.

        `known` has the ids of the manifest, and whether the line of each is a good one; `unnamed`
        lines have ids that cannot be read, which may be those of clips that are done.

        Raises:
            ChangedError: a clip that is done would be otherwise, or is none of the known.
        """
        done = self._folder.ids()
        if not again and len(others := sorted(done - known.keys())) > unnamed:
            raise ChangedError(
                f"{self._folder.path} has {counted(len(others), 'clip')} that the manifest does "
                f"not name ({shown(others[0], 60)!r}): it is another job's. Choose another folder, "
                "or let them be with again=True (--again)"
            )
        todo, changed, n_kept = list[Line](), list[str](), 0
        unread: dict[str, int] = {}
        for line in lines:
            record = self._folder.record(line.id) if line.id in done else None
            expected = self._expected(line) if record else {}
            wrong = difference(record, expected) if record else ""
            if record and not wrong:
                n_kept += 1
                if "voice_checksum" not in expected:
                    unread[str(line.voice)] = unread.get(str(line.voice), 0) + 1
                continue
            todo.append(line)
            if record:
                changed.append(f"{line.id!r} ({wrong})")
        # Of a bad line only the model is known.
        for bad in self.bad:
            record = self._folder.record(bad.id) if bad.id in done and not known[bad.id] else None
            if record and (wrong := difference(record, self._common)):
                changed.append(f"{bad.id!r} ({wrong})")
        if changed and not again:
            raise ChangedError(
                f"{counted(len(changed), 'clip')} of {self._folder.path}, done before, would be "
                f"otherwise now: {'; '.join(changed[:3])}. Choose another folder, or make them "
                "anew with again=True (--again)"
            )
        for name, n in unread.items():
            warn(
                f"the voice {shown(name, 100)!r} cannot be read; {counted(n, 'clip')} done with it "
                "before and else unchanged stay"
            )
        return todo, n_kept

    def _expected(self, line: Line) -> dict[str, Any]:
        """What the clip of a line depends on, as its record has it.

        There is no `voice_checksum` where the voice cannot be read.
        """
        checksum = dict[str, Any]()
        with contextlib.suppress(ManifestError):
            checksum["voice_checksum"] = self._voice(line.voice)[1]
        options: dict[str, Any] = {**vars(line.options), **vars(line.plan)}
        first_seed = options.pop("seed")
        return {
            "id": line.id,
            "file": line.id + self._suffix,
            "text": line.text,
            "voice": line.voice,
            **checksum,
            "first_seed": first_seed,
            "options": {**options, "one_piece": self._one_piece},
            **self._common,
        }

    def _voice(self, name: str | None) -> tuple[Voice | None, str]:
        """A voice and its checksum.

        Raises:
            ManifestError: there is none.
        """
        if name not in self._voices:
            try:
                voice = self._stages.load_voice(name)
                self._voices[name] = voice, voice_checksum(voice) if voice else ""
            except (ValueError, OSError) as error:
                self._voices[name] = ManifestError(reason(error))
        found = self._voices[name]
        if isinstance(found, ManifestError):
            raise found
        return found

    def _task(self, line: Line) -> Task | None:
        """What is to be done for a line; None, and a bad line more, if it cannot be."""
        try:
            voice, _ = self._voice(line.voice)
            return self._maker.task(line, self._expected(line), voice)
        except (ValueError, MissingExtraError) as error:
            self.bad.append(BadLine(line.number, line.id, reason(error)))
            return None


def run(
    stages: Stages,
    manifest: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    on_clip: Callable[[dict[str, Any]], object] | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Summary:
    """Make the clips of a manifest that are not there yet.

    Args:
        stages: the Bark that speaks.
        manifest: a JSON object a line: `id`, `text` and, where it wants, `voice` and options.
        folder: where `ID.wav` and `ID.json` go.
        on_clip: given the record of each clip once it is on the disk.
        on_step: told of the progress of each stage.
        **settings: those of `Job`, whose errors these are too.

    Returns:
        What became of it; `n_bad` is 0 where every line has its clip.
    """
    with Job(stages, manifest, folder, **settings) as job:
        for made in job.run(on_step):
            if on_clip and not isinstance(made, BadLine):
                on_clip(made)
        return job.summary


def counted(n: int, what: str) -> str:
    """Such as "1 clip" and "2 clips"."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _is_in(line: Line | BadLine, shard: tuple[int, int]) -> bool:
    """Whether a line is this machine's; one without an id goes by its number."""
    return share_of(line.id or str(line.number), shard[1]) == shard[0]


def _check_settings(
    voice: object, options: object, plan: object, model: object, shard: object
) -> None:
    """Refuse what is not of its kind, before anything is begun."""
    if not isinstance(voice, str | None):
        raise ValueError(
            f"voice must be a name or the path of an .npz file, not {type(voice).__name__}; "
            "Voice.save writes one"
        )
    if not isinstance(options, Options | None):
        raise ValueError(f"options must be Options, not {type(options).__name__}")
    if options and not isinstance(options.seed, int | None):
        raise ValueError("the seed of a job must be a whole number or None, not a stream")
    if not isinstance(plan, LongOptions | None):
        raise ValueError(f"plan must be LongOptions, not {type(plan).__name__}")
    if not isinstance(model, str | None):
        raise ValueError(f"model must be a name for the records, not {type(model).__name__}")
    match shard:
        case (int(i), int(n)) if 1 <= i <= n:
            return
        case (int(i), int(n)):
            raise ValueError(f"shard i/n must have i from 1 to n, got {i}/{n}")
    raise ValueError(f"shard must be two whole numbers, (i, n), got {shard!r:.40}")
