"""Work on files of cells, in threads of this process or on the workers of Dask; the results come in the order of the
tasks."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from evae.common.cluster import current_cluster
from evae.common.digests import file_stamp
from evae.common.threads import in_threads, usable_cores
from evae.data.reading.file_counts import FileCounts

Task = tuple[Any, ...]
Run = Callable[[Callable[..., Any], Iterable[Task]], Iterator[Any]]
How = tuple[list[Path], str | None, Path]  # of `open_sources`
THREADS = 4  # of one process, each of which holds a block of cells
_opened = threading.local()  # of a worker's thread: how its files were opened, and the files


def open_sources(paths: list[Path], layer: str | None, scratch: Path) -> list[FileCounts]:
    """The files as sources of counts, each with its own scratch folder, whose name says which file it is of."""
    return [FileCounts(p, layer, scratch / f"{i:05d}-{_mark(p, layer)}") for i, p in enumerate(paths)]


def _mark(path: Path, layer: str | None) -> str:
    return hashlib.sha256(repr((file_stamp(path), layer)).encode()).hexdigest()[:16] if path.exists() else "none"


def runner(sources: list[FileCounts], layer: str | None, scratch: Path) -> Run:
    """`run(function, tasks)`, which gives function(sources, *task) for every task, in order.

    Args:
        sources: the files, opened in this process.
        layer, scratch: how the workers of Dask open them; see `evae.common.cluster`.
    """
    cluster = current_cluster()
    if cluster is None:
        threads = min(THREADS, usable_cores())
        return lambda function, tasks: in_threads(lambda task: function(sources, *task), tasks, threads)
    how = ([source.path.resolve() for source in sources], layer, scratch.resolve())
    return lambda function, tasks: cluster.in_order(_call, ((how, function, task) for task in tasks))


def _call(how: How, function: Callable[..., Any], task: Task) -> Any:
    """On a worker: the files stay open for the next tasks on the same."""
    if getattr(_opened, "how", None) != how:
        for source in getattr(_opened, "sources", []):
            source.close()
        _opened.how, _opened.sources = how, open_sources(*how)
    return function(_opened.sources, *task)
