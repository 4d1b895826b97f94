"""Counts over a panel are the columns of the dense matrix."""

import numpy as np
import scipy.sparse as sp

from evae.data.reading.panel import over_panel


def test_against_columns_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.7, size=(40, 30))
    dense[[3, 39]] = 0
    columns = np.full(30, -1)
    chosen = rng.permutation(30)[:12]
    columns[chosen] = rng.permutation(15)[:12]  # three genes of the panel are not measured
    wanted = np.zeros((40, 15), dtype=dense.dtype)
    wanted[:, columns[chosen]] = dense[:, chosen]
    found = over_panel(sp.csr_matrix(dense), columns, 15)
    assert found.has_sorted_indices
    counts = sp.csr_matrix(dense)
    backwards = over_panel(counts, np.arange(30)[::-1], 30)
    np.testing.assert_array_equal(backwards.toarray(), dense[:, ::-1])
    np.testing.assert_array_equal(counts.toarray(), dense)  # whose values the other must not order anew
    assert over_panel(counts, np.arange(30), 30) is counts
    np.testing.assert_array_equal(found.toarray(), wanted)
