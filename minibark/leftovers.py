"""Temporary places whose names say who writes there, so that the leavings of a kill can be told.

.NAME.MACHINE-PID-START-RANDOM.part: the first 40 characters of what is written; a number of the
running system and its table of processes; the process in that table and when it started, since
numbers of processes are used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_UNKNOWN = "0" * 8  # a machine that does not tell: nothing on it is sure
_WRITER = r"([0-9a-f]{8})-([0-9a-f]{1,7})-([0-9a-f]{1,16})-[0-9a-f]{6}"
_PART = re.compile(rf"(\..+)\.(?:{_WRITER}|[0-9a-f]{{8}})\.part")  # or without who
_DAY_S = 86_400


def temporary_name(name: str) -> str:
    """A new name for what this process writes before it is called `name`."""
    pid = os.getpid()
    start = (_state_and_start(pid) or ("", 0))[1]
    return f".{name[:40]}.{_machine()}-{pid:x}-{start:x}-{secrets.token_hex(3)}.part"


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder while they wrote `name`, or anything.

    What a living process has stays. Where that cannot be told, as of a process of another machine,
    it stays for a day after its last change.
    """
    for place in _leavings(folder, name):
        with contextlib.suppress(OSError):  # another may sweep too, or it is not ours to remove
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink()


def _leavings(folder: Path, name: str | None) -> Iterator[Path]:
    machine = _machine()
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _PART.fullmatch(entry.name)
            if not found or (name is not None and found[1] != f".{name[:40]}"):
                continue
            if found[2] == machine != _UNKNOWN:
                is_left = not _runs(int(found[3], 16), int(found[4], 16))
            else:
                is_left = time.time() - _changed(Path(entry.path)) > _DAY_S
            if is_left:
                yield Path(entry.path)


def _machine() -> str:
    """What two processes have in common if and only if they can see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time")]
    except (OSError, ValueError):
        return _UNKNOWN
    return hashlib.sha256(boot + " ".join(spaces).encode()).hexdigest()[:8]


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """A letter, and ticks since the system started; None if that is not told.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _runs(pid: int, start: int) -> bool:
    """Whether a process of this machine runs, or cannot be said not to."""
    found = _state_and_start(pid)
    if found is not None:
        return found[0] not in "ZX" and found[1] == start
    try:
        os.kill(pid, 0)  # other users' processes may be hidden from us
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _changed(place: Path) -> float:
    """When a file, or anything in a directory, was last changed."""
    times = [os.lstat(place).st_mtime]
    for folder, _, names in os.walk(place):
        for inner in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(OSError):
                times.append(os.lstat(inner).st_mtime)
    return max(times)
