"""Effects carried over from other contexts, and counts around them."""

import numpy as np
import pytest
import scipy.sparse as sp

from evae.common.mixed_poisson import dispersions
from evae.evaluation.systems.transfer import effects_of, shifted_counts, shrunken_folds

GENES = [f"G{i}" for i in range(60)]


def context(rng, effects, noise=0.0, scale=1.0):
    control = rng.gamma(2, 3, len(GENES)) + 1
    rates = {p: control * np.exp(scale * e + noise * rng.normal(size=len(e))) for p, e in effects.items()}
    return effects_of(control, rates, dict.fromkeys(rates, 100), GENES)


def test_counts_keep_the_distribution_of_a_gene_and_move_its_mean():
    """Up and down: mean f m, and the negative binomial's variance of the same dispersion; whole numbers."""
    rng = np.random.default_rng(0)
    mean, dispersion, n = np.array([4.0, 4.0, 20.0, 0.5]), 0.4, 40_000
    cells = sp.csr_matrix(rng.poisson(rng.gamma(1 / dispersion, dispersion * mean, (n, 4))).astype(np.float32))
    fold = np.array([3.0, 0.3, 1.5, 4.0])
    found = shifted_counts(cells, fold, np.full(4, dispersion), rng).toarray()
    assert (found == np.rint(found)).all()
    np.testing.assert_allclose(found.mean(axis=0), fold * mean, rtol=0.03)
    # library sizes follow the counts themselves here, which widens the added part a little
    np.testing.assert_allclose(found.var(axis=0), fold * mean + dispersion * (fold * mean) ** 2, rtol=0.35)
    np.testing.assert_allclose((found == 0).mean(axis=0)[1], (1 + dispersion * 1.2) ** (-1 / dispersion), rtol=0.03)


def test_no_change_gives_the_controls_back():
    cells = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (20, 5)).astype(np.float32))
    assert (shifted_counts(cells, np.ones(5), np.full(5, 0.1), np.random.default_rng(0)) != cells).nnz == 0


def test_the_dispersion_of_simulated_counts_is_found():
    rng = np.random.default_rng(0)
    size = rng.gamma(20, 1 / 20, (20_000, 1))
    cells = sp.csr_matrix(rng.poisson(size * rng.gamma(2, 0.5 * np.full(30, 5.0), (20_000, 30))).astype(np.float32))
    assert dispersions(cells).mean() == pytest.approx(0.5, rel=0.1)


def test_equal_effects_are_carried_over_whole_and_noise_is_shrunken_away():
    rng = np.random.default_rng(0)
    effects = {p: rng.normal(0, 0.5, len(GENES)) for p in ("A", "B", "C", "D")}
    noise = {name: {p: rng.normal(0, 0.5, len(GENES)) for p in effects} for name in "xy"}
    control = rng.gamma(2, 3, len(GENES)) + 1
    same, said = shrunken_folds({name: context(rng, effects) for name in "xy"}, ["A"], control)
    true = np.exp(effects["A"])
    assert np.corrcoef(np.log(same["A"]), np.log(true))[0, 1] > 0.95
    assert "chosen on the training contexts" in said
    nothing, _ = shrunken_folds({name: context(rng, noise[name]) for name in "xy"}, ["A"], control)
    assert np.abs(np.log(nothing["A"])).mean() < 0.2 * np.abs(np.log(same["A"])).mean()


def test_a_perturbation_that_no_context_knows_gets_the_mean_response_and_is_named():
    rng = np.random.default_rng(0)
    effects = {p: np.full(len(GENES), 0.4) + rng.normal(0, 0.1, len(GENES)) for p in ("A", "B", "C")}
    control = rng.gamma(2, 3, len(GENES)) + 1
    folds, said = shrunken_folds({"x": context(rng, effects)}, ["Z"], control)
    assert "1: Z" in said
    assert "one training context cannot tell" in said
    assert 1.1 < np.median(folds["Z"]) < 1.4  # half of the mean response
