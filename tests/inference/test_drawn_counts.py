"""Drawn counts in temporary files are those in memory."""

import mmap

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from evae.cli.files import write_h5ad
from evae.inference import drawn_counts
from evae.inference.drawn_counts import DrawnCounts


@pytest.fixture
def blocks():
    """Blocks of several sizes, one without any count and one without any cell."""
    rng = np.random.default_rng(0)
    sizes = (7, 3, 0, 12, 1)
    found = [sp.csr_matrix(rng.poisson(0.6, (n, 9)).astype(np.float32)) for n in sizes]
    return [*found, sp.csr_matrix((4, 9), dtype=np.float32)]


def in_a_file(values: np.ndarray) -> bool:
    """Whether an array lies in a mapped file."""
    while isinstance(values, np.ndarray):
        values = values.base
    return isinstance(values, mmap.mmap)


@pytest.mark.parametrize("in_memory", [0, 20, 10_000])
def test_files_hold_what_memory_would(blocks, in_memory, tmp_path):
    drawn = DrawnCounts(in_memory)
    for block in blocks:
        drawn.append(block)
    found, expected = drawn.matrix(), sp.vstack(blocks, format="csr")
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found != expected).nnz == 0
    assert in_a_file(found.data) == in_a_file(found.indices) == (in_memory < 10_000)
    write_h5ad(ad.AnnData(found), tmp_path / "cells.h5ad")
    assert (expected != ad.read_h5ad(tmp_path / "cells.h5ad").X).nnz == 0


def test_many_predicted_cells_lie_in_files(pipe, controls, monkeypatch):
    asked = {"perturbation": pipe.processor.perturbations[1], "n_cells": 20, "batch_size": 6, "progress": False}
    here = pipe.predict(controls, **asked)
    monkeypatch.setattr(drawn_counts.DrawnCounts.__init__, "__defaults__", (50,))
    there = pipe.predict(controls, **asked)
    assert in_a_file(there.X.data)
    assert not in_a_file(here.X.data)
    assert (here.X != there.X).nnz == 0
    assert here.obs.equals(there.obs)
