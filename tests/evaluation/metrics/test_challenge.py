"""Formulas of the challenge's metrics beside slow and plain ones."""

import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation.metrics.challenge import (
    BULK_TOTAL,
    Bulks,
    bulk_of,
    discrimination_cosine,
    expression_error,
    scaled,
)
from evae.evaluation.metrics.challenge_changes import Changes, change_metrics

NONE = np.array([-1])


def counts(rng, n=70, genes=30):
    return sp.csr_matrix(rng.poisson(rng.gamma(1, 2, genes) * rng.gamma(5, 0.2, (n, 1))).astype(np.float32))


def changes(fold, fdr):
    fold, fdr = np.atleast_2d(fold).astype(float), np.atleast_2d(fdr).astype(float)
    return Changes(np.ones(fold.shape[1], dtype=bool), fold, fdr, fdr)


def test_the_noise_of_a_pseudobulk_is_the_jackknife_of_its_cells():
    cells = counts(np.random.default_rng(0))
    bulk, noise = bulk_of(cells)
    without = []
    for i in range(cells.shape[0]):
        rest = np.delete(cells.toarray().astype(float), i, axis=0).sum(axis=0)
        without.append(np.log1p(BULK_TOTAL * rest / rest.sum()))
    n = len(without)
    assert noise == pytest.approx((n - 1) / n * ((without - np.mean(without, axis=0)) ** 2).sum(), rel=1e-9)
    summed = cells.toarray().sum(axis=0)
    np.testing.assert_allclose(bulk, np.log1p(BULK_TOTAL * summed / summed.sum()))


def test_a_single_or_an_empty_cell_has_no_noise():
    assert bulk_of(sp.csr_matrix([[3.0, 1.0]]))[1] == 0
    assert bulk_of(sp.csr_matrix((2, 3)))[0].tolist() == [0, 0, 0]


def test_the_error_is_0_for_the_truth_and_1_for_the_control_and_knows_no_target_gene():
    rng = np.random.default_rng(0)
    truth, control, noise = rng.normal(size=(6, 40)), rng.normal(size=40), np.full(6, 1e-9)
    own = np.array([3, -1, 5, -1, -1, 3])
    copy = np.tile(control, (6, 1))
    for given, expected in ((truth, 0), (copy, 1)):
        changed = given.copy()
        changed[0, 3] += 100  # its own target
        error, effect = expression_error(Bulks(changed, noise), Bulks(truth, noise), control, 0.0, own)
        assert error.sum() / effect.sum() == pytest.approx(expected, abs=1e-6)


def test_the_noise_that_a_prediction_claims_is_bounded():
    """By the real cells' noise, and by the spread of its own pseudobulks: a constant prediction may claim none."""
    rng = np.random.default_rng(0)
    truth, control, noise = rng.normal(size=(6, 40)), np.zeros(40), np.full(6, 2.0)
    own = np.full(6, -1)
    other = truth + rng.normal(size=truth.shape)

    def error(bulk, claimed):
        return expression_error(Bulks(bulk, np.full(6, claimed)), Bulks(truth, noise), control, 0.0, own)[0]

    np.testing.assert_allclose(error(other, 100.0), error(other, 2.0))
    np.testing.assert_allclose(error(other, 0.0) - error(other, 2.0), 2.0 / 40)
    constant = np.tile(control, (6, 1))
    np.testing.assert_allclose(error(constant, 2.0), error(constant, 0.0))


def test_discrimination_ranks_the_own_shift_and_ties_share_their_rank():
    rng = np.random.default_rng(0)
    real, own = rng.normal(size=(5, 20)), np.full(5, -1)
    assert discrimination_cosine(real, real, own).tolist() == [1] * 5
    assert discrimination_cosine(np.zeros_like(real), real, own).tolist() == [0.5] * 5
    assert discrimination_cosine(real[[1, 0, 2, 3, 4]], real, own)[0] < 1
    spiked = np.zeros_like(real)
    spiked[range(5), range(5)] = -10
    assert discrimination_cosine(spiked, real + spiked, np.arange(5)).tolist() == [0.5] * 5  # targets tell nothing


def test_reach_goes_as_deep_as_nine_of_ten_directions_are_right():
    n = 30
    real = changes(np.ones(n), np.full(n, 0.01))
    fold = np.ones(n)
    fold[[0, 15]] = -1  # the first and the sixteenth are wrong: 9 of 10 at depths 10 to 15, 18 of 20 again at 20
    predicted = changes(fold, np.linspace(0.001, 0.04, n))
    assert change_metrics(predicted, real, NONE)["direction_reach_raw"] == 1  # 28 of 30
    fold[20:] = -1
    assert change_metrics(changes(fold, predicted.fdr), real, NONE)["direction_reach_raw"] == pytest.approx(20 / 30)


def test_sets_of_changed_genes():
    real = changes([1, 1, -1, -1, 2], [0.01, 0.01, 0.01, 0.5, 0.01])
    predicted = changes([1, -1, -1, -1, 2], [0.01, 0.01, 0.5, 0.01, 0.01])
    found = change_metrics(predicted, real, np.array([4]))  # the last is the target
    assert found["direction_fidelity_yield_raw"] == pytest.approx(2 / 3)  # called 0, 1, 3; wrong in 1
    assert found["sig_jaccard"] == pytest.approx(2 / 4)
    assert np.isnan(found["lfc_nmae"])  # three genes are too few
    nothing = changes(np.ones(5), np.ones(5))
    empty = change_metrics(nothing, nothing, NONE)
    assert empty["sig_jaccard"] == 1
    assert empty["truth_sets"] == 0
    assert np.isnan(empty["direction_fidelity_yield_raw"])
    assert np.isnan(empty["direction_reach_raw"])


def test_an_error_of_fold_changes_is_1_for_no_change():
    real, still = changes(np.arange(1, 13), np.full(12, 0.01)), changes(np.zeros(12), np.ones(12))
    assert change_metrics(still, real, NONE)["lfc_nmae"] == 1
    assert change_metrics(real, real, NONE)["lfc_nmae"] == 0


def test_the_scale_has_its_floors_and_no_range_where_the_replicate_is_no_better():
    assert scaled("pds_cosine", 0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert scaled("pds_cosine", 0.1, 0.5, 0.9) == pytest.approx(-1)
    assert scaled("lfc_nmae", 100.0, 1.0, 0.4) == -6
    assert scaled("expr_mse_unbiased_capped_norm", 3.0, 0.99, 0.03) == 0
    assert np.isnan(scaled("pds_cosine", 0.7, 0.5, 0.5))
    assert np.isnan(scaled("lfc_nmae", 0.7, 0.5, 0.6))
    assert np.isnan(scaled("pds_cosine", 0.7, 0.5, 0.51, spread=0.02))
    assert np.isnan(scaled("lfc_nmae", 0.7, float("nan"), 0.6))
