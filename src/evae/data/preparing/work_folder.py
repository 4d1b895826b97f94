"""The folder in which a conversion works: one process at a time, and resumable.

It lies beside the dataset folder, as `OUT.partial`, and becomes it in the end. A job file in it says which conversion
it belongs to. When a killed conversion is started again with the same files and settings, it goes on in this folder.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from evae.common.files import explain_disk_errors, lock, put_in_place, remove, remove_unfinished
from evae.models.contract_evae import EvaeError

JOB = "evae_prepare.json"
OPENED = "opened"


def work_folder_of(out: Path) -> Path:
    """Where the conversion to `out` works.

    Raises:
        EvaeError: `out` is taken, or its work folder is and not by a conversion.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaeError(f"{out} exists and is not empty; choose another folder or remove it first.")
    folder = out.with_name(out.name + ".partial")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / JOB).is_file())):
        raise EvaeError(f"{folder} is in the way and not of `evae prepare`; move it, or choose another folder.")
    return folder


@dataclass
class WorkFolder:
    """The folder, before and after it is known what is to be done in it.

    Attributes:
        path: where it lies.
        file: the open job file.
        begun: whether it belongs to this job.
        keep: whether it stays after bad input too, as while a stream from the Hub may break off.
    """

    path: Path
    file: IO[str]
    begun: bool = False
    keep: bool = False

    @property
    def opened(self) -> Path:
        """Where sources are unpacked and converted; its entries say of which file they are, so every job keeps it."""
        return self.path / "scratch" / OPENED

    def begin(self, job: dict[str, Any]) -> None:
        """Go on with this job, or empty the folder of another one.

        Args:
            job: everything that decides the result, as plain values.
        """
        wanted = json.dumps(job)
        self.file.seek(0)
        if self.file.read() != wanted:
            _empty(self.path)
            self.file.truncate(0)
            self.file.write(wanted)
            self.file.flush()
        remove_unfinished(self.path)
        self.begun = True


@contextmanager
def work_folder(out: Path) -> Iterator[WorkFolder]:
    """Yield the work folder; it is renamed to `out` when the block ends.

    After bad input (`EvaeError`) it is removed, unless it is that of another job. After a full disk or a kill it stays,
    and the same job goes on in it. Another job empties it first.

    Args:
        out: the folder to make.

    Raises:
        EvaeError: another process works there, or the disk cannot be written.
    """
    folder = work_folder_of(out)
    ours = not folder.exists()
    with explain_disk_errors(str(folder), "give the same command again, it goes on where it stopped"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / JOB).open("a+") as file:
            if not lock(file):
                raise EvaeError(f"another `evae prepare` works in {folder}; wait for it.")
            work = WorkFolder(folder, file)
            try:
                yield work
            except EvaeError:
                if (ours or work.begun) and not (work.keep and any(work.opened.rglob("*.arrow"))):
                    shutil.rmtree(folder)
                raise
            (folder / JOB).unlink()
            put_in_place(folder, out)


def _empty(folder: Path) -> None:
    scratch = folder / "scratch"
    for path in [*folder.iterdir(), *(scratch.iterdir() if scratch.is_dir() else ())]:
        if path.name != JOB and path != scratch and path.name != OPENED:
            remove(path)
