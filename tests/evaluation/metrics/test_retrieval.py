"""Ranks against the authors' loops, and for predictions that say nothing."""

import numpy as np
import pytest
from numpy.linalg import norm
from scipy.stats import pearsonr

from evae.evaluation.metrics.retrieval import centroid_accuracy, normalised_retrieval, perturbench_ranks

RNG = np.random.default_rng(0)
REAL = RNG.random((7, 30))
PREDICTED = REAL + RNG.normal(0, 0.9, REAL.shape)
CONTROL, MORE = RNG.random(30), RNG.random((4, 30))


def test_centroid_accuracy_is_systemas():
    expected = []
    for i in range(7):
        distances = [norm(PREDICTED[i] - truth) for truth in REAL]
        expected.append(sum(d > distances[i] for d in distances) / 6)
    np.testing.assert_allclose(centroid_accuracy(PREDICTED, REAL), expected)
    assert len(set(expected)) > 1


def test_ranks_are_perturbenchs():
    predicted = PREDICTED.clip(min=0)
    found = perturbench_ranks(predicted, REAL, CONTROL)

    def fold(x):
        return np.log2(x + 0.1) - np.log2(CONTROL + 0.1)

    for p in range(7):
        rmse = [np.sqrt(np.mean((predicted[q] - REAL[p]) ** 2)) for q in range(7)]
        cosine = [fold(predicted[q]) @ fold(REAL[p]) / norm(fold(predicted[q])) / norm(fold(REAL[p])) for q in range(7)]
        assert found["rank_rmse"][p] == pytest.approx(np.argsort(rmse).tolist().index(p) / 7)
        assert found["rank_cosine"][p] == pytest.approx(np.argsort([-c for c in cosine]).tolist().index(p) / 7)
    assert len(set(found["rank_cosine"])) > 1


def test_retrieval_is_txperts():
    candidates = np.concatenate([REAL, MORE]) - CONTROL
    expected = []
    for i in range(7):
        similar = sorted((pearsonr(PREDICTED[i] - CONTROL, c)[0], j) for j, c in enumerate(candidates))
        expected.append([j for _, j in similar].index(i) / len(candidates))
    np.testing.assert_allclose(normalised_retrieval(PREDICTED - CONTROL, REAL - CONTROL, MORE - CONTROL), expected)


def test_one_prediction_for_all_has_the_rank_of_chance():
    same = np.tile(PREDICTED[0], (7, 1))
    for ranks in perturbench_ranks(same.clip(min=0), REAL, CONTROL).values():
        np.testing.assert_allclose(ranks, 3 / 7)
    nothing = np.tile(CONTROL, (7, 1))
    found = normalised_retrieval(nothing - CONTROL, REAL - CONTROL, MORE - CONTROL)
    np.testing.assert_allclose(found, 5 / 11)


def test_one_perturbation_has_no_rank():
    assert np.isnan(centroid_accuracy(PREDICTED[:1], REAL[:1])).all()
    assert np.isnan(perturbench_ranks(PREDICTED[:1], REAL[:1], CONTROL)["rank_rmse"]).all()
    assert np.isnan(normalised_retrieval(PREDICTED[:1], REAL[:1], MORE[:0])).all()
    assert np.isfinite(normalised_retrieval(PREDICTED[:1], REAL[:1], MORE)).all()  # training gives the others
