"""Principal components against the singular value decomposition, and that a comparison fits them once."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from evae.evaluation import evaluate
from evae.evaluation.cells import comparison as comparison_module
from evae.evaluation.cells.projection import fit_projection, neighbour_map


def test_projection_is_the_svd_of_centred_cells():
    x = np.random.default_rng(4).normal(size=(30, 8)) * np.arange(1, 9)
    projection = fit_projection(x, 3)
    centred = x - x.mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(projection(x)), np.abs(centred @ expected.T), atol=1e-9)
    np.testing.assert_allclose(projection(sp.csr_array(x)), projection(x))


def test_sparse_components_are_the_dense_ones(monkeypatch):
    rng = np.random.default_rng(4)
    x = (rng.random((90, 40)) < 0.3) * rng.gamma(2, size=(90, 40)) * np.arange(1, 41)
    expected = fit_projection(x, 5)
    monkeypatch.setattr("evae.evaluation.cells.projection._SMALL", 0)
    monkeypatch.setattr("evae.evaluation.cells.projection.dense", lambda _: pytest.fail("made dense"))
    found = fit_projection(sp.csr_matrix(x), 5)
    np.testing.assert_allclose(np.abs(found(sp.csr_matrix(x))), np.abs(expected(x)), atol=1e-9)


def test_a_report_fits_the_components_once(screen, real, perfect, monkeypatch):
    fits = []
    monkeypatch.setattr(
        comparison_module, "fit_projection", lambda cells, n: (fits.append(n), fit_projection(cells, n))[1]
    )
    result = evaluate(perfect, real, screen, suite="robust", seeds=(0, 1), progress=False)
    result.comparison.reference_projection()
    assert fits == [30]


def test_umap_is_given_the_exact_neighbours(monkeypatch):
    """Looking for them itself it compiles for half a minute."""
    points = np.random.default_rng(0).normal(size=(50, 4))
    given = {}

    def draw(**settings):
        given.update(settings)
        return SimpleNamespace(fit_transform=lambda cells: cells[:, :2])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=draw))
    places = neighbour_map(np.concatenate([points, points[:3]]), seed=7)
    np.testing.assert_array_equal(places[:3], places[50:])
    assert given["random_state"] == 7
    rows, distances = given["precomputed_knn"]
    distinct = np.unique(points, axis=0)
    expected = np.linalg.norm(distinct[:, None] - distinct[None], axis=2)
    np.testing.assert_array_equal(rows, np.argsort(expected, axis=1)[:, :15])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :15], atol=1e-6)
