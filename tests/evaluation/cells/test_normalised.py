"""Rows in a temporary file are those of the matrix that was put there."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation.cells.normalised import Cells, StoredRows, log1p_cp10k


@pytest.fixture(scope="module")
def both():
    matrix = sp.random(300, 9, 0.3, format="csr", dtype=np.float32, random_state=0)
    stored = StoredRows(9)
    stored.append(matrix[:120])
    stored.append(matrix[120:])
    return matrix, stored


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(40, 90),  # one run
        np.array([57, 40, 41, 55, 57]),  # near one another, in any order and twice
        np.array([3, 299, 150]),  # far apart
        np.array([-1, 0]),
        np.array([], dtype=int),
        np.arange(300) % 7 == 0,
        slice(None),
    ],
)
def test_rows_are_the_matrix_own(both, rows):
    matrix, stored = both
    found = stored[rows]
    assert found.shape == matrix[rows].shape
    np.testing.assert_array_equal(found.toarray(), matrix[rows].toarray())


def test_threads_read_at_the_same_time(both):
    matrix, stored = both
    parts = [np.arange(i, i + 50) for i in range(0, 250, 5)] * 20
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(parts, pool.map(stored.__getitem__, parts), strict=True):
            np.testing.assert_array_equal(found.toarray(), matrix[rows].toarray())


@pytest.mark.parametrize("cuts", [[], [1], [120, 121, 299]])
@pytest.mark.parametrize("n_genes", [9, 70_000])
def test_digests_do_not_depend_on_where_rows_lie_or_in_what_parts_they_came(both, cuts, n_genes):
    matrix = sp.csr_matrix((both[0].data, both[0].indices, both[0].indptr), shape=(300, n_genes))
    stored = StoredRows(n_genes)
    for start, stop in pairwise([0, *cuts, 300]):
        stored.append(matrix[start:stop])
    labels, genes = np.full(300, "x", dtype=object), np.arange(n_genes).astype(str).astype(object)

    def cells(of):
        return Cells(of, labels, labels, genes)

    assert cells(stored).digest() == cells(matrix).digest()
    changed = matrix.copy()
    changed.data[-1] *= 2
    moved = matrix.copy()
    moved.indptr[1] -= 1  # a value goes to the next row
    assert len({cells(m).digest() for m in (matrix, changed, moved)}) == 3


def test_log1p_cp10k_stays_as_it_is_to_the_last_bit():
    counts = sp.random(40, 30, 0.3, format="csr", random_state=0, dtype=np.float64)
    counts.data = np.ceil(counts.data * 20)
    counts = sp.vstack([counts, sp.csr_matrix((1, 30))], format="csr")  # and a cell without counts
    found = log1p_cp10k(counts, "raw counts")
    again = log1p_cp10k(found, "log1p")
    np.testing.assert_array_equal(again.toarray(), found.toarray())
    assert not np.shares_memory(again.data, found.data)
    other = log1p_cp10k(np.log1p(np.expm1(found.toarray()) * 3), "log1p")  # of another total
    np.testing.assert_allclose(other.toarray(), found.toarray(), rtol=1e-5)
