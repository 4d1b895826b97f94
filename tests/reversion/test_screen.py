"""Labels of a screen: what is read, what is refused, what a ranking says of groups without cells."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError
from evae.reversion import PRESETS, ScreenNames
from evae.reversion.ranking import control_distances, cosine_distances, rank_targets
from evae.reversion.screen import TREATED, UNTREATED, Screen

NAMES = ScreenNames(positives=("A",), controls=("SAFE_TARGET",))
# anchor, treated control, target A in both arms, B in one each
ROWS = [("Untreated", "SAFE_TARGET"), ("Treated", "SAFE_TARGET"), ("Treated", "A"), ("Untreated", "A"),
        ("Treated", "B"), ("Untreated", "C")]  # fmt: skip


def cells(rows=ROWS):
    obs = pd.DataFrame(rows, columns=["condition", "gene_target"], index=[f"c{i}" for i in range(len(rows))])
    return ad.AnnData(np.ones((len(rows), 2), dtype=np.float32), obs=obs)


def read(rows=ROWS, names=NAMES):
    return Screen.read(AnnDataCounts(cells(rows)), names)


def test_the_published_screen_is_a_preset():
    telohaec = PRESETS["telohaec"]
    assert telohaec.positives == ("TNFRSF1A", "TRADD", "JUNB", "JUND", "NFKB1", "NFKB2")
    assert (telohaec.untreated, telohaec.anchor) == ("Untreated", "SAFE_TARGET")
    assert telohaec.controls == ("SAFE_TARGET", "NO-TARGET")


def test_a_file_and_an_anndata_are_read_alike(stressed, stressed_file, names, labels):
    screen = Screen.read(FileCounts(stressed_file), names)
    assert screen.targets == labels.targets
    np.testing.assert_array_equal(screen.codes, labels.codes)
    arms = np.where(labels.codes // len(labels.targets) == TREATED, "Treated", "Untreated")
    assert (arms == stressed.obs["condition"].to_numpy()).all()
    named = np.array(labels.targets)[labels.codes % len(labels.targets)]
    assert (named == stressed.obs["gene_target"].astype(str).to_numpy()).all()


def test_cells_of_other_conditions_are_left_out():
    screen = read([*ROWS, ("Washed", "A"), ("Washed", "D")])
    assert (screen.codes[-2:] == -1).all()
    assert "D" not in screen.targets
    assert screen.sizes().sum() == len(ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition_key": "conditon"}, r"no obs column 'conditon'. Did you mean 'condition'"),
        ({"target_key": "target"}, "no obs column 'target'"),
        ({"treated": "treatd"}, "no cell has the condition 'treatd'.*Did you mean 'Treated'"),
        ({"anchor": "NO-TARGET"}, "no cell has the anchor 'NO-TARGET'"),
        ({"positives": ("A", "RELA")}, "no cell has the positive control 'RELA'.*leave it out"),
        ({"positives": ("C",)}, "positive control 'C' has no cell of the condition 'Treated'"),
        ({"positives": ()}, "no positive control was named"),
        ({"positives": ("A", "A")}, "stands? more than once"),
        ({"positives": ("SAFE_TARGET",)}, "positive control and as a control target"),
        ({"treated": "Untreated"}, "both called 'Untreated'"),
    ],
)
def test_names_that_do_not_fit_are_refused(change, message):
    with pytest.raises(EvaeError, match=message):
        read(names=dataclasses.replace(NAMES, **change))


def test_an_anchor_without_untreated_cells_is_refused():
    rows = [row for row in ROWS if row != ("Untreated", "SAFE_TARGET")]
    with pytest.raises(EvaeError, match=r"no cell is both 'Untreated' and 'SAFE_TARGET'.*name another anchor"):
        read(rows)


def test_targets_that_differ_in_case_or_blanks_only_are_refused():
    with pytest.raises(EvaeError, match="'A' and 'a' differ in blanks or case only"):
        read([*ROWS, ("Treated", "a")])
    with pytest.raises(EvaeError, match="'B' and 'B ' differ"):
        read([*ROWS, ("Treated", "B ")])


def test_one_cell_is_too_few_to_be_a_screen():
    with pytest.raises(EvaeError, match="no cell has the condition 'Treated'"):
        read(ROWS[:1])


def test_missing_labels_are_refused():
    adata = cells()
    adata.obs.loc["c2", "gene_target"] = None
    with pytest.raises(EvaeError, match="missing"):
        Screen.read(AnnDataCounts(adata), NAMES)


def test_ranking_by_hand():
    screen = read()
    centroids = np.full((2, 4, 2), np.nan)
    place = {t: i for i, t in enumerate(screen.targets)}
    centroids[UNTREATED, place["SAFE_TARGET"]] = [1, 0]
    centroids[TREATED, place["SAFE_TARGET"]] = [-2, 0]
    centroids[TREATED, place["A"]] = [1, 1]
    centroids[UNTREATED, place["A"]] = [0, 3]
    centroids[TREATED, place["B"]] = [0, 0.5]
    centroids[UNTREATED, place["C"]] = [5, 0]
    frame = rank_targets(screen, centroids, screen.sizes())
    assert list(frame.index) == ["A", "B", "C"]  # controls are not ranked
    assert frame.loc["A", "distance"] == pytest.approx(1 - 2**-0.5)
    assert frame.loc["A", "selectivity"] == pytest.approx(2**-0.5)
    assert frame.loc["B", "distance"] == pytest.approx(1)
    np.testing.assert_array_equal(frame["rank"], [1, 2, np.nan])
    np.testing.assert_array_equal(frame["selectivity_rank"], [1, np.nan, np.nan])
    assert np.isnan(frame.loc["C", "distance"])
    assert np.isnan(frame.loc["B", "selectivity"])
    assert list(frame["n_treated"]) == [1, 1, 0]
    assert control_distances(screen, centroids) == {"SAFE_TARGET": pytest.approx(2)}
    small = rank_targets(screen, centroids, screen.sizes(), min_cells=2)
    assert small["rank"].isna().all()


def test_an_anchor_without_embedding_or_direction_is_refused():
    screen = read()
    for value in (np.nan, 0.0):
        with pytest.raises(EvaeError, match="no embedding to compare with"):
            rank_targets(screen, np.full((2, 4, 3), value), screen.sizes())


def test_cosine_distance_of_nothing():
    found = cosine_distances(np.array([[0.0, 0.0], [np.nan, 1.0], [2.0, 0.0], [-1.0, 0.0]]), np.array([1.0, 0.0]))
    np.testing.assert_array_equal(found, [1, np.nan, 0, 2])


def test_a_sample_takes_from_every_group(labels):
    rows = labels.sample(7, seed=0)
    assert (np.diff(rows) > 0).all()
    taken = np.bincount(labels.codes[rows], minlength=labels.n_groups)
    np.testing.assert_array_equal(taken, np.minimum(7, labels.sizes().ravel()))
