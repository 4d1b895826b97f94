"""Pictures take and return matplotlib axes, show the numbers they are given, and leave the user's settings alone."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import evae
import evae.plot
from evae.data import read_split
from evae.evaluation import evaluate
from evae.models import EvaeError


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def groups(screen):
    """Controls and one knock-out of a cell type, by name."""
    own = screen[screen.obs["cell_type"] == "type_A"]
    knocked = next(n for n in screen.obs["perturbation"].cat.categories if n != "control")
    return {name: own[own.obs["perturbation"] == label] for name, label in (("control", "control"), ("real", knocked))}


@pytest.fixture
def given():
    return plt.figure().add_subplot()


def test_every_picture_of_cells_is_drawn_on_the_axes_that_are_given(groups, given):
    control, real = groups["control"], groups["real"]
    before = dict(mpl.rcParams)
    for draw in (
        lambda ax: evae.plot.cells(groups, ax),
        lambda ax: evae.plot.fold_changes(real, real, control, ax),
        lambda ax: evae.plot.gene(groups, "GENE0003", ax),
    ):
        assert draw(given) is given
        assert plt.get_fignums() == [given.figure.number]
        own = draw(None)
        assert own is not given
        assert plt.gcf() is own.figure  # a notebook shows it
        plt.close(own.figure)
    assert dict(mpl.rcParams) == before


def test_fold_changes_are_those_of_the_means(groups):
    control, real = groups["control"], groups["real"]
    ax = evae.plot.fold_changes(control, real, control)
    points = ax.collections[0].get_offsets()

    def mean(cells):
        counts = cells.X.toarray()
        return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).mean(0)

    np.testing.assert_allclose(points[:, 0], mean(real) - mean(control), atol=1e-5)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-6)
    assert "no change" in ax.get_title(loc="left")
    perfect = evae.plot.fold_changes(real, real, control)
    assert perfect.get_title(loc="left").endswith("1.00")
    named = {text.get_text() for text in perfect.texts}
    assert control.var_names[np.argmax(np.abs(mean(real) - mean(control)))] in named


def test_groups_are_compared_over_the_genes_that_they_share(groups):
    fewer = groups["real"][:, 5:40]
    ax = evae.plot.fold_changes(fewer, groups["real"], groups["control"])
    assert len(ax.collections[0].get_offsets()) == 35


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: evae.plot.gene(g, "GENE00031"), "no gene 'GENE00031' that all groups have. .*GENE0003"),
        (lambda g: evae.plot.cells({}), "no cells to draw"),
        (lambda g: evae.plot.cells(g | {"none": g["real"][:0]}), "no cells in 'none'"),
        (lambda g: evae.plot.cells(g | {"other": g["real"][:, :0]}), "share no gene"),
        (lambda g: evae.plot.cells(g | {"log": logged(g["real"])}), "the cells 'log'.*log-normalised"),
    ],
)
def test_what_cannot_be_drawn_is_named(groups, change, told):
    with pytest.raises(EvaeError, match=told):
        change(groups)
    assert plt.get_fignums() == []


def logged(cells):
    cells = cells.copy()
    cells.X = np.log1p(cells.X.toarray())
    return cells


def test_the_control_of_every_prediction_is_drawn(groups, given):
    control = groups["control"].copy()
    after = groups["control"].copy()
    after.obs["source"], after.obs["perturbation"] = control.obs_names, "KO"
    assert evae.plot.counterfactual(control, after, given) is given
    before, drawn = (cloud.get_offsets() for cloud in given.collections[:2])
    np.testing.assert_allclose(before, drawn)  # nothing changed
    assert "KO" in given.get_title(loc="left")


def test_the_systems_of_an_evaluation_are_ordered_by_the_metric(screen_dataset, given):
    real, train = read_split(screen_dataset, "test"), read_split(screen_dataset, "train")
    result = evaluate(real, real, train, progress=False)
    assert evae.plot.metric(result, "mse", given, group="perturbation") is given
    widths = [bar.get_width() for bar in given.patches]
    assert widths == sorted(widths, reverse=True)  # the best is on top
    best = [label.get_text() for label in given.get_yticklabels()[-2:]]
    assert "model" in best  # the real cells themselves, and their means
    with pytest.raises(EvaeError, match="no metric 'fdd' in 'robust'"):
        evae.plot.metric(result, "fdd")


def test_a_ranking_shows_the_best_on_top(given):
    table = pd.DataFrame({"group": ["a", "a", "b"], "perturbation": ["X", "Y", "X"], "over_control": [2.0, -1.0, 3.0]})
    assert evae.plot.ranking(table, given, group="a") is given
    assert [text.get_text() for text in given.get_yticklabels()] == ["Y", "X"]
    assert [bar.get_width() for bar in given.patches] == [-1.0, 2.0]
    with pytest.raises(EvaeError, match="2 groups; name one"):
        evae.plot.ranking(table)
    with pytest.raises(EvaeError, match="no group 'c'"):
        evae.plot.ranking(table, group="c")
