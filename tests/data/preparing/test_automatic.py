"""What is held out and which genes are taken where the user leaves it to `evae prepare`."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import evae
from evae.data.preparing.automatic import MAX_GENES, choose_genes, choose_split, read_labels
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
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "papalexi_thp1.h5ad"
    if not path.is_file():
        pytest.skip(f"the real data are not at {path}")
    obs = ad.read_h5ad(path, backed="r").obs
    split, _ = choose_split(
        obs["bio_rep"].astype(str), obs["perturbation"].astype(str), "non-targeting", stored=stored_splits()
    )
    assert split["cell_type"] == ["rep_3"]
    assert {"STAT1", "JAK2", "CAV1", "ETV7"} < set(split["pert"])
    assert len(split["pert"]) == 12


def test_labels_of_several_files_follow_each_other(screen, screen_file, tmp_path):
    screen[:7].write_h5ad(tmp_path / "few.h5ad")
    found = read_labels([tmp_path / "few.h5ad", screen_file], "perturbation")
    own = screen.obs["perturbation"].astype(str).to_list()
    assert found.to_list() == own[:7] + own
    with pytest.raises(evae.EvaeError, match="no obs column 'line'"):
        read_labels([screen_file], "line")


def test_only_a_wide_file_is_cut_to_variable_genes(screen_file, tmp_path):
    assert choose_genes([screen_file])[0] == "all"
    names = [f"G{i}" for i in range(MAX_GENES + 1)]
    wide = ad.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(index=names))
    wide.write_h5ad(tmp_path / "wide.h5ad")
    genes, reason = choose_genes([tmp_path / "wide.h5ad"])
    assert genes == f"hvg:{MAX_GENES}"
    assert "1,000 most variable of 1,001" in reason
    wide[:, 1:].write_h5ad(tmp_path / "other.h5ad")
    assert choose_genes([tmp_path / "wide.h5ad", tmp_path / "other.h5ad"])[0] == "all"  # those that both measure
