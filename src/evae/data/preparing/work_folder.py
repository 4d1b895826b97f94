"""The folder in which a conversion works: one process at a time, and resumable.

It lies beside the dataset folder, as `OUT.partial`, and becomes it in the end. A job file in it says which conversion
it belongs to. When a killed conversion is started again with the same files and settings, it goes on in this folder.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evae.common.files import explain_disk_errors, lock, put_in_place, remove, remove_unfinished
from evae.models.contract_evae import EvaeError

JOB = "evae_prepare.json"


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


@contextmanager
def work_folder(out: Path, job: dict[str, Any]) -> Iterator[Path]:
    """Yield the work folder; it is renamed to `out` when the block ends.

    After bad input (`EvaeError`) it is removed. After a full disk or a kill it stays, and the same job goes on in it.
    Another job empties it first.

    Args:
        out: the folder to make.
        job: everything that decides the result, as plain values.

    Raises:
        EvaeError: another process works there, or the disk cannot be written.
    """
    folder = work_folder_of(out)
    with explain_disk_errors(str(folder), "give the same command again, it goes on where it stopped"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / JOB).open("a+") as file:
            if not lock(file):
                raise EvaeError(f"another `evae prepare` works in {folder}; wait for it.")
            wanted = json.dumps(job)
            file.seek(0)
            if file.read() != wanted:
                _empty(folder)
                file.truncate(0)
                file.write(wanted)
                file.flush()
            remove_unfinished(folder)
            try:
                yield folder
            except EvaeError:
                shutil.rmtree(folder)
                raise
            (folder / JOB).unlink()
            put_in_place(folder, out)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != JOB:
            remove(path)
