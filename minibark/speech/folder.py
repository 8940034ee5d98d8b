"""A folder of clips, each a sound and a record, in which one job works at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ..audio import FORMATS
from ..files import MAX_TEXT_BYTES, reason, replacing, shown, sync
from .manifest import BadLine

MARK = ".minibark-batch"
ERRORS = "errors.jsonl"
_ABOUT = "This folder is written by 'minibark batch': ID.json is there once a clip is done.\n"


class FolderError(ValueError):
    """A folder that a job must not, or cannot, work in."""


class ClipFolder:
    """The clips of a job.

    A clip's record is written after its sound, and both under a temporary name and renamed: so a
    clip is done exactly when its record is there, whenever a process is killed.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_held: bool = False) -> None:
        """Open it, and keep others out; it is made if it is not there.

        With `is_held` another process, whose worker this one is, keeps others out.

        Raises:
            FolderError: another job is at work there, or the folder has files of other origin.
            OSError: it cannot be made, or written.
        """
        self.path = Path(os.path.expanduser(path))
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path} is no folder; choose another place for the clips")
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"the folder {self.path.absolute().parent} does not exist; create it first"
            )
        try:
            self.path.mkdir(exist_ok=True)
            names = sorted(os.listdir(self.path))
            if MARK not in names and (stray := self._stray(names)):
                raise FolderError(
                    f"{self.path} has files and no {MARK}, which batches write "
                    f"({shown(stray, 60)!r}); choose a new or an empty folder. Clips of a batch "
                    f"are copied with their records, or with {MARK}, as 'cp -r PART/. ALL/' does"
                )
            self._mark = (self.path / MARK).open("a+b", buffering=0)
        except PermissionError:
            raise
        except OSError as error:
            raise self._unwritable(error, self.path) from error
        if is_held:
            return
        try:
            self._keep_others_out()
            if MARK in names:
                self.sweep()
            else:
                try:
                    self._mark.write(_ABOUT.encode())
                except OSError as error:
                    raise self._unwritable(error, self.path / MARK) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others in."""
        self._mark.close()

    def sweep(self) -> None:
        """Take away what a killed job, or a worker of this one, was writing."""
        for name in os.listdir(self.path):
            if name.startswith(".") and name.endswith(".part"):
                path = self.path / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def ids(self) -> set[str]:
        """The ids of the clips that are done."""
        names = os.listdir(self.path)
        return {name[:-5] for name in names if name.endswith(".json") and name[0] != "."}

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a clip that is done; None if it, or the sound that it names, is not there.

        Raises:
            FolderError: there is a file of its name that is no record.
        """
        path = self.path / f"{name}.json"
        try:
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise ValueError("it is too large")
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or document.get("id") != name:
                raise ValueError("it is of no such clip")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise FolderError(
                f"{path} is not the record of a clip ({reason(error)}); delete it, and the clip "
                "is made again"
            ) from error
        files = [file for file in _sounds(name) if file == document.get("file")]
        return document if files and self._is_whole(document, self.path / files[0]) else None

    def _is_whole(self, document: dict[str, Any], sound: Path) -> bool:
        """Whether a sound is there, as long as its record says; older records do not say it."""
        if not sound.is_file():
            return False
        return document.get("bytes") in (None, sound.stat().st_size)

    def _stray(self, names: Iterable[str]) -> str:
        """A file of a folder without the mark that is no clip's; "" if there is none.

        Clips that were copied are known by their records; the mark is hidden, and stays behind.
        """
        files = {name for name in names if not name.startswith(".")}
        ours = {ERRORS}
        for name in {file[:-5] for file in files if file.endswith(".json")}:
            try:
                record = self.record(name)
            except FolderError:
                return f"{name}.json"
            if record and "first_seed" in record:
                ours |= {f"{name}.json", record["file"]}
        return min(files - ours, default="") if len(ours) > 1 else min(files, default="")

    def add(self, record: dict[str, Any], sound: bytes) -> None:
        """Write a clip, in place of one that was there of its id.

        Raises:
            OSError: it cannot be written; what to do is in the text.
        """
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        place, file = self.path / f"{record['id']}.json", record["file"]
        try:
            # The folder was swept as a whole when it was opened, and may have many clips by now.
            with replacing(self.path / file, sweeps=False) as part:
                part.write_bytes(sound)
                sync(part)  # now, and not only before it gets its name
                # From here on the clip is not done: the old record is not of the new sound.
                place.unlink(missing_ok=True)
            for other in _sounds(record["id"]) - {file}:
                (self.path / other).unlink(missing_ok=True)
            with replacing(place, sweeps=False) as part:
                # A lone surrogate becomes what JSON writes for it.
                part.write_bytes(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise self._unwritable(error, place) from error

    def write_errors(self, bad: Iterable[BadLine]) -> None:
        """Begin `errors.jsonl` with these lines; without any the file is taken away."""
        path = self.path / ERRORS
        text = "".join(map(_as_json, bad))
        try:
            if text:
                with replacing(path) as part:
                    part.write_bytes(text.encode("utf-8"))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error, path) from error

    def add_error(self, bad: BadLine) -> None:
        """Add one to `errors.jsonl`."""
        path = self.path / ERRORS
        try:
            with path.open("ab") as file:
                file.write(_as_json(bad).encode("utf-8"))
        except OSError as error:
            raise self._unwritable(error, path) from error

    def _unwritable(self, error: OSError, path: Path) -> OSError:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what_to_do = "make room there" if is_full else "mend that"
        return OSError(
            f"{shown(os.fsdecode(error.filename or path), 1000)} cannot be written "
            f"({error.strerror or reason(error)}); what is done is kept: {what_to_do}, and run "
            "the same again"
        )

    def _keep_others_out(self) -> None:
        """Lock the folder; a system lets go of the lock of a process that has been killed."""
        if not lock(self._mark, "EX"):
            raise FolderError(
                f"another batch is at work in {self.path}; wait for it, or choose another folder"
            )


def lock(file: BinaryIO, kind: str) -> bool:
    """Lock a file, EX or SH, or unlock it, UN: whether that could be done at once, if at all."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, getattr(fcntl, f"LOCK_{kind}") | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sounds(name: str) -> set[str]:
    """What the sound of a clip may be called."""
    return {f"{name}{suffix}" for suffix in FORMATS}


def _as_json(bad: BadLine) -> str:
    document: dict[str, object] = {"line": bad.number, "id": bad.id or None, "reason": bad.reason}
    return json.dumps(document) + "\n"
