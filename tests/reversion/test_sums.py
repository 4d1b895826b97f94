"""Streamed centroids and separation against numpy and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score

from evae.reversion.screen import TREATED, UNTREATED
from evae.reversion.sums import ScreenSums, calinski_harabasz, unit


@pytest.fixture(scope="module")
def vectors(labels):
    """An embedding in which target and arm can be seen, away from the origin."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(labels.n_cells, 6)) + rng.normal(size=(labels.n_groups, 6))[labels.codes] + 1.0


def filled(labels, vectors, chunk=700, **options):
    sums = ScreenSums(labels, vectors.shape[1], **options)
    for start in range(0, len(vectors), chunk):
        rows = np.arange(start, min(start + chunk, len(vectors)))
        sums.add(rows, vectors[rows])
    return sums


def test_centroids_are_means_of_unit_vectors(labels, vectors):
    own = unit(vectors)
    expected = np.stack([own[labels.codes == g].mean(axis=0) for g in range(labels.n_groups)])
    centroids = filled(labels, vectors, n_shuffles=0).centroids()
    np.testing.assert_allclose(centroids.reshape(labels.n_groups, -1), expected, rtol=1e-12)


def test_centroids_do_not_depend_on_scale_order_or_chunks(labels, vectors):
    once = filled(labels, vectors, len(vectors), n_shuffles=0).centroids()
    np.testing.assert_allclose(filled(labels, 7 * vectors, 13, n_shuffles=0).centroids(), once, rtol=1e-12)
    sums, order = ScreenSums(labels, 6, 0), np.random.default_rng(1).permutation(len(vectors))
    sums.add(order, vectors[order])
    np.testing.assert_allclose(sums.centroids(), once, rtol=1e-12)


def test_sums_are_kept_in_float64(labels):
    """A million equal cells of float32 would drift if summed in float32."""
    sums = ScreenSums(labels, 1, 0)
    for _ in range(200):
        sums.add(np.full(5_000, np.flatnonzero(labels.codes == 3)[0]), np.full((5_000, 1), 0.1, np.float32))
    assert sums.sizes.ravel()[3] == 1_000_000
    assert sums.centroids().reshape(-1)[3] == pytest.approx(1.0, abs=1e-12)


def test_separation_is_sklearns_score_over_the_mean_of_sklearns_scores_of_shuffles(labels, vectors):
    sums = filled(labels, vectors, n_shuffles=5, seed=4)
    own, n = unit(vectors), len(labels.targets)
    found = sums.separation()
    for key, arm in (("ch_target_treated", TREATED), ("ch_target_untreated", UNTREATED)):
        cells = np.flatnonzero(labels.codes // n == arm)
        scores = [calinski_harabasz_score(own[cells], row[cells]) for row in sums._codes]
        assert found[key] == pytest.approx(scores[0] / np.mean(scores[1:]), rel=1e-9)
    cells = np.flatnonzero(np.isin(labels.codes % n, np.flatnonzero(labels.is_control())))
    scores = [calinski_harabasz_score(own[cells], row[cells]) for row in sums._arms]
    assert found["ch_condition"] == pytest.approx(scores[0] / np.mean(scores[1:]), rel=1e-9)


def test_shuffles_keep_arms_and_group_sizes(labels):
    sums = ScreenSums(labels, 1, 8)
    n = len(labels.targets)
    for row in sums._codes[1:]:
        assert (row // n == labels.codes // n).all()
        assert (np.bincount(row) == np.bincount(labels.codes)).all()
        assert (row != labels.codes).mean() > 0.8
    for row in sums._arms[1:]:
        assert ((row < 0) == (sums._arms[0] < 0)).all()
        assert row.sum() == sums._arms[0].sum()
    assert len({row.tobytes() for row in sums._codes}) == 9


def test_labels_without_meaning_have_ratio_one(labels):
    noise = np.random.default_rng(5).normal(size=(labels.n_cells, 8))
    found = filled(labels, noise, n_shuffles=60).separation()
    assert found["ch_target_treated"] == pytest.approx(1, abs=0.35)


def test_cells_without_embedding_are_skipped_and_counted(labels, vectors):
    holes = vectors.copy()
    missing = np.array([0, 17, 2999])
    holes[missing] = np.nan
    sums = filled(labels, holes, n_shuffles=2)
    assert sums.sizes.sum() == 2997
    kept = np.setdiff1d(np.arange(labels.n_cells), missing)
    expected = ScreenSums(labels, 6, 0)
    expected.add(kept, vectors[kept])
    np.testing.assert_allclose(sums.centroids(), expected.centroids(), rtol=1e-12)
    assert np.isfinite(list(sums.separation().values())).all()


def test_undefined_separation_is_nan():
    one_group = calinski_harabasz(np.ones((1, 1, 3)), np.array([[5]]), 9.0)
    as_many_groups_as_cells = calinski_harabasz(np.eye(3)[None], np.array([[1, 1, 1]]), 3.0)
    assert np.isnan([one_group, as_many_groups_as_cells]).all()


def test_an_empty_group_has_no_centroid_and_a_lone_cell_is_its_own(labels, vectors):
    sums = ScreenSums(labels, 6, 0)
    sums.add(np.array([10]), vectors[[10]])
    centroids = sums.centroids().reshape(labels.n_groups, 6)
    np.testing.assert_allclose(centroids[labels.codes[10]], unit(vectors[10]), rtol=1e-12)
    assert np.isnan(np.delete(centroids, labels.codes[10], axis=0)).all()
