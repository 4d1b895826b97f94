"""Held-out pairs: how they are chosen, and that they are predicted without being read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import read_split
from evae.inference.held_out import choose_split, held_out_cells, predict_held_out, read_controls
from evae.training.settings import stored_splits


def labels(table: dict[tuple[str, str], int]) -> tuple[pd.Series, pd.Series]:
    rows = [pair for pair, n in table.items() for _ in range(n)]
    return pd.Series([c for c, _ in rows]), pd.Series([p for _, p in rows])


@pytest.fixture
def table() -> dict[tuple[str, str], int]:
    """B has the most perturbed cells, A the most cells; p5 is too rare in B, p6 elsewhere."""
    cells = {("A", "ctrl"): 900, ("B", "ctrl"): 50}
    for i, (in_a, in_b) in enumerate([(30, 80), (30, 70), (30, 60), (30, 50), (30, 40), (30, 19), (19, 90)]):
        cells[("A", f"p{i}")], cells[("B", f"p{i}")] = in_a, in_b
    return cells


def test_default_is_a_third_of_the_perturbations_of_the_largest_cell_type(table):
    split, reason = choose_split(*labels(table), "ctrl")
    assert split == {
        "cell_type": ["B"],
        "pert": ["p0", "p3"],
    }  # every third of p0 to p4
    assert "a third of the perturbations in 'B'" in reason


def test_what_the_user_names_is_held_out(table):
    split, _ = choose_split(*labels(table), "ctrl", hold_out_cell_type="A", hold_out_perturbations=["p6"])
    assert split == {"cell_type": ["A"], "pert": ["p6"]}
    split, _ = choose_split(*labels(table), "ctrl", hold_out_cell_type="A")
    assert split["cell_type"] == ["A"]
    assert len(split["pert"]) == 2
    split, _ = choose_split(*labels(table), "ctrl", hold_out_perturbations=["p0"])
    assert split == {"cell_type": ["B"], "pert": ["p0"]}


def test_unknown_names_raise(table):
    with pytest.raises(evae.EvaeError, match="unknown cell type 'C'"):
        choose_split(*labels(table), "ctrl", hold_out_cell_type="C")
    with pytest.raises(evae.EvaeError, match="unknown perturbation 'ctrl'"):
        choose_split(*labels(table), "ctrl", hold_out_perturbations=["ctrl"])


def test_a_single_cell_type_gives_a_random_split(table):
    only_b = {pair: n for pair, n in table.items() if pair[0] == "B"}
    assert choose_split(*labels(only_b), "ctrl")[0] == "random:0.1"


def test_too_few_cells_to_hold_out(table):
    with pytest.raises(evae.EvaeError, match="name the held-out perturbations"):
        choose_split(*labels(dict.fromkeys(table, 5)), "ctrl")


def test_stored_split_is_taken_only_if_all_its_names_occur(table, tmp_path):
    known, foreign = tmp_path / "known.json", tmp_path / "foreign.json"
    known.write_text(json.dumps({"cell_type": ["A"], "pert": ["p4", "p1"]}))
    foreign.write_text(json.dumps({"cell_type": ["A"], "pert": ["p4", "q1"]}))
    split, reason = choose_split(*labels(table), "ctrl", stored=[foreign, known])
    assert split == {"cell_type": ["A"], "pert": ["p4", "p1"]}
    assert "'known'" in reason
    assert choose_split(*labels(table), "ctrl", stored=[foreign])[0]["cell_type"] == ["B"]


def test_papalexi_is_recognised():
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "papalexi_thp1.h5ad"
    if not path.is_file():
        pytest.skip(f"the real data are not at {path}")
    import anndata as ad

    obs = ad.read_h5ad(path, backed="r").obs
    split, _ = choose_split(
        obs["bio_rep"].astype(str), obs["perturbation"].astype(str), "non-targeting", stored=stored_splits()
    )
    assert split["cell_type"] == ["rep_3"]
    assert {"STAT1", "JAK2", "CAV1", "ETV7"} < set(split["pert"])
    assert len(split["pert"]) == 12


def test_controls_are_the_training_controls(screen_dataset):
    train = read_split(screen_dataset, "train")
    expected = train[(train.obs["perturbation"] == "control") & (train.obs["cell_type"] == "type_B")]
    found = read_controls(screen_dataset, ["type_B"])
    assert set(found.obs["cell_type"]) == {"type_B"}
    assert list(found.var_names) == list(train.var_names)
    rows = [np.sort([row.tobytes() for row in x.X.toarray().astype(np.float32)]) for x in (expected, found)]
    np.testing.assert_array_equal(*rows)
    with pytest.raises(evae.EvaeError, match="unknown cell type"):
        read_controls(screen_dataset, ["type_C"])


def test_every_held_out_cell_is_predicted_once(pipe, screen_dataset, screen_split):
    real = read_split(screen_dataset, "test")
    predicted = predict_held_out(pipe, screen_dataset, progress=False)
    groups = ["cell_type", "perturbation"]
    expected = real.obs.groupby(groups, observed=True).size().to_dict()
    assert predicted.obs.groupby(groups, observed=True).size().to_dict() == expected
    assert held_out_cells(DatasetInfo.load(screen_dataset)) == expected
    assert set(predicted.obs["support"]) == {"seen apart"}
    own = set(np.asarray(read_controls(screen_dataset, ["type_B"]).X.sum(1)).ravel())
    assert set(predicted.obs["library_size"]) <= own  # never a held-out cell's own


def test_controls_that_a_random_split_holds_out_are_not_predicted(screen_file, tmp_path):
    folder = prepare_dataset(
        screen_file,
        tmp_path / "random",
        perturbation_key="perturbation",
        cell_type_key="cell_type",
        control="control",
        split="random:0.2",
        progress=False,
    )
    real = read_split(folder, "test").obs
    assert (real["perturbation"] == "control").any()
    pairs = held_out_cells(DatasetInfo.load(folder))
    assert sum(pairs.values()) == (real["perturbation"] != "control").sum()
    assert "control" not in {p for _, p in pairs}
