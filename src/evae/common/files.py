"""Files and folders that are there whole or not at all, and what to say when the disk cannot take them.

Everything is written under a temporary name beside its place, forced to the disk and renamed. The temporary name
holds the process, so two processes that write the same file do not disturb each other: the last one wins. What a
killed process left is removed by the next one that writes to the same folder.
"""

import errno
import fcntl
import functools
import json
import os
import shutil
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from evae.models.contract_evae import EvaeError

UNFINISHED = ".partial-"  # how the names of all unfinished files and folders begin


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder so that it is there whole or not at all.

    Args:
        path: the file or folder to make; replaced if it exists. Folders above it are made.

    Yields:
        A temporary path with the same ending, where nothing is yet. Make a file or a folder there. When the block
        ends it is renamed to `path`; when the block raises it is removed, and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent.resolve(), os.getpid())
    temporary = path.with_name(f"{_mark(os.getpid())}{path.name}")
    remove(temporary)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """`atomic_write` of a folder: the temporary folder is there already, and empty."""
    with atomic_write(path) as temporary:
        temporary.mkdir()
        yield temporary


def write_bytes(path: str | Path, content: Any) -> Path:
    """Write bytes, or any buffer of them, whole or not at all; returns the path."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write text as UTF-8, whole or not at all; returns the path."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> Path:
    """Write plain values as JSON, whole or not at all; returns the path.

    Raises:
        ValueError: NaN or infinity among the values, which JSON does not have (see `evae.common.numbers.plain`).
    """
    return write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def put_in_place(unfinished: Path, path: Path) -> None:
    """Force a finished file or folder to the disk and give it its name, in place of what has that name now."""
    for entry in [*unfinished.rglob("*"), unfinished]:
        sync(entry)
    if path.is_dir():  # a folder cannot be renamed over another one
        old = path.with_name(f"{_mark(os.getpid())}old-{path.name}")
        remove(old)
        os.rename(path, old)
        os.rename(unfinished, path)
        remove(old)
    else:
        os.replace(unfinished, path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what was left unfinished in a folder, by whichever process: for folders that one run owns."""
    for entry in list(folder.rglob(f"{UNFINISHED}*")):
        with suppress(OSError):  # a file that someone still reads; the next run tries again
            remove(entry)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO[Any]) -> bool:
    """Take an open file for this process alone, until it is closed or the process ends, however it ends.

    Returns:
        False if another process has it. True also where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    held = weakref.ref(file)

    def let_go() -> None:  # a forked worker must not keep what a dead process had
        if (own := held()) is not None:
            own.close()

    os.register_at_fork(after_in_child=let_go)
    return True


def disk_error(error: BaseException) -> str:
    """Why the disk could not be written, in the system's words: full, read-only, ...; "" if that is not the error.

    The text is looked at too: safetensors, HDF5 and Parquet have errors of their own that only quote the system's.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    found = (os.strerror(c) for c in codes if getattr(error, "errno", None) == c or os.strerror(c) in str(error))
    return next(found, "")


@contextmanager
def explain_disk_errors(what: str, then: str = "run it again", unfinished: Path | None = None) -> Iterator[None]:
    """Turn a full disk, or one that may not be written, into one line for the user.

    Args:
        what: is written, e.g. "the checkpoint runs/a/checkpoints/step-00000100".
        then: what to do once there is space.
        unfinished: a file or folder to remove then: it takes up space.

    Raises:
        EvaeError: in place of the error of the disk; other errors are left as they are.
    """
    try:
        yield
    except Exception as error:  # libraries raise errors of their own for a full disk
        reason = disk_error(error)
        if isinstance(error, EvaeError) or not reason:
            raise
        if unfinished is not None:
            remove(unfinished)
        raise EvaeError(
            f"could not write {what} ({reason}); free space there, or make it writable, then {then}."
        ) from error


def check_room(path: Path, n_bytes: int) -> None:
    """Raise `EvaeError` if the disk that `path` is to lie on cannot take so many bytes, or may not be written."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise EvaeError(
            f"{path} takes {_size(n_bytes)}, and {_size(free)} are free on its disk; free space there, or choose "
            "another output."
        )
    if not os.access(folder, os.W_OK):
        raise EvaeError(f"{folder} may not be written; make it writable, or choose another output.")


def _size(n_bytes: int) -> str:
    value, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.3g} {units[0]}"


def _mark(process: int) -> str:
    return f"{UNFINISHED}{process}-{socket.gethostname()}-"


@functools.cache  # once is enough: what this process leaves, it removes itself
def _remove_leftovers(folder: Path, process: int) -> None:
    """Remove what dead processes of this machine left unfinished in a folder."""
    for entry in folder.glob(f"{UNFINISHED}*-{socket.gethostname()}-*"):
        number = entry.name.removeprefix(UNFINISHED).split("-")[0]
        if number.isdecimal() and int(number) != process and not _is_alive(int(number)):
            with suppress(OSError):  # another process was faster, or it belongs to another user
                remove(entry)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
