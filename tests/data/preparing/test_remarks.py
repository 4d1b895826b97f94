"""What `prepare` says of perturbations that are hardly or not trained on, and of cells that stand twice."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest

from evae.data.format import DatasetInfo
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.models.contract_evae import EvaeError
from evae.training.conditions import perturbation_vocabulary

KEYS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control", "progress": False}


@pytest.fixture(scope="module")
def cells():
    return simulate_perturb_seq(n_cells=240, n_genes=30, n_cell_types=2, n_perturbations=3, seed=3)


def treated(cells):
    return [str(p) for p in cells.obs["perturbation"].cat.categories if p != "control"]


def prepared(cells, folder, **options):
    cells.write_h5ad(folder / "cells.h5ad")
    return prepare_dataset(folder / "cells.h5ad", folder / "data", **KEYS, **options)


def remarks(dataset):
    return json.loads((dataset / "dataset.json").read_text())["remarks"]


def test_nothing_is_said_of_good_cells(cells, tmp_path, capsys):
    first = treated(cells)[0]
    dataset = prepared(cells, tmp_path, split={"cell_type": ["type_A"], "pert": [first]})
    assert remarks(dataset) == []
    assert "note:" not in capsys.readouterr().err
    assert perturbation_vocabulary(DatasetInfo.load(dataset)).n_units == 4


def test_a_combination_of_perturbations_that_are_trained_on_can_be_predicted(cells, tmp_path):
    first, second, third = treated(cells)
    combined = cells.copy()
    combined.obs["perturbation"] = combined.obs["perturbation"].cat.rename_categories({third: f"{first}+{second}"})
    dataset = prepared(combined, tmp_path, split="doubles:2-seen")
    assert DatasetInfo.load(dataset).split["pert"] == [f"{first}+{second}"]
    assert remarks(dataset) == []


def test_a_perturbation_that_is_held_out_as_a_whole(cells, tmp_path, capsys):
    """It is said, and no prior learns it that has nothing to learn it from."""
    first, second, _ = treated(cells)
    dataset = prepared(cells, tmp_path, split={"cell_type": ["type_A", "type_B"], "pert": [first]})
    (said,) = remarks(dataset)
    assert said.startswith(f"1 perturbation ({first}): no cell is left to train on")
    assert f"note: {said}" in capsys.readouterr().err
    info = DatasetInfo.load(dataset)
    with pytest.raises(EvaeError, match=rf"there are 1 \({first}\); give perturbation_features="):
        perturbation_vocabulary(info)
    table = tmp_path / "vectors.csv"
    table.write_text(f"name,a,b\n{second},1,2\n")
    with pytest.raises(EvaeError, match="without a training cell or a feature vector"):
        perturbation_vocabulary(info, str(table))
    table.write_text(f"name,a,b\n{second},1,2\n{first},0,1\n")
    assert first in perturbation_vocabulary(info, str(table)).units


def test_a_combination_is_learned_from_its_parts(cells, tmp_path):
    first, second, third = treated(cells)
    both = f"{first}+{second}"
    cells = cells.copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).replace({third: both})
    dataset = prepared(cells, tmp_path, split={"cell_type": ["type_A", "type_B"], "pert": [both]})
    perturbation_vocabulary(DatasetInfo.load(dataset))
    with pytest.raises(EvaeError, match="without a training cell"):  # one name where nothing is a combination
        perturbation_vocabulary(DatasetInfo.load(dataset), sign="")


@pytest.mark.parametrize("split", [None, "random:0.5"])
def test_a_perturbation_with_one_cell_is_trained_on_and_said(cells, tmp_path, split):
    """Whatever the seed draws for validation and test."""
    name = treated(cells)[0]
    rows = np.flatnonzero((cells.obs["perturbation"] == name).to_numpy())
    few = cells[np.setdiff1d(np.arange(cells.n_obs), rows[1:])].copy()
    for seed in range(8):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        dataset = prepared(few, tmp_path, split=split, seed=seed)
        counts = json.loads((dataset / "dataset.json").read_text())["cell_counts"]
        assert sum(row.get(name, 0) for row in counts["train"].values()) == 1
        (said,) = remarks(dataset)
        assert said.startswith(f"1 perturbation ({name} (1)): fewer than 10 training cells")


def test_control_cells_only(cells, tmp_path):
    dataset = prepared(cells[cells.obs["perturbation"] == "control"].copy(), tmp_path)
    (said,) = remarks(dataset)
    assert said.startswith("all cells are controls")


def test_one_file_given_twice(cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "a.h5ad")
    for again in ("a.h5ad", "link.h5ad"):
        with pytest.raises(EvaeError, match=r"is the same file as .*give every file once"):
            prepare_dataset([tmp_path / "a.h5ad", tmp_path / again], tmp_path / "data", **KEYS)
    shutil.copy(tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    dataset = prepare_dataset([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "data", **KEYS)
    (said,) = remarks(dataset)
    assert "cells stand more than once, with the same name and the same counts" in said
    assert int(said.split()[0]) == sum(DatasetInfo.load(dataset).n_cells.values()) / 2
    assert f"'{cells.obs_names[0]}' in b.h5ad" in said


def test_other_cells_of_the_same_name_are_no_copies(cells, tmp_path):
    other = simulate_perturb_seq(n_cells=240, n_genes=30, n_cell_types=2, n_perturbations=3, seed=3)
    other.X = other.X * 2
    other.obs_names = cells.obs_names
    twice = ad.concat([cells[:40], cells[30:]])  # ten of one file
    twice.write_h5ad(tmp_path / "a.h5ad")
    other.write_h5ad(tmp_path / "b.h5ad")
    dataset = prepare_dataset([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "data", **KEYS)
    (said,) = remarks(dataset)
    assert said.startswith("10 cells stand more than once")
    assert f"'{cells.obs_names[30]}' in a.h5ad" in said
