"""Work that is spread over processes, here or on many machines, by Dask (`distributed`, extra `cluster`).

    with on_dask("tcp://HOST:8786"):
        prepare_dataset("cells.h5ad", "data/screen")

Inside the block preparing, embedding, predicting and the differential expression of evaluations send their blocks of
cells to the workers; the results come in their order, so that the output is that of one process (of a model's
sums, with as many threads as a worker has). A worker that dies
costs the blocks that it had, which others do again. The workers see the same files under the same paths, and have the
same version of evae.
"""

import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from evae.common.extras import require
from evae.common.threads import in_threads
from evae.models.contract_evae import EvaeError

LOCAL = "local:"
DEATHS = 5  # of workers under one block before it is given up
WAIT = 30  # seconds for a scheduler to answer


class Cluster:
    """The workers of one block `on_dask`.

    Args:
        client: of `distributed`.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def in_order(self, work: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `work(*task)` of every task, in order; a few more tasks than workers are under way.

        Raises:
            EvaeError: what a task raised, or workers that die again and again.
        """
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self.client.submit(work, *task, pure=False))
                if len(waiting) > 2 * max(1, len(self.client.nthreads())):
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            self.client.cancel(list(waiting))

    def shared(self, value: Any) -> Any:
        """A value that goes to every worker once; give it to tasks in the place of itself."""
        return self.client.scatter(value, broadcast=True, hash=False)

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise EvaeError(
                f"{DEATHS} workers died under one block of cells; look into their logs, most likely their memory is "
                "too small."
            ) from error


_current: ContextVar[Cluster | None] = ContextVar("cluster", default=None)


def current_cluster() -> Cluster | None:
    """The workers of the block `on_dask` around the caller; None outside of one."""
    return _current.get()


@contextmanager
def on_dask(where: str | None) -> Iterator[None]:
    """Do the work inside the block on the workers of Dask.

    Args:
        where: "local:4" starts four processes here, for the time of the block; an address such as
            "tcp://HOST:8786" takes the workers of that scheduler. None does all work in this process.

    Raises:
        EvaeError: `distributed` is not installed, no such scheduler, or one without workers.
    """
    if where is None:
        yield
        return
    require("distributed", "--dask", extra="cluster")
    import dask
    from distributed import Client

    settings = {"distributed.scheduler.allowed-failures": DEATHS, "distributed.worker.daemon": True}
    with ExitStack() as stack, dask.config.set(settings):
        if where.startswith(LOCAL):
            client = stack.enter_context(Client(stack.enter_context(_local(where))))
        else:
            client = None
            with suppress(OSError, ValueError):
                client = stack.enter_context(Client(where, timeout=WAIT))
            if client is None:
                # What is left of it closes itself when it is collected, and waits for ever if another starts meanwhile.
                gc.collect()
                raise EvaeError(
                    f"no Dask scheduler answers at {where}; start one with `dask scheduler`, or give local:4."
                )
            if not client.nthreads():
                raise EvaeError(f"the scheduler at {where} has no workers; start some with `dask worker {where}`.")
        token = _current.set(Cluster(client))
        try:
            yield
        finally:
            _current.reset(token)


def _local(where: str) -> Any:
    """Worker processes on this machine, one thread each."""
    from distributed import LocalCluster

    number = where.removeprefix(LOCAL)
    if not number.isdigit() or not int(number):
        raise EvaeError(f"{where} names no number of processes; give for example local:4, or tcp://HOST:8786.")
    how: dict[str, Any] = {"n_workers": int(number), "threads_per_worker": 1, "processes": True, "memory_limit": 0}
    how |= {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.ERROR}
    before = dict(os.environ)
    try:
        return LocalCluster(**how)
    except AssertionError:  # its event loop has 10 s to start, which a busy machine may not grant; once more
        return LocalCluster(**how)
    finally:  # it leaves what its workers are to have, one thread for all that is computed, in this process
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def spread(work: Callable[..., Any], shared: Any, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield `work(shared, *task)` of every task, in order: on the workers of Dask, else in a thread a core."""
    cluster = current_cluster()
    if cluster is None:
        yield from in_threads(lambda task: work(shared, *task), tasks)
    else:
        known = cluster.shared(shared)
        yield from cluster.in_order(work, ((known, *task) for task in tasks))
