"""The memory of `evae prepare` is that of a block, whatever the size of the file."""

import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

from evae.data.preparing.prepare import prepare_dataset
from evae.data.reading import stored_matrix

GENES = 10_000


def _write_dense(path, n_cells):
    """A dense file of n_cells x 10,000 float32, of whose chunks few were ever written."""
    obs = pd.DataFrame({"perturbation": "A", "cell_type": "x"}, index=[f"cell{i}" for i in range(n_cells)])
    obs.loc[::2, "perturbation"] = "control"
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))
        stored = file.create_dataset("X", (n_cells, GENES), "f4", chunks=(50, 100), compression="gzip")
        stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        stored[:, 300:320] = np.arange(n_cells)[:, None] % 3 + 1


@pytest.fixture
def peak(tmp_path, keys, monkeypatch):
    """A function: the most that numpy and Python held while a file of so many cells was prepared, in bytes."""
    monkeypatch.setattr(stored_matrix, "MAX_BLOCK_ENTRIES", 1 << 18)

    def measured(n_cells):
        path = tmp_path / f"{n_cells}.h5ad"
        _write_dense(path, n_cells)
        tracemalloc.start()
        try:
            prepare_dataset(path, tmp_path / f"out-{n_cells}", **keys)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured


def test_the_peak_does_not_grow_with_the_file(peak):
    peak(100)  # what is imported and kept for good
    small, large = peak(300), peak(2_100)
    in_memory = (2_100 - 300) * GENES * 4
    assert large - small < 500 * (2_100 - 300) < in_memory / 50
