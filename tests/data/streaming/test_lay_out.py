"""The compiled pass from stored cells to the rows of a batch, against plain numpy."""

from itertools import pairwise

import numba
import numpy as np
import pyarrow as pa
import pytest

from evae.data.rows import COLUMNS, HIGH, RowFormat, binary_rows, stored_cells
from evae.data.streaming import lay_out
from evae.data.streaming.batches import window_batches
from evae.data.streaming.order import Window

N_GENES = 70_000  # steps of more than a byte, of more than two
SIZES = [0, 1, 3, 4, 5, 40, 700, 0, 9, 256, 0]


@pytest.fixture(scope="module")
def cells():
    """Genes and counts of each cell, counts of one, two and three bytes among them."""
    rng = np.random.default_rng(0)
    genes = [np.sort(rng.choice(N_GENES, n, replace=False)) for n in SIZES]
    genes[1][:] = N_GENES - 1  # the first step is the longest
    return genes, [rng.choice([1, 2, 255, 256, 70_000], n, p=[0.5, 0.3, 0.1, 0.05, 0.05]) for n in SIZES]


def as_table(genes, counts, steps):
    indptr = np.cumsum([0, *SIZES])
    flat = [np.concatenate(values) for values in (genes, counts)]
    if steps:
        columns = dict(zip([*COLUMNS[:2], HIGH], stored_cells(*flat, indptr), strict=True))
    else:
        columns = {name: binary_rows(v.astype("<u4"), indptr) for name, v in zip(COLUMNS[:2], flat, strict=True)}
    labels = np.arange(len(SIZES))
    return pa.table({**columns, "perturbation": labels, "cell_type": labels})


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("steps", [True, False])
def test_rows_are_the_cells(cells, steps, chunks):
    wide = np.dtype("<u4")
    rows = RowFormat(steps, wide, wide, 70_000, "", N_GENES, len(SIZES), len(SIZES))
    table = as_table(*cells, steps)
    edges = np.linspace(0, len(SIZES), chunks + 1).astype(int)
    table = pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(edges)])
    rows.check(table, "the cells")
    order = np.random.default_rng(1).permutation(len(SIZES))
    batches = list(window_batches(table, Window(0, [], order), rows, 0, 4))
    assert [len(batch["counts"]) for batch in batches] == [4, 4, 3]
    for batch, chosen in zip(batches, np.split(order, [4, 8]), strict=True):
        assert batch["gene_ids"].shape == batch["counts"].shape
        assert batch["gene_ids"].shape[1] % 8 == 0
        for i, cell in enumerate(chosen):
            for name, values in zip(("gene_ids", "counts"), cells, strict=True):
                padded = np.zeros(batch[name].shape[1])
                padded[: SIZES[cell]] = values[cell]
                np.testing.assert_array_equal(batch[name][i], padded)
            assert batch["library_size"][i] == cells[1][cell].sum()
            assert batch["perturbation_ids"][i] == batch["cell_type_ids"][i] == cell


def test_is_compiled_where_no_folder_can_be_written_to(monkeypatch):
    compiler = numba.njit

    def without_folder(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(**options)

    monkeypatch.setattr(numba, "njit", without_folder)
    out = np.zeros(5, np.int32)
    lay_out.compiled(lay_out.running_sums.py_func)(np.array([3, 1, 1, 5, 2], np.uint8), out)
    assert out.tolist() == [3, 4, 5, 10, 12]
