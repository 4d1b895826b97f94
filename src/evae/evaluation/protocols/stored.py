"""What is known of the real cells alone, kept for the next prediction: records of their split half.

A key says which cells the records are of, and by which code: when a metric changes, its records are computed anew.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from pathlib import Path

from evae.common.files import atomic_write
from evae.evaluation import cells, metrics, protocols
from evae.evaluation.cells import Comparison
from evae.evaluation.protocols.record import Record

_COLUMNS = tuple(Record.__annotations__)


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
        columns = json.loads(path.read_text())
        return [Record(*row) for row in zip(*(columns[name] for name in _COLUMNS), strict=True)]
    records = compute()
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({name: list(map(attrgetter(name), records)) for name in _COLUMNS}))
    return records


@cache
def _code() -> str:
    """A digest of the code that records come from."""
    sha = hashlib.sha256()
    for room in (cells, metrics, protocols):
        for file in sorted(Path(room.__path__[0]).glob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()
