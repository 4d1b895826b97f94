"""E-distance and its permutation test."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from evae.evaluation.metrics.energy import e_distance, e_test


def cells(seed, n=25, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (n, 3))


def test_the_e_distance_is_that_of_its_definition():
    x, y = cells(0), cells(1, 15, 0.5)
    expected = 2 * pairwise_distances(x, y).mean() - pairwise_distances(x).mean() - pairwise_distances(y).mean()
    assert e_distance(x, y) == pytest.approx(expected)
    assert e_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert np.isnan(e_distance(x, y[:0]))


def test_every_permuted_labelling_has_the_e_distance_of_its_cells():
    """p-values from the sums equal those of a plain loop over the same labellings."""
    x, y = cells(0, 6), cells(1, 9, 0.6)
    both, rng = np.concatenate([x, y]), np.random.default_rng(3)
    larger = 1
    for _ in range(99):
        first = rng.permutation(15)[:6]
        larger += e_distance(both[first], np.delete(both, first, axis=0)) >= e_distance(x, y)
    assert e_test(x, y, 99, seed=3) == pytest.approx(larger / 100)


def test_the_test_finds_what_differs_and_holds_its_level():
    assert e_test(cells(0), cells(1, shift=1.0)) == pytest.approx(1 / 201)
    p = [e_test(cells(seed, 12), cells(seed + 1000, 12), 99, seed) for seed in range(200)]
    assert np.mean(np.array(p) <= 0.05) < 0.1
    assert np.isnan(e_test(cells(0)[:1], cells(1)))
