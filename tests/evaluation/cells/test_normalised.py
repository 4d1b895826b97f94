"""Rows in a temporary file are those of the matrix that was put there."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation.cells.normalised import StoredRows


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
