"""Effects that feature vectors tell, against the formulas in plain numpy."""

import numpy as np
import pytest

from evae.effects.features import PENALTIES, bilinear, told_by_features

N, GENES, FEATURES = 30, 40, 6


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    vectors = rng.normal(2, 3, (N + 2, FEATURES))
    effects = np.tanh(vectors[:N] @ rng.normal(size=(FEATURES, GENES))) + rng.normal(0, 0.1, (N, GENES))
    names = [f"P{i}" for i in range(N + 2)]
    return dict(zip(names, effects, strict=False)), dict(zip(names, vectors, strict=True)), names[N:]


def standardised(vectors, like):
    return (vectors - like.mean(axis=0)) / like.std(axis=0)


def test_kernel_ridge_is_the_closed_form_at_one_of_the_penalties(world):
    measured, vectors, wanted = world
    told = told_by_features(measured, vectors, wanted, "kernel")
    known, y = np.stack([vectors[p] for p in measured]), np.stack(list(measured.values()))
    x, new = standardised(known, known), standardised(np.stack([vectors[p] for p in wanted]), known)

    def kernel(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(axis=2) / FEATURES)

    k = kernel(x, x)
    centred = k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()
    towards = kernel(new, x)
    towards = towards - towards.mean(axis=1)[:, None] - k.mean(axis=0) + k.mean()
    centre = y.mean(axis=0)
    answers = [centre + towards @ np.linalg.solve(centred + a * np.eye(N), y - centre) for a in PENALTIES]
    found = np.stack([told[p] for p in wanted])
    assert min(np.abs(found - answer).max() for answer in answers) < 1e-8
    assert np.abs(found - centre).max() > 0.05  # not merely the mean


def test_the_bilinear_model_is_the_authors_formula(world):
    """W = (G'G + 0.1)^-1 G'(Y - b) P' (P P' + penalty)^-1, the prediction G W p + b; genes are rows."""
    measured, vectors, wanted = world
    y = np.stack(list(measured.values())).T  # (genes, perturbations)
    known = np.stack([vectors[p] for p in measured])
    p, new = standardised(known, known).T, standardised(np.stack([vectors[q] for q in wanted]), known).T
    b = y.mean(axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)  # prcomp of genes over perturbations
    g = u[:, :10] * s[:10]
    left = np.linalg.solve(g.T @ g + 0.1 * np.eye(10), g.T @ (y - b))
    w = left @ p.T @ np.linalg.inv(p @ p.T + 3.0 * np.eye(FEATURES))
    found = bilinear(y.T, known, np.stack([vectors[q] for q in wanted]), penalties=[3.0])
    np.testing.assert_allclose(found, (g @ w @ new + b).T, atol=1e-8)


@pytest.mark.parametrize("method", ["ridge", "kernel", "bilinear"])
def test_every_model_finds_what_is_linear_in_the_features(method):
    rng = np.random.default_rng(0)
    vectors, weights = rng.normal(size=(61, 3)), rng.normal(size=(3, 200))
    effects = vectors @ weights + rng.normal(0, 0.5, (61, 200))
    names = [f"P{i}" for i in range(61)]
    known = dict(zip(names[:60], effects[:60], strict=True))
    told = told_by_features(known, dict(zip(names, vectors, strict=True)), names[60:], method)["P60"]
    assert np.corrcoef(told, vectors[60] @ weights)[0, 1] > 0.9


@pytest.mark.parametrize("method", ["ridge", "kernel", "bilinear"])
def test_vectors_that_tell_nothing_leave_little_but_the_mean(method):
    """More features than perturbations: only those left out show that nothing is learned."""
    rng = np.random.default_rng(0)
    vectors, effects = rng.normal(size=(40, 60)), 1 + rng.normal(size=(20, 50))
    names = [f"P{i}" for i in range(40)]
    known = dict(zip(names, effects, strict=False))
    told = told_by_features(known, dict(zip(names, vectors, strict=True)), names[20:], method)
    moved = np.stack(list(told.values())) - effects.mean(axis=0)
    assert np.linalg.norm(moved) < 0.2 * np.linalg.norm(effects - effects.mean(axis=0))
