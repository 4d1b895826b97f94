"""Pictures take and return matplotlib axes, show the numbers they are given, and leave the user's settings alone."""

import sys
import types

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


def test_a_volcano_shows_every_gene_once_on_its_side():
    folds = np.array([3.0, -2.0, 0.5, -30.0, 1.0])  # the fourth is of a gene that the predicted cells lack
    table = pd.DataFrame(
        {
            "cell_type": "a", "perturbation": "b", "gene": ["up", "$down_1$", "flat", "gone", "rare"],
            "log2_fold_change": folds, "p_value": [1e-9, 1e-8, 0.5, 1e-4, 0.0], "fdr": [1e-8, 1e-7, 0.9, 1e-3, 0.0],
            "share": [0.9, 0.1, 0.5, 0.0, 0.2], "share_control": [0.5, 0.6, 0.5, 0.4, 0.1],
        }
    )  # fmt: skip
    ax = evae.plot.volcano(table)
    unsure, rise, fall = (points.get_offsets() for points in ax.collections)
    assert np.allclose(unsure, [[0.5, -np.log10(0.5)]])
    assert np.allclose(sorted(rise[:, 0]), [1.0, 3.0])
    assert np.isfinite(rise).all()  # also where p is 0
    assert len(fall) == 2
    assert -4 < fall[:, 0].min() < -3  # a gene without a bounded change stands at the edge of the others
    assert {"up", "$down_1$"} <= {text.get_text() for text in ax.texts}
    ax.figure.canvas.draw()  # names that look like formulas are drawn as they are
    assert [text.get_text() for text in ax.get_legend().texts] == ["1 unsure (FDR ≥ 5%)", "2 rise", "2 fall"]
    nothing = evae.plot.volcano(table.assign(fdr=1.0))
    assert len(nothing.collections[0].get_offsets()) == 5
    both = pd.concat([table, table.assign(perturbation="c")])
    for wrong in (both, table.head(0)):
        with pytest.raises(EvaeError, match="keep the rows of one"):
            evae.plot.volcano(wrong)


def test_cells_are_drawn_in_umap_where_it_is_asked_for(groups, monkeypatch):
    """UMAP itself, which compiles for half a minute, is stood in for."""
    given = []

    class Map:
        def __init__(self, n_neighbors, random_state, **options):
            given.append((n_neighbors, random_state))

        def fit_transform(self, places):
            given.append(places)
            return places[:, :2] * 100

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Map))
    ax = evae.plot.cells(groups, embedding="umap", seed=3)
    assert given[0] == (15, 3)
    assert len(ax.collections[0].get_offsets()) == sum(cells.n_obs for cells in groups.values())
    assert np.abs(ax.collections[0].get_offsets()).max() > 100
    assert (ax.get_xlabel(), list(ax.get_xticks())) == ("UMAP 1", [])
    with pytest.raises(EvaeError, match=r"UMAP needs 10 cells, not 6.*embedding=\"pca\""):
        evae.plot.cells({name: cells[:3] for name, cells in groups.items()}, embedding="umap")
    with pytest.raises(EvaeError, match="unknown embedding 'tsne'"):
        evae.plot.cells(groups, embedding="tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(EvaeError, match=r"needs umap.*evae\[eval\]"):
        evae.plot.cells(groups, embedding="umap")


def test_a_confusion_frames_the_true_ones(given):
    rows = [("X", "X", 2.0), ("X", "Y", 1.0), ("Y", "Y", -1.0), ("Y", "X", 0.0), ("?", "X", 0.5), ("?", "Y", 0.1)]
    table = pd.DataFrame(rows, columns=["group", "perturbation", "over_control"])
    assert evae.plot.confusion(table, given) is given
    assert given.get_title(loc="left") == "true one first for 1, among the first 3 for 2 of 2"
    assert [text.get_text() for text in given.get_yticklabels()] == ["X", "Y", "?"]
    assert [text.get_text() for text in given.get_xticklabels()] == ["X", "Y"]
    np.testing.assert_array_equal(given.images[0].get_array(), [[1, 2], [1, 2], [1, 2]])
    assert [frame.get_xy() for frame in given.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    with pytest.raises(EvaeError, match="no group has the name of a ranked perturbation"):
        evae.plot.confusion(table[table["group"] == "?"])
