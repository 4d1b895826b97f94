"""Metrics of centred effects against the authors' formulas."""

import anndata as ad
import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from evae.evaluation.cells.moments import moments_of
from evae.evaluation.metrics.centred import centred_metrics, gene_weights, mse_unbiased, t_statistics

RNG = np.random.default_rng(0)
CELLS = {name: RNG.gamma(1.0, 1.0, (n, 40)) for name, n in (("p", 12), ("q", 20), ("r", 9))}


def authors_weights(scores):
    """Mejia et al. 2025: absolute scores, min-max normalised, squared; then to sum 1."""
    size = np.abs(scores)
    weights = np.square((size - size.min()) / (size.max() - size.min()))
    return weights / weights.sum()


def test_all_numbers_are_the_authors_formulas():
    predicted, real, reference, t = RNG.random((4, 40))
    weights = gene_weights(t)
    np.testing.assert_allclose(weights, authors_weights(t))
    found = centred_metrics(predicted, real, reference, t, weights)
    shift, truth = predicted - reference, real - reference
    top = np.argsort(t)[-20:]
    assert found["pearson_delta_centred"] == pytest.approx(pearsonr(truth, shift)[0])
    assert found["pearson_delta_centred_20"] == pytest.approx(pearsonr(truth[top], shift[top])[0])
    assert found["weighted_mse"] == pytest.approx(np.sum(weights * (predicted - real) ** 2))
    assert found["weighted_r2_delta"] == pytest.approx(r2_score(truth, shift, sample_weight=weights))


def test_the_mean_of_all_perturbations_predicts_nothing():
    real, reference, t = RNG.random((3, 40))
    found = centred_metrics(reference, real, reference, t, gene_weights(t))
    assert np.isnan(found["pearson_delta_centred"])
    assert found["weighted_r2_delta"] <= 0


def test_t_statistics_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy", reason="scanpy comes with the extra eval")
    cells = ad.AnnData(np.log1p(np.concatenate(list(CELLS.values()))))
    cells.obs["condition"] = np.repeat(list(CELLS), [len(c) for c in CELLS.values()])
    cells.obs["condition"] = cells.obs["condition"].astype("category")
    scanpy.tl.rank_genes_groups(cells, "condition", method="t-test_overestim_var", reference="rest")
    theirs = scanpy.get.rank_genes_groups_df(cells, "p").set_index("names")["scores"][cells.var_names]
    own = (cells.obs["condition"] == "p").to_numpy()
    ours = t_statistics(moments_of(cells.X[own]), moments_of(cells.X[~own]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_the_unbiased_error_is_the_mean_over_pairs_of_different_cells():
    """The U-statistic of |mean x - mean y|^2; both sides vary alike, so the bound on the noise does not bind."""
    x = CELLS["q"]
    y = x[RNG.permutation(20)] + np.linspace(0, 1, 40)  # the same variance, another mean
    differences = x[:, None] - y[None]  # (x, y, genes)
    total = sum(
        (differences[i, k] * differences[j, m]).mean()
        for i in range(20) for j in range(20) for k in range(20) for m in range(20) if i != j and k != m
    )  # fmt: skip
    side = moments_of(x)
    assert mse_unbiased(side.mean, side.noise, side.n, moments_of(y)) == pytest.approx(total / (20 * 19) ** 2, rel=1e-6)


def test_a_prediction_may_claim_no_more_noise_than_real_cells_have():
    real = moments_of(CELLS["q"])
    wide = mse_unbiased(real.mean, 1000 * real.noise, real.n, real)
    assert wide == pytest.approx(-2 * real.noise.mean())
    assert mse_unbiased(real.mean, None, real.n, real) == pytest.approx(-real.noise.mean())


def test_same_distribution_has_no_unbiased_error_on_average():
    found = []
    for seed in range(200):
        x, y = np.random.default_rng(seed).gamma(1.0, 1.0, (2, 8, 40))
        side = moments_of(x)
        found.append(mse_unbiased(side.mean, side.noise, side.n, moments_of(y)))
    assert abs(np.mean(found)) < 0.02  # the noise alone is 0.25
