"""Diversity and diversity checks tell collapsed and memorising models from good ones."""

import numpy as np
import pytest

from evae.evaluation.cells.projection import fit_projection
from evae.evaluation.metrics.diversity import classifier_auc, correlation_error, diversity_metrics, variance_ratio


def make_cells(n, seed):
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(100).normal(size=(4, 30))
    return (rng.normal(size=(n, 4)) @ loadings + rng.normal(size=(n, 30)) * 0.5).clip(min=0)


@pytest.fixture(scope="module")
def world():
    train, real, other = make_cells(400, 0), make_cells(300, 1), make_cells(300, 2)
    projection = fit_projection(train, 10)
    return train, real, other, projection


def check(world, generated):
    train, real, _, projection = world
    return diversity_metrics(real, generated, projection, projection(train))


def test_a_perfect_generator_passes(world):
    found = check(world, world[2])
    assert found["variance_ratio"] == pytest.approx(1, abs=0.15)
    assert found["zero_fraction_error"] < 0.05
    assert found["correlation_error"] < 0.1
    assert found["classifier_auc"] == pytest.approx(0.5, abs=0.1)
    assert found["nearest_training_ratio"] == pytest.approx(1, abs=0.1)
    assert found["copied_fraction"] == 0


def test_a_memorising_generator_is_seen(world):
    found = check(world, world[0][:300])
    assert found["copied_fraction"] == 1
    assert found["nearest_training_ratio"] == pytest.approx(0, abs=1e-6)


def test_a_collapsed_generator_is_seen(world):
    found = check(world, np.tile(world[1].mean(axis=0), (300, 1)))
    assert found["variance_ratio"] == 0
    assert found["classifier_auc"] > 0.95
    assert found["zero_fraction_error"] > 0.3


def test_a_generator_without_correlations_is_seen(world):
    real = world[1]
    shuffled = np.random.default_rng(3).permuted(real, axis=0)
    assert variance_ratio(real, shuffled) == pytest.approx(1)
    assert correlation_error(real, shuffled) > 5 * correlation_error(real, real[:299])


def test_variance_ratio_is_the_median_over_genes_that_vary():
    real = np.array([[0.0, 0, 0, 7], [1, 1, 1, 7]])
    generated = np.array([[0.0, 0, 0, 7], [1, 2, 10, 8]])  # variances 1, 4 and 100 times those of the real genes
    assert variance_ratio(real, generated) == pytest.approx(4)


def test_zero_fraction_error_is_taken_gene_by_gene():
    real, generated = np.array([[0.0, 1], [0, 1], [2, 1], [2, 1]]), np.array([[3.0, 0], [3, 0], [3, 1], [3, 1]])
    projection = fit_projection(np.eye(4)[:, :2], 1)
    found = diversity_metrics(real, generated, projection)  # one gene has too few zeros, the other as many too much
    assert found["zero_fraction_error"] == pytest.approx(0.5)


def test_correlation_error_by_hand():
    rng = np.random.default_rng(4)
    real, generated = rng.normal(size=(50, 5)), rng.normal(size=(40, 5))
    upper = np.triu_indices(5, k=1)
    expected = np.abs(np.corrcoef(real.T)[upper] - np.corrcoef(generated.T)[upper]).mean()
    assert correlation_error(real, generated) == pytest.approx(expected, abs=1e-12)


def test_cells_that_are_all_alike_have_no_correlations():
    real = np.random.default_rng(5).normal(size=(50, 5))  # hardly correlated
    assert correlation_error(real, np.ones((40, 5))) == 1
    generated = real.copy()
    generated[:, 0] = 0.5
    assert correlation_error(real, generated) == pytest.approx(4 / 10)  # the four pairs of gene 0, of ten


def test_too_few_cells_give_nan():
    assert np.isnan(variance_ratio(np.ones((1, 3)), np.ones((5, 3))))
    assert np.isnan(correlation_error(np.ones((2, 3)), np.ones((5, 3))))
    assert np.isnan(classifier_auc(np.ones((9, 3)), np.ones((50, 3))))


def test_without_training_cells_memorisation_is_undefined(world):
    _, real, other, projection = world
    found = diversity_metrics(real, other, projection)
    assert np.isnan(found["copied_fraction"])
    assert np.isfinite(found["classifier_auc"])
