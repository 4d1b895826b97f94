"""What is kept of real cells for the next evaluation: files named after digests, of which the least used go."""

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from evae.common.files import atomic_write

KEPT_BYTES = 4 << 30  # of a folder; files used within the last hour stay in any case
_NAME = re.compile(r"[0-9a-f]{64}[-\w]*\.(json|safetensors)")  # a folder may be the user's, with other files
_HOUR = 3_600


def is_kept(path: Path) -> bool:
    """Whether the file is there; it counts as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:  # a folder that may only be read
        return path.exists()
    return True


def load_kept(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """Arrays and texts by their names, as `keep` wrote them; None where there is no such file."""
    if not is_kept(path):
        return None
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def keep(path: Path, arrays: Mapping[str, np.ndarray], texts: dict[str, str] | None = None) -> None:
    """Write arrays and texts as safetensors, and make room for them."""
    with atomic_write(path) as temporary:
        save_file({name: np.asarray(values, order="C") for name, values in arrays.items()}, temporary, texts)
    make_room(path.parent)


def make_room(folder: Path, limit: int = KEPT_BYTES) -> None:
    """Remove the least recently used files until at most `limit` bytes are kept in the folder."""
    files = []
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process was faster
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    for used, size, path in sorted(files):
        if excess <= 0 or time.time() - used < _HOUR:
            return
        path.unlink(missing_ok=True)
        excess -= size
