"""What is known of the real cells alone, kept for the next prediction: means, and records of their split half.

A key says which cells these are of, and by which code: when a metric changes, its records are computed anew.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from evae.common.files import atomic_write
from evae.evaluation import cells, metrics, protocols
from evae.evaluation.cells import Comparison
from evae.evaluation.protocols.record import Record


def real_key(comparison: Comparison) -> str:
    """A key over the real cells, their controls and the code of the evaluation."""
    parts = [_code(), comparison.real.digest(), comparison.controls.digest()]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def is_stored(folder: Path | None, key: str) -> bool:
    """Whether there are records under `key`."""
    return folder is not None and (folder / f"{key}.json").exists()


def stored_records(folder: Path | None, key: str, compute: Callable[[], list[Record]]) -> list[Record]:
    """The records stored under `key`, else computed and stored; None as folder stores nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key}.json"
    if path.exists():
        return [Record(*row) for row in zip(*json.loads(path.read_text()).values(), strict=True)]
    records = compute()
    columns = zip(*records, strict=True) if records else [[]] * len(Record._fields)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dict(zip(Record._fields, columns, strict=True))))
    return records


def stored_values(folder: Path | None, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array stored under `key`, else computed and stored; None as folder stores nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key}.safetensors"
    if path.exists():
        with safe_open(path, "numpy") as stored:
            return stored.get_tensor("values")
    values = np.ascontiguousarray(compute())
    with atomic_write(path) as temporary:
        save_file({"values": values}, temporary)
    return values


@cache
def _code() -> str:
    """A digest of the code that records come from."""
    sha = hashlib.sha256()
    for room in (cells, metrics, protocols):
        for file in sorted(Path(room.__path__[0]).glob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()
