"""The workers of Dask: what they give is byte for byte what one process gives, also where one of them dies."""

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import evae
from evae.common.cluster import current_cluster, on_dask, spread
from evae.data.preparing.prepare import prepare_dataset
from evae.evaluation import evaluate
from evae.inference.checkpoint import load_checkpoint
from evae.inference.embedding_files import embed_file
from evae.models.contract_evae import EvaeError

distributed = pytest.importorskip("distributed", reason="distributed is in the extra cluster")


@contextmanager
def running(*command, until):
    """A process of Dask; yields it when its log says `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)], stderr=subprocess.PIPE, text=True, bufsize=1, env=os.environ
    )
    try:
        for line in process.stderr:
            if until in line:
                yield process, line
                break
        else:
            raise AssertionError("it ended before it was ready")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a scheduler on loopback with two workers, as `dask scheduler` and `dask worker` start them."""
    folder = tmp_path_factory.mktemp("dask")
    settings = ("--no-dashboard", "--no-show", "--host", "127.0.0.1", "--port", 0)
    with running("distributed.cli.dask_scheduler", *settings, until="Scheduler at:") as (_, line):
        address = line.split()[-1]
        own = (address, "--nthreads", 1, "--no-dashboard", "--local-directory", folder)
        with (
            running("distributed.cli.dask_worker", *own, "--name", "a", until="Registered to"),
            running("distributed.cli.dask_worker", *own, "--name", "b", until="Registered to"),
        ):
            yield address


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def own_process(number: int, delay: float = 0.05) -> tuple[int, int]:
    time.sleep(delay)
    return number, os.getpid()


def test_results_come_in_order_from_both_workers(scheduler):
    with on_dask(scheduler):
        found = list(current_cluster().in_order(own_process, ((i,) for i in range(12))))
    assert [number for number, _ in found] == list(range(12))
    assert len({process for _, process in found}) == 2
    assert os.getpid() not in {process for _, process in found}
    assert current_cluster() is None


def test_a_dataset_is_the_same_byte_for_byte(scheduler, screen, tmp_path):
    cells = screen.copy()
    cells.X = sp.csc_matrix(cells.X)  # one process puts it by cell for all
    cells.write_h5ad(tmp_path / "cells.h5ad")
    how = {"control": "control", "genes": "hvg:20", "split": "random:0.1", "chunk_size": 100, "progress": False}
    here = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "here", **how)
    with on_dask(scheduler):
        there = prepare_dataset(tmp_path / "cells.h5ad", tmp_path / "there", **how)
    own = {name for name in contents(here) if name != "README.md"}  # the card has the folder's name
    assert {n: contents(there)[n] for n in own} == {n: contents(here)[n] for n in own}


def test_predicted_and_embedded_cells_are_the_same(scheduler, tiny_checkpoint, controls, tmp_path):
    """With one thread here, as the workers have: sums of another number of threads differ in their last bits."""
    torch.set_num_threads(1)
    pipe = evae.pipeline(tiny_checkpoint, device="cpu")
    names = [name for name in pipe.processor.perturbations if name != pipe.processor.control][:2]
    asked = {"perturbation": names, "n_cells": 15, "batch_size": 8, "progress": False}
    here = pipe.predict(controls, **asked)
    controls.write_h5ad(tmp_path / "cells.h5ad")
    checkpoint = load_checkpoint(tiny_checkpoint)
    embed_file(checkpoint, tmp_path / "cells.h5ad", tmp_path / "here.h5ad", part_cells=20, progress=False)
    with on_dask(scheduler):
        there = pipe.predict(controls, **asked)
        embed_file(checkpoint, tmp_path / "cells.h5ad", tmp_path / "there.h5ad", part_cells=20, progress=False)
    assert (here.X != there.X).nnz == 0
    assert here.obs.equals(there.obs)
    embedded = [ad.read_h5ad(tmp_path / f"{name}.h5ad").obsm["X_evae"] for name in ("here", "there")]
    np.testing.assert_array_equal(*embedded)


def test_means_of_pairs_are_those_of_all_workers(scheduler):
    torch.set_num_threads(1)
    pipe, controls = evae.pipeline("example", device="cpu"), evae.example_controls()
    asked = {"perturbation": ["STAT1", "JAK2"], "n_cells": 30, "batch_size": 8, "progress": False}
    here = pipe.predict(controls, **asked)
    with on_dask(scheduler):
        assert (here.X != pipe.predict(controls, **asked).X).nnz == 0


def test_differential_expression_is_the_same(scheduler, screen):
    cells = screen[screen.obs["cell_type"] == "type_A"].copy()
    how = {"control": "control", "suite": "perturbation", "seeds": 0, "cache": None, "progress": False}
    predicted, real = cells[::2].copy(), cells[1::2].copy()
    here = evaluate(predicted, real, screen, **how).records
    with on_dask(scheduler):
        there = evaluate(predicted, real, screen, **how).records
    assert here.equals(there)


def test_a_worker_that_dies_costs_its_task_alone(scheduler, tmp_path):
    """The one that has the third task kills itself, once."""
    with on_dask(scheduler):
        found = list(current_cluster().in_order(dies_once, ((i, tmp_path / "dead") for i in range(8))))
    assert found == [i**2 for i in range(8)]
    assert (tmp_path / "dead").exists()


def dies_once(number: int, mark: Path) -> int:
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_errors_of_the_workers_reach_the_caller(scheduler):
    with on_dask(scheduler), pytest.raises(EvaeError, match="task 3 cannot"):
        list(current_cluster().in_order(refuse, ((i,) for i in range(6))))


def refuse(number: int) -> None:
    if number == 3:
        raise EvaeError("task 3 cannot be done.")


def test_without_dask_the_work_is_done_in_threads():
    assert list(spread(lambda shared, i: shared + i, 10, ((i,) for i in range(4)))) == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("local:none", "names no number of processes"),
        ("local:0", "names no number of processes"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers"),
        ("nowhere", "no Dask scheduler answers"),
    ],
)
def test_a_place_without_workers_is_refused(where, message, monkeypatch):
    monkeypatch.setattr("evae.common.cluster.WAIT", 1)
    with pytest.raises(EvaeError, match=message), on_dask(where):
        pass
    # distributed 2026.8.0: one that could not connect closes itself when it is collected, which must not be later, when
    # another starts: both would wait for each other
    clients = [found for found in gc.get_objects() if type(found) is distributed.Client]
    assert all(client.status == "closed" for client in clients)


def test_workers_of_our_own_listen_on_this_machine_alone(monkeypatch):
    """distributed 2026.8.0: with dashboard_address=None its HTTP server listens on port 8787 of every interface, and
    it leaves the variables of its workers (one thread for OpenMP) in the environment of this process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with on_dask("local:1"):
        assert dict(os.environ) == before
        (of_worker,) = current_cluster().client.run(os.getenv, "OMP_NUM_THREADS").values()
        assert of_worker == "1"
        scheduler = current_cluster().client.cluster.scheduler
        listening = {end.getsockname()[0] for end in scheduler.http_server._sockets.values()}
        assert scheduler.address.startswith("tcp://127.0.0.1:")
    assert listening == {"127.0.0.1"}


def test_the_command_starts_processes_of_its_own(run, screen_file, tmp_path):
    done = run("prepare", screen_file, "--control", "control", "--out", tmp_path / "out", "--dask", "local:2")
    assert done.code == 0, done.err
    assert current_cluster() is None
    assert (tmp_path / "out" / "dataset.json").is_file()
