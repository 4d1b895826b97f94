"""The picture of counterfactuals."""

import anndata as ad
import numpy as np
import pytest
from matplotlib.image import imread

from evae.evaluation import plot_counterfactual
from evae.evaluation.cells.comparison import compare
from evae.evaluation.report import arrows
from evae.models.contract_evae import EvaeError


@pytest.fixture
def controls(screen):
    return screen[screen.obs["perturbation"] == "control"].copy()


@pytest.fixture
def changed(controls):
    """Two perturbations of all controls, in another order, with their genes in another order."""
    order = np.random.default_rng(0).permutation(controls.n_obs)
    parts = []
    for name in ("x", "y"):
        part = controls[order].copy()
        part.obs["source"] = part.obs_names.to_numpy()
        part.obs["perturbation"] = name
        part.obs_names = [f"{name}{i}" for i in range(part.n_obs)]
        parts.append(part)
    return ad.concat(parts)[:, ::-1].copy()


@pytest.fixture
def compared(screen, changed):
    """Real cells with the names of the perturbations of `changed`."""
    changed.obs["perturbation"] = changed.obs["perturbation"].astype(str).replace({"x": "G0", "y": "G1"})
    return screen[screen.obs["perturbation"].isin(["control", "G0", "G1"])].copy()


def test_every_cell_stands_beside_its_own_source(controls, changed):
    """Here a cell becomes itself, so each arrow has no length."""
    for moved in arrows.moved_cells(controls, changed, None, seed=0):
        assert (moved.before != moved.after).nnz == 0
        assert moved.before.nnz > 0


def test_groups_are_of_one_cell_type():
    rng = np.random.default_rng(0)
    kinds = np.repeat(["A", "B", "C"], [400, 100, 3])
    groups = arrows._groups(rng.normal(size=(503, 5)), kinds, seed=0)
    of = {group: set(kinds[groups == group]) for group in np.unique(groups)}
    assert all(len(names) == 1 for names in of.values())
    assert 4 <= len(of) <= 12


def test_a_picture_is_written(controls, changed, tmp_path):
    path = plot_counterfactual(controls, changed, tmp_path / "a.png", perturbation="y")
    one = imread(path)
    both = imread(plot_counterfactual(controls, changed, tmp_path / "b.png"))
    assert both.shape[1] > 1.4 * one.shape[1]  # a panel each
    assert one.std() > 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: a.obs.drop(columns="source", inplace=True), {}, "name no source cells"),
        (lambda a: a.obs.__setitem__("source", "nobody"), {}, "not the source cells"),
        (lambda a: None, {"perturbation": "z"}, "no predicted cell of 'z'"),
        (lambda a: None, {"embedding": "tsne"}, "unknown embedding"),
    ],
)
def test_what_cannot_be_drawn_is_refused(controls, changed, tmp_path, change, options, message):
    change(changed)
    with pytest.raises(EvaeError, match=message):
        plot_counterfactual(controls, changed, tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())


def test_a_report_shows_the_controls_that_predictions_started_from(compared, changed):
    """Here every cell becomes itself, so its row among the controls has its values."""
    comparison = compare(changed, compared)
    before = comparison.controls.matrix[comparison.sources]
    assert abs(before - comparison.predicted.matrix[np.arange(len(comparison.predicted))]).max() < 1e-5
    assert arrows.draw_counterfactuals(comparison) is not None


def test_a_report_without_the_sources_has_no_such_picture(compared, changed):
    del changed.obs["source"]
    assert arrows.draw_counterfactuals(compare(changed, compared)) is None
    changed.obs["source"] = "another cell"
    assert arrows.draw_counterfactuals(compare(changed, compared)) is None
