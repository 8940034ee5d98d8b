"""Who works in a folder: workers sign, and their job can wait until all of them are gone."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path
from typing import BinaryIO

from .folder import FolderError, lock

_POLL_S = 0.05


class Roll:
    """A file that the driver of a job puts into its folder, and on which workers hold a lock.

    A worker that finds it has the same folder before it as the driver, and not one of the same
    name on another disk. A system lets go of the lock of a process that ends, however it does.
    """

    def __init__(self, folder: Path) -> None:
        """Begin one, under a name that no machine has asked for before.

        Raises:
            OSError: the folder cannot be written.
        """
        # The next job takes it away, as all that ends so, if this one is killed.
        self.name = f".workers-{secrets.token_hex(8)}.part"
        self._path = folder / self.name
        self._file = self._path.open("xb")

    def wait(self, longest_s: float) -> None:
        """Until every worker that signed is gone, or for so many seconds."""
        deadline = time.monotonic() + longest_s
        while not (is_alone := lock(self._file, "EX")) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if is_alone:
            lock(self._file, "UN")

    def close(self) -> None:
        """Take it away."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    @staticmethod
    def sign(folder: Path, name: str) -> BinaryIO:
        """Say that this process works there, for as long as the file that is returned is open.

        Raises:
            FolderError: no job has begun such a roll in this folder.
        """
        try:
            file = (folder / name).open("rb")
        except FileNotFoundError as error:
            raise FolderError(
                f"{folder} is here not the folder that the job writes to; all machines must see "
                "the same one under this path, as on a shared disk"
            ) from error
        lock(file, "SH")
        return file
