"""Held-out pairs are predicted without being read."""

import numpy as np
import pytest

import evae
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import read_split
from evae.inference.held_out import held_out_cells, predict_held_out, read_controls


def test_controls_are_the_training_controls(screen_dataset):
    train = read_split(screen_dataset, "train")
    expected = train[(train.obs["perturbation"] == "control") & (train.obs["cell_type"] == "type_B")]
    found = read_controls(screen_dataset, ["type_B"])
    assert set(found.obs["cell_type"]) == {"type_B"}
    assert list(found.var_names) == list(train.var_names)
    assert set(found.obs_names) == set(expected.obs_names)
    assert (found[expected.obs_names].X != expected.X).nnz == 0
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
