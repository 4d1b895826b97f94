"""Work in parallel over the cores: numpy sorts, searches and does arithmetic without Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def usable_cores() -> int:
    """How many cores this process may use: those it is bound to, and no more than OMP_NUM_THREADS says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def leave_cores_while_waiting() -> None:
    """Have the threads of torch sleep while they wait for each other; OpenMP reads this when torch is imported.

    They would turn in a loop otherwise. On cores that another process uses, too, most time goes there.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def in_threads(work: Callable[[Item], Found], items: Iterable[Item], workers: int | None = None) -> Iterator[Found]:
    """Yield `work(item)` of every item, in their order, a thread a core.

    The items are made in the calling thread, at most one more of them than there are threads ahead of what was
    yielded, so that memory does not grow with their number.

    Args:
        work: what to do; it must not change what other threads read.
        items: made one by one.
        workers: threads; one a core if None.
    """
    workers = usable_cores() if workers is None else workers
    if workers < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="evae") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                del item  # it belongs to its thread now
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
