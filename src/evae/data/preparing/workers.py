"""Work on files of cells in this process or in several; the results come in the order of the tasks."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from evae.common.digests import file_stamp
from evae.data.reading.file_counts import FileCounts

Task = tuple[Any, ...]
Run = Callable[[Callable[..., Any], Iterable[Task]], Iterator[Any]]
_how: list[Any] = []  # of a worker process: what it opens
_opened: list[FileCounts] = []


def open_sources(paths: list[Path], layer: str | None, scratch: Path) -> list[FileCounts]:
    """The files as sources of counts, each with its own scratch folder, whose name says which file it is of."""
    return [FileCounts(p, layer, scratch / f"{i:05d}-{_mark(p, layer)}") for i, p in enumerate(paths)]


def _mark(path: Path, layer: str | None) -> str:
    return hashlib.sha256(repr((file_stamp(path), layer)).encode()).hexdigest()[:16] if path.exists() else "none"


@contextmanager
def workers(n: int, sources: list[FileCounts], layer: str | None, scratch: Path) -> Iterator[Run]:
    """Yield `run(function, tasks)`, which gives function(sources, *task) for every task, in order.

    Args:
        n: processes; 1 works in this one.
        sources: the files, opened in this process.
        layer, scratch: how other processes open them.
    """
    if n == 1:
        yield lambda function, tasks: (function(sources, *task) for task in tasks)
        return
    paths = [s.path for s in sources]
    context = get_context("forkserver")  # a copy of this process, with its open HDF5 files and threads, would not work
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(n, context, initializer=_remember, initargs=(paths, layer, scratch))
    try:
        yield lambda function, tasks: _in_order(pool, 2 * n, function, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, n_waiting: int, function: Callable[..., Any], tasks: Iterable[Task]
) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for task in tasks:
        waiting.append(pool.submit(_call, function, task))
        if len(waiting) > n_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _remember(*how: Any) -> None:
    """The files are opened with the first task: a process that starts late may find them gone, and gets none."""
    _how[:] = how


def _call(function: Callable[..., Any], task: Task) -> Any:
    if not _opened:
        _opened.extend(open_sources(*_how))
    return function(_opened, *task)
