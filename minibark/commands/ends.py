"""How a process is ended from outside, and what it does without its usual three streams.

Nothing here takes long to import: signals are to be caught while the rest is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

INTERRUPTED = "interrupted; nothing was written"
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is POSIX's only
_ONE_S = 1.0  # signals that come together are one; a terminal that closes sends two

Handler = Callable[[int, FrameType | None], Any]


def leave(number: int, frame: FrameType | None) -> None:
    """End the process here and now: for imports, which leave nothing and may swallow exceptions."""
    line, status = parting(sys.argv[1:])
    with contextlib.suppress(OSError):
        os.write(2, f"minibark: {line}\n".encode())
    os._exit(status)


def parting(words: Sequence[str]) -> tuple[str, int]:
    """What is told, and the exit status, where a signal ends the command of these words."""
    if words[:1] == ["serve"]:  # which is ended by a signal as others are by their last line
        return "ended before it served anybody", 0
    return INTERRUPTED, 1


class Interruption:
    """A handler that raises KeyboardInterrupt, so that files are tidied up on the way out."""

    def __init__(self) -> None:
        self._last = -_ONE_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise, unless the last signal was just now and is being seen to."""
        now = time.monotonic()
        if now - self._last >= _ONE_S:
            self._last = now
            raise KeyboardInterrupt


@contextlib.contextmanager
def ended_by(handler: Handler) -> Iterator[None]:
    """Let a handler have the signals that would end the process, and give them back.

    Those that are ignored, as under nohup, or that somebody else has taken, stay as they are.
    """
    before: dict[int, Any] = {}
    usual = (signal.SIG_DFL, signal.default_int_handler, leave)
    try:
        if threading.current_thread() is threading.main_thread():  # others may not
            for name in _ENDING:
                number = getattr(signal, name, None)
                if number is not None and (found := signal.getsignal(number)) in usual:
                    before[number] = found
                    signal.signal(number, handler)
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def plug_streams() -> None:
    """Put the null device where a standard stream is closed, as cron and daemons leave them.

    Else the next file that is opened would be taken for it. `sys.stdout` and `sys.stdin` stay None
    where they are, which is how a command knows.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")


def hush(stream: TextIO | None) -> None:
    """Let nothing more come out of a stream that fails, at exit neither."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)


def complain(line: str) -> None:
    """Write a line on stderr, if there is one that takes it; a full disk is no reason to fail."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        hush(sys.stderr)
