"""Pseudobulk and discrimination metrics against scipy and a plain loop."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import pairwise_distances

from evae.evaluation.metrics.pseudobulk import discrimination_scores, pearson, pseudobulk_metrics

GENES = np.array([f"g{i}" for i in range(20)], dtype=object)


@pytest.fixture
def means():
    rng = np.random.default_rng(0)
    return rng.random((3, 20))


def test_metrics_by_hand(means):
    predicted, real, control = means
    found = pseudobulk_metrics(predicted, real, control)
    assert found["pearson_delta"] == pytest.approx(pearsonr(predicted - control, real - control)[0], abs=1e-12)
    assert found["mae"] == pytest.approx(np.abs(predicted - real).mean(), abs=1e-12)
    assert found["mse"] == pytest.approx(((predicted - real) ** 2).mean(), abs=1e-12)
    # with the same controls on both sides the shifts' errors are the means' errors
    assert found["mae_delta"] == pytest.approx(found["mae"], abs=1e-12)
    assert found["mse_delta"] == pytest.approx(found["mse"], abs=1e-12)


def test_a_copy_of_the_control_has_no_pearson_delta(means):
    assert np.isnan(pseudobulk_metrics(means[2], means[1], means[2])["pearson_delta"])


def test_pearson_of_constants_and_single_values():
    assert np.isnan(pearson(np.full(5, 0.1), np.arange(5.0)))
    assert np.isnan(pearson(np.ones(1), np.ones(1)))
    assert pearson(np.arange(5.0), 3 * np.arange(5.0) + 1e6) == pytest.approx(1.0)


def plain_discrimination(predicted, real, names, genes, metric):
    scores = []
    for i, name in enumerate(names):
        keep = genes != name
        distances = pairwise_distances(real[:, keep], predicted[i : i + 1, keep], metric=metric).ravel()
        scores.append(1 - int((distances < distances[i]).sum()) / len(names))
    return scores


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_discrimination_is_the_plain_loop(metric):
    rng = np.random.default_rng(1)
    names = ["g3", "g7", "elsewhere", "g0", "p"]
    real, predicted = rng.normal(size=(5, 20)), rng.normal(size=(5, 20))
    found = discrimination_scores(predicted, real, names, GENES)[f"discrimination_{metric}"]
    np.testing.assert_array_equal(found, plain_discrimination(predicted, real, names, GENES, metric))
    assert len(set(found)) > 1


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_the_targeted_gene_is_left_out(metric):
    """Predictions are right but for the targeted genes, which are so wrong that they would decide."""
    rng = np.random.default_rng(1)
    names = ["g3", "g7", "elsewhere", "g0", "p"]
    real = rng.normal(size=(5, 20))
    predicted = real + 0.1 * rng.normal(size=(5, 20))
    for i, gene in ((0, 3), (1, 7), (3, 0)):
        real[i, gene], predicted[i, gene] = 50.0, -50.0
    found = discrimination_scores(predicted, real, names, GENES)[f"discrimination_{metric}"]
    np.testing.assert_array_equal(found, 1.0)


def test_a_perfect_prediction_discriminates():
    real = np.random.default_rng(2).normal(size=(6, 20))
    for scores in discrimination_scores(real, real, list("abcdef"), GENES).values():
        np.testing.assert_array_equal(scores, 1.0)


def test_near_equal_profiles_are_told_apart():
    """By |a|^2 + |b|^2 - 2ab all of these distances would be rounding."""
    rng = np.random.default_rng(3)
    real = 5 * rng.normal(size=20) + 1e-8 * rng.normal(size=(6, 20))
    predicted = real + 1e-9 * rng.normal(size=(6, 20))
    for metric in ("l1", "l2"):
        found = discrimination_scores(predicted, real, list("abcdef"), GENES)[f"discrimination_{metric}"]
        np.testing.assert_array_equal(found, 1.0)


def test_one_perturbation_cannot_be_told_from_others():
    found = discrimination_scores(np.ones((1, 20)), np.ones((1, 20)), ["a"], GENES)
    assert all(np.isnan(scores).all() for scores in found.values())
