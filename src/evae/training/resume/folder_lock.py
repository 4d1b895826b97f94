"""One training at a time in a folder: a locked file in it, which is free when its process ends, however it ends."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from evae.common.files import explain_disk_errors, lock
from evae.models.contract_evae import EvaeError

LOCK = ".lock"  # hidden, so a folder that holds nothing else counts as empty


class FolderLock:
    """The lock of one run folder.

    Args:
        folder: made by `take` if it is not there.

    Attributes:
        made: the folder and those above it, as far as `take` made them.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._file: IO[str] | None = None

    def take(self) -> str | None:
        """Take the folder for this process; returns who has it, if it is another one.

        Raises:
            EvaeError: the folder cannot be made.
        """
        if self._folder.exists() and not self._folder.is_dir():
            return None  # `RunFolder` says what is wrong with it
        with explain_disk_errors(f"the folder {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / LOCK
        while True:
            try:
                file = path.open("a+")
            except OSError:  # a folder of others, to look at only
                return None
            if not lock(file):
                file.seek(0)
                other = file.read().strip()
                file.close()
                return other or "one that is starting"
            with suppress(OSError):  # the one before may have removed the file between the two lines above
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return None

    def release(self) -> None:
        """Give the folder back, and remove it if it was made here and is empty."""
        if self._file is not None:
            (self._folder / LOCK).unlink(missing_ok=True)
            self._file.close()
            self._file = None
        for folder in self.made:
            with suppress(OSError):
                folder.rmdir()


class FolderTaken(EvaeError):
    """Another training works in the folder."""


def taken(folder: Path, other: str) -> FolderTaken:
    """What to say where another training has the folder."""
    return FolderTaken(
        f"another training works in output_dir {folder} ({other}); wait for it to end, or choose another output_dir."
    )
