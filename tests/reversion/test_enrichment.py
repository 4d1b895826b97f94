"""The enrichment AUC, its null, its interval, and the agreement of rankings."""

import itertools

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from evae.models.contract_evae import EvaeError
from evae.reversion.enrichment import (
    agreement,
    enrichment,
    enrichment_auc,
    null_band,
    random_sets,
    ranks_of,
    recovery_curve,
)


def positives(n, *at):
    chosen = np.zeros(n, dtype=bool)
    chosen[list(at)] = True
    return chosen


@pytest.mark.parametrize("at", [(0, 1, 2), (7, 8, 9), (0, 4, 9), (5,)])
def test_auc_is_the_area_under_the_recovery_curve(at):
    scores, chosen = np.arange(10.0), positives(10, *at)
    x, y = recovery_curve(scores, chosen)
    assert enrichment(scores, chosen).auc == pytest.approx(np.trapezoid(y, x))


def test_auc_of_the_best_the_worst_and_a_reversed_ranking():
    n, chosen = 100, positives(100, 0, 1, 2, 3)
    best = enrichment(np.arange(n), chosen)
    worst = enrichment(-np.arange(n), chosen)
    assert best.auc == pytest.approx(0.98)
    assert best.auc + worst.auc == pytest.approx(1)
    assert best.p_value < 0.001
    assert worst.p_value == pytest.approx(1)


def test_p_value_is_the_share_of_all_sets_that_do_as_well():
    scores, chosen = np.arange(12.0), positives(12, 1, 3, 4)
    sets = np.array(list(itertools.combinations(range(1, 13), 3)))
    exact = (enrichment_auc(sets, 12) >= enrichment_auc(np.array([2, 4, 5]), 12) - 1e-12).mean()
    assert enrichment(scores, chosen, n_permutations=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_null_of_six_among_1732_has_mean_half_and_the_standard_deviation_of_0118():
    sets = random_sets(np.arange(1.0, 1733), 6, 20_000, np.random.default_rng(0))
    assert all(len(set(row)) == 6 for row in sets[:500])
    aucs = enrichment_auc(sets, 1732)
    assert aucs.mean() == pytest.approx(0.5, abs=0.003)
    assert aucs.std() == pytest.approx(0.118, abs=0.002)


def test_on_null_rankings_the_auc_follows_its_permutation_null_and_p_is_uniform():
    rng, chosen = np.random.default_rng(1), positives(200, *range(6))
    null = enrichment_auc(random_sets(np.arange(1.0, 201), 6, 20_000, rng), 200)
    found = [enrichment(rng.normal(size=200), chosen, n_permutations=500, n_bootstrap=1, seed=s) for s in range(400)]
    assert kstest([e.auc for e in found], null).pvalue > 0.01
    assert kstest([e.p_value for e in found], "uniform").pvalue > 0.01


def test_the_band_holds_random_curves_and_not_good_ones():
    n, p, rng = 300, 6, np.random.default_rng(2)
    low, high = null_band(n, p)
    assert low[0] == high[0] == 0
    assert low[-1] == high[-1] == 1
    chosen = positives(n, *range(p))
    curves = np.stack([recovery_curve(rng.permutation(n).astype(float), chosen)[1] for _ in range(400)])
    inside = ((curves >= low) & (curves <= high)).mean(axis=0)
    assert inside.min() > 0.92
    assert (recovery_curve(np.arange(n), chosen)[1][5:100] > high[5:100]).all()


def test_interval_holds_the_auc_and_grows_with_disagreement():
    together = enrichment(np.arange(100), positives(100, 20, 21, 22, 23))
    apart = enrichment(np.arange(100), positives(100, 0, 10, 30, 46))
    for e in (together, apart):
        assert e.low <= e.auc <= e.high
    assert apart.high - apart.low > 5 * (together.high - together.low)


def test_ties_share_their_rank_and_the_unknown_is_not_ranked():
    np.testing.assert_array_equal(ranks_of(np.array([3.0, 1, 1, np.nan])), [3, 1.5, 1.5, np.nan])
    assert enrichment(np.zeros(9), positives(9, 0, 5)).auc == pytest.approx(0.5)
    scores = np.array([1.0, np.nan, 2.0, 3.0])
    found = enrichment(scores, positives(4, 0, 1))
    assert (found.n_targets, found.n_positives) == (3, 1)


def test_what_cannot_be_said_is_nan():
    found = enrichment(np.array([np.nan, 1.0]), positives(2, 0))
    assert np.isnan([found.auc, found.p_value, found.low, found.high]).all()
    alone = enrichment(np.array([2.0]), positives(1, 0))
    assert (alone.auc, alone.p_value) == (0.5, 1.0)
    with pytest.raises(EvaeError, match="at least 1"):
        enrichment(np.arange(3.0), positives(3, 0), n_permutations=0)


def test_same_seed_same_numbers():
    scores, chosen = np.random.default_rng(0).normal(size=50), positives(50, 1, 2)
    assert enrichment(scores, chosen, seed=3) == enrichment(scores, chosen, seed=3)


def test_agreement_of_rankings():
    rng = np.random.default_rng(0)
    order = [f"T{i}" for i in range(60)]
    other = [order[i] for i in np.argsort(np.arange(60) + 15 * rng.normal(size=60))]
    found = agreement(order, [*other, "absent"])
    place = {t: i for i, t in enumerate(other)}
    assert found["spearman"] == pytest.approx(spearmanr(range(60), [place[t] for t in order]).statistic)
    assert found["overlap_10"] == len(set(order[:10]) & set(other[:10])) / 10
    assert found["overlap_25"] == len(set(order[:25]) & set(other[:25])) / 25
    assert found["n_shared"] == 60
    assert agreement(order, order[::-1])["spearman"] == pytest.approx(-1)


def test_agreement_over_few_or_no_shared_targets():
    found = agreement(["a", "b", "c"], ["b", "a", "x"])
    assert found["spearman"] == pytest.approx(-1)
    assert np.isnan([found["overlap_10"], found["overlap_25"]]).all()
    assert np.isnan(agreement(["a"], ["b"])["spearman"])
