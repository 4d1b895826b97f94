"""Variance, correlation and look-alikes: exact, absent, and in between."""

import numpy as np
import pytest

from evae.evaluation.metrics.structure import collapse_metrics, correlation_recovered, variance_recovered

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(400, 6)) @ RNG.normal(size=(6, 6))


def test_exact_cells_recover_all_and_their_mean_nothing():
    mean = np.tile(REAL.mean(axis=0), (400, 1))
    shuffled = RNG.permuted(REAL, axis=0)  # right marginals, no correlation
    variance = REAL.var(axis=0, ddof=1)
    assert variance_recovered(variance, variance) == 1
    assert variance_recovered(variance, 0 * variance) == 0
    assert variance_recovered(variance, 3 * variance) == pytest.approx(-1)
    assert correlation_recovered(REAL, REAL) == pytest.approx(1)
    assert correlation_recovered(REAL, mean) == 0
    assert abs(correlation_recovered(REAL, shuffled)) < 0.6
    expected = np.corrcoef([np.corrcoef(c.T)[np.triu_indices(6, 1)] for c in (REAL, shuffled)])[0, 1]
    assert correlation_recovered(REAL, shuffled) == pytest.approx(expected)
    assert np.isnan(correlation_recovered(REAL, REAL[:2]))


def test_look_alikes_are_counted_among_perturbations_that_differ():
    real = np.zeros((4, 10))
    real[0, 0], real[1, 1] = 3.0, 4.0  # the last two differ by nothing but noise
    real[3] = 0.05
    quiet, noise = np.zeros(4), np.full(4, 0.1)
    assert collapse_metrics(real, quiet, real, quiet * 0 + noise)["look_alike"] == 0
    same = collapse_metrics(np.zeros((4, 10)), quiet, real, noise)
    assert same == {"look_alike": 1.0, "effect_spread": 0.0}
    one = real.copy()
    one[1] = 0  # of five pairs that differ, 1-2 and 1-3 collapse
    assert collapse_metrics(one, quiet, real, noise)["look_alike"] == pytest.approx(2 / 5)
    exact = collapse_metrics(2 * real, quiet, real, quiet)
    assert exact["effect_spread"] == pytest.approx(4)
    assert np.isnan(collapse_metrics(real[2:], quiet[2:], real[2:], noise[2:])["look_alike"])


def test_noise_is_no_difference_between_perturbations():
    """Means of many noisy perturbations without effect: their squared distances are noise alone."""
    real = RNG.normal(0, 1, (12, 400))
    real[:6] += RNG.normal(0, 1, 400)
    noisy = RNG.normal(0, 1, (12, 400))
    known = collapse_metrics(noisy, np.full(12, 400.0), real, np.full(12, 400.0) * 0.5)
    unknown = collapse_metrics(noisy, np.zeros(12), real, np.full(12, 400.0) * 0.5)
    assert abs(known["effect_spread"]) < 0.3 < unknown["effect_spread"]
