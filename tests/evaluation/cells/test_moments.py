"""Moments of cells against numpy."""

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells.moments import merged, moments_of, without


def test_moments_are_those_of_numpy_and_can_be_merged_and_parted():
    cells = np.random.default_rng(0).poisson(0.7, (30, 5)).astype(np.float32)
    cells[:, 4] = 0.1  # constant: no variance but rounding
    parts = [moments_of(sp.csr_matrix(part)) for part in (cells[:4], cells[4:5], cells[5:])]
    for found, expected in ((merged(parts), cells), (without(merged(parts), parts[2]), cells[:5])):
        np.testing.assert_allclose(found.mean, expected.astype(float).mean(axis=0))
        np.testing.assert_allclose(found.variance, expected.astype(float).var(axis=0, ddof=1), atol=1e-12)
        assert found.n == len(expected)
        np.testing.assert_allclose(found.noise, found.variance / found.n)
    assert parts[1].variance.tolist() == [0] * 5
