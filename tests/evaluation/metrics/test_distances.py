"""W2, MMD2 and FD against independent references."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from evae.evaluation.metrics.distances import (
    SIGMAS,
    distances_between,
    distribution_metrics,
    frechet_distance,
    median_sigma,
    mmd2,
    wasserstein_distance,
)
from evae.models.contract_evae import EvaeError


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    return rng.normal(size=(80, 6)) @ mixing, rng.normal(size=(80, 6)) @ mixing * 1.2 + 0.4


def test_w2_is_the_best_assignment_at_equal_size(clouds):
    x, y = clouds
    cost = ((x[:, None] - y[None]) ** 2).sum(axis=-1)
    rows, columns = linear_sum_assignment(cost)
    assert wasserstein_distance(x, y) == pytest.approx(np.sqrt(cost[rows, columns].mean()), abs=1e-9)


def test_w2_of_a_shift_is_its_length():
    x = np.random.default_rng(1).normal(size=(50, 3))
    assert wasserstein_distance(x, x + np.array([3.0, 0, 4.0])) == pytest.approx(5.0, abs=1e-9)


def frechet_by_sqrtm(x, y):
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return shift @ shift + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))


def test_fd_is_the_sqrtm_formula(clouds):
    x, y = clouds
    assert frechet_distance(x, y) == pytest.approx(frechet_by_sqrtm(x, y), rel=1e-9)


def test_fd_of_rank_deficient_clouds(clouds):
    x, y = clouds
    flat = np.random.default_rng(2).normal(size=(2, 6))
    x, y = x[:, :2] @ flat, y  # x spans two dimensions of six
    # the reference needs a jitter there, which moves it by about its square root
    jitter = 1e-9 * np.eye(6)
    c1, c2 = np.cov(x, rowvar=False) + jitter, np.cov(y, rowvar=False) + jitter
    shift = x.mean(axis=0) - y.mean(axis=0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-3)
    assert frechet_distance(x[:3], y[:4]) >= 0  # fewer cells than dimensions


def naive_mmd2(x, y, sigmas, unbiased):
    def kernel(a, b):
        d2 = float(((a - b) ** 2).sum())
        return sum(np.exp(-d2 / (2 * s * s)) for s in sigmas)

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and unbiased and i == j)]
        return sum(kernel(a[i], b[j]) for i, j in pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["mix", "median"])
def test_mmd2_is_the_naive_loop(clouds, kernel, unbiased):
    x, y = clouds[0][:17], clouds[1][:23]
    sigmas = SIGMAS if kernel == "mix" else [median_sigma(x, y)]
    assert mmd2(x, y, kernel, unbiased) == pytest.approx(naive_mmd2(x, y, sigmas, unbiased), abs=1e-12)


def test_median_sigma_is_the_median_distance():
    assert median_sigma(np.array([[0.0], [1.0]]), np.array([[10.0]])) == 9.0


def test_all_at_once_equals_one_by_one(clouds):
    x, y = clouds
    values = distances_between(x, y)
    assert values["w2"] == wasserstein_distance(x, y)
    assert values["fd"] == frechet_distance(x, y)
    assert values["mmd2_mix_biased"] == pytest.approx(mmd2(x, y), abs=1e-14)
    assert values["mmd2_mix_unbiased"] == pytest.approx(mmd2(x, y, unbiased=True), abs=1e-14)
    assert values["mmd2_median_unbiased"] == pytest.approx(mmd2(x, y, "median", unbiased=True), abs=1e-14)


def test_mmd2_in_blocks_equals_one_block(clouds, monkeypatch):
    whole = mmd2(*clouds)
    monkeypatch.setattr("evae.evaluation.metrics.distances._BLOCK", 7)
    assert mmd2(*clouds) == pytest.approx(whole, abs=1e-12)


def test_perfect_generator_with_independent_components_has_unbiased_mmd2_near_zero():
    rng = np.random.default_rng(3)
    spread = np.exp(-np.arange(50) / 10)
    values, biased = [], []
    for _ in range(20):
        reference, real, generated = (rng.normal(size=(200, 50)) * spread for _ in range(3))
        found = distribution_metrics(real, generated, reference=reference, n_components=10)
        values.append(found["mmd2_mix_unbiased"])
        biased.append(found["mmd2_mix_biased"])
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(biased) > 10 * error  # the published estimator does not pass


def test_identical_clouds_are_at_distance_zero(clouds):
    values = distances_between(clouds[0], clouds[0].copy())
    assert values["w2"] == pytest.approx(0, abs=1e-6)
    assert values["fd"] == pytest.approx(0, abs=1e-8)
    assert values["mmd2_mix_biased"] == pytest.approx(0, abs=1e-12)


def test_one_cell_and_none():
    one, many = np.zeros((1, 3)), np.ones((5, 3))
    values = distances_between(one, many)
    assert values["w2"] == pytest.approx(np.sqrt(3))
    assert np.isnan(values["fd"])
    assert np.isnan(values["mmd2_mix_unbiased"])
    assert np.isfinite(values["mmd2_mix_biased"])
    assert all(np.isnan(v) for v in distances_between(many[:0], many).values())


def test_different_gene_numbers_raise():
    with pytest.raises(EvaeError, match="same genes in the same order"):
        distribution_metrics(np.zeros((4, 3)), np.zeros((4, 2)))


def test_max_cells_draws_by_seed():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    small = [distribution_metrics(x, y, max_cells=20, seed=s)["fd"] for s in (0, 0, 1)]
    assert small[0] == small[1] != small[2]
