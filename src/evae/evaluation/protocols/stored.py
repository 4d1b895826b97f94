"""What is known of the real cells alone, kept for the next prediction: means, and records of their split half.

A key says which cells these are of, and by which code: when a metric changes, its records are computed anew.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from evae.common.files import atomic_write
from evae.evaluation import cells, metrics, protocols
from evae.evaluation.cells import Comparison
from evae.evaluation.cells.kept import is_kept, keep, load_kept, make_room
from evae.evaluation.cells.known import code_digest
from evae.evaluation.protocols.record import Record


def real_key(comparison: Comparison) -> str:
    """A key over the real cells, their controls and the code of the evaluation."""
    parts = [_code(), comparison.real.digest(), comparison.controls.digest()]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def is_stored(folder: Path | None, key: str) -> bool:
    """Whether there are records under `key`."""
    return folder is not None and is_kept(folder / f"{key}.json")


def stored_records(folder: Path | None, key: str, compute: Callable[[], list[Record]]) -> list[Record]:
    """The records stored under `key`, else computed and stored; None as folder stores nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key}.json"
    if is_kept(path):
        return [Record(*row) for row in zip(*json.loads(path.read_text()).values(), strict=True)]
    records = compute()
    columns = zip(*records, strict=True) if records else [[]] * len(Record._fields)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dict(zip(Record._fields, columns, strict=True))))
    make_room(folder)
    return records


def stored_values(folder: Path | None, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array stored under `key`, else computed and stored; None as folder stores nothing."""
    if folder is None:
        return compute()
    path = folder / f"{key}.safetensors"
    known = load_kept(path)
    if known is not None:
        return known[0]["values"]
    values = compute()
    keep(path, {"values": values})
    return values


@cache
def _code() -> str:
    """A digest of the code that records come from."""
    return code_digest(*(Path(room.__path__[0]) for room in (cells, metrics, protocols)))
