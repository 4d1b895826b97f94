"""Cells whose pseudobulk follows given effects."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.inference.matching import Wanted, match_effects
from evae.inference.totals import with_totals

N_GENES = 30


def negative_binomial(rng, mean, dispersion, n):
    return rng.poisson(rng.gamma(1 / dispersion, mean * dispersion, size=(n, len(mean))))


def test_totals_are_those_asked_for_in_whole_counts():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(negative_binomial(rng, np.full(N_GENES, 2.0), 0.5, 200).astype(np.float32))
    totals = rng.integers(0, 900, N_GENES)
    found = with_totals(counts, totals, rng)
    np.testing.assert_array_equal(np.asarray(found.sum(0)).ravel(), totals)
    assert found.data.min() >= 1
    np.testing.assert_array_equal(found.data, np.round(found.data))


def test_a_changed_gene_is_spread_over_cells_as_a_drawn_one_would_be():
    """Negative binomial counts of mean 1 become ones of mean 3, or of 0.3: their share of zeros, and their variance."""
    rng, n = np.random.default_rng(1), 20_000
    mean = np.repeat([1.0, 1.0, 4.0], [1, 1, N_GENES - 2])
    counts = sp.csr_matrix(negative_binomial(rng, mean, 0.5, n).astype(np.float32))
    totals = np.asarray(counts.sum(0)).ravel().astype(np.int64)
    totals[:2] = 3 * n, int(0.3 * n)
    found = with_totals(counts, totals, rng).toarray()
    truth = negative_binomial(rng, np.array([3.0, 0.3]), 0.5, n)
    np.testing.assert_allclose((found[:, :2] == 0).mean(0), (truth == 0).mean(0), atol=0.03)
    np.testing.assert_allclose(found[:, :2].var(0), truth.var(0), rtol=0.15)
    risen = found[:, 0] - counts.toarray()[:, 0]
    assert np.corrcoef(risen, counts.toarray()[:, 0])[0, 1] > 0.3  # cells that had more get more


def test_pairs_follow_their_own_effects_and_keep_their_places():
    rng = np.random.default_rng(2)
    counts = sp.csr_matrix(negative_binomial(rng, np.full(N_GENES, 5.0), 0.2, 300).astype(np.float32))
    obs = pd.DataFrame({"cell_type": np.tile(["A", "B", "A"], 100), "perturbation": np.tile(["x", "x", "y"], 100)})
    controls = rng.integers(1, 2_000, N_GENES).astype(float)
    controls[3] = 0
    folds = {pair: rng.normal(0, 1, N_GENES) for pair in [("A", "x"), ("B", "x"), ("A", "y")]}
    found, report = match_effects(counts, obs, {pair: Wanted(controls, f) for pair, f in folds.items()}, seed=0)
    for pair, fold in folds.items():
        rows = ((obs["cell_type"] == pair[0]) & (obs["perturbation"] == pair[1])).to_numpy()
        total = np.asarray(found[rows].sum(0)).ravel()
        assert total.sum() == counts[rows].sum()
        expected = controls * 2**fold
        np.testing.assert_allclose(total, expected / expected.sum() * total.sum(), atol=1)
    assert (report["error"] < 0.02).all()
    assert (report["error_as_drawn"] > 0.5).all()
    assert set(report["genes_without_controls"]) == {1}
    share = controls / controls.sum()
    np.testing.assert_allclose(
        report["offset"], [-np.log2(share @ 2 ** folds[a, b]) for a, b in report.iloc[:, :2].values]
    )
    again, _ = match_effects(counts, obs, {pair: Wanted(controls, f) for pair, f in folds.items()}, seed=0)
    assert (found != again).nnz == 0
