"""Files of this folder as modules, for tests in this process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq


def beside(name):
    """A file of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy():
    return beside("toy_run")


@pytest.fixture(scope="session")
def toy_screen():
    return beside("toy_screen")


@pytest.fixture
def run_with_ranks(tmp_path):
    """Run a script that forks ranks, and may import the files of this folder, in a process of its own.

    It gets `tmp_path` as its argument, and must end well.
    """

    def run(script):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For a whole module, so that its runs, fixtures too, can be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A dataset folder of 300 simulated cells over 40 genes."""
    folder = tmp_path_factory.mktemp("simulated")
    cells = simulate_perturb_seq(n_cells=300, n_genes=40, n_cell_types=2, n_perturbations=3, n_without_effect=1)
    cells.write_h5ad(folder / "cells.h5ad")
    return prepare_dataset(
        folder / "cells.h5ad",
        folder / "dataset",
        perturbation_key="perturbation",
        cell_type_key="cell_type",
        control="control",
        split="random:0.1",
        progress=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the toy screen lies, and what is trained on it."""
    return tmp_path_factory.mktemp("screen")


@pytest.fixture(scope="module")
def data(toy_screen, folder):
    return toy_screen.screen(folder)


@pytest.fixture(scope="module")
def tokenizer(toy_screen, data, folder):
    return toy_screen.tokenize(data, folder / "tokenizer")
