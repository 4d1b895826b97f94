"""The folder of an unfinished conversion: known as ours by its job file, used by one process at a time.

A conversion that was killed is gone on with when the same job is started again: the same files (by size and time
of change) with the same settings. Pieces of work are files in this folder that appear whole or not at all.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evae.models.contract_evae import EvaeError

JOB = "evae_prepare.json"


def partial_of(out: Path) -> Path:
    """Where the conversion to `out` is built.

    Raises:
        EvaeError: `out` is in the way, or something that is not ours is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaeError(f"{out} exists and is not empty; choose another folder or remove it first.")
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and (not partial.is_dir() or (any(partial.iterdir()) and not (partial / JOB).is_file())):
        raise EvaeError(f"{partial} is in the way and not of `evae prepare`; move it, or choose another folder.")
    return partial


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written because the disk is full or may not be written.

    The text is looked at too: safetensors, HDF5 and Parquet have errors of their own that only quote the system's.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


@contextmanager
def partial_folder(out: Path, job: dict[str, Any]) -> Iterator[Path]:
    """`OUT.partial`, renamed to OUT at the end.

    Bad input (`EvaeError`) removes it. After anything else, a full disk or a kill, it stays, and the same job
    begins where it stopped; another job into the same folder starts from nothing.

    Args:
        out: the folder to make.
        job: what decides the result; plain values.
    """
    partial = partial_of(out)
    partial.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(job)
    with (partial / JOB).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaeError(f"another `evae prepare` works in {partial}; wait for it.") from None
        file.seek(0)
        if file.read() != wanted:
            _empty(partial)
            file.truncate(0)
            file.write(wanted)
            file.flush()
        try:
            yield partial
        except EvaeError:
            shutil.rmtree(partial)
            raise
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise EvaeError(
                f"could not write {partial} ({error}); free space there, or make it writable, and give the same "
                "command again, it goes on where it stopped."
            ) from error
        (partial / JOB).unlink()
        if out.exists():
            out.rmdir()
        partial.rename(out)


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != JOB:
            path.unlink()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    os.replace(unfinished, path)
