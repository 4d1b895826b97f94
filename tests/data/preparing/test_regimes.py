"""Short names of splits: what they hold out, what they leave out, and that training never sees either."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.data.format import Dataset
from evae.data.preparing.known_labels import Known
from evae.data.preparing.prepare import prepare_dataset
from evae.data.preparing.regimes import expand, hold_out
from evae.data.streaming.split_anndata import read_split
from evae.models.contract_evae import EvaeError

TYPES = ["B", "CD14 Mono", "NK, bright"]
SINGLES = ["KLF1", "MAP2K3", "MAP2K6", "SGK1", "TBX3", "TGFBR2"]
DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "SGK1+TBX3", "MAP2K3+TGFBR2", "KLF1+SGK1"]
NAMES = ["ctrl", *SINGLES, *DOUBLES]


def _known(seed=0, cells=None):
    table = np.full((len(TYPES), len(NAMES)), 30) if cells is None else cells
    return Known(TYPES, NAMES, "ctrl", table, seed)


def test_an_unseen_cell_type_loses_all_its_perturbed_cells():
    found = hold_out("unseen-cell-type:NK, bright,B", _known())
    assert set(found["cell_types"]) == {"NK, bright", "B"}  # a name may hold a comma
    assert set(found["perturbations"]) == {*SINGLES, *DOUBLES}


@pytest.mark.parametrize("which", ["0.4", "KLF1,SGK1"])
def test_training_does_not_see_an_unseen_perturbation_in_a_combination(which):
    found = hold_out(f"unseen-perturbation:{which}", _known())
    chosen = set(found["perturbations"])
    assert len(chosen) == 2
    assert chosen <= set(SINGLES)
    left = set(NAMES) - chosen - {p for _, p in found["left_out"]}
    assert not any(set(name.split("+")) & chosen for name in left)
    assert left - {"ctrl"}


def test_unseen_both_leaves_the_rest_of_row_and_column_out():
    found = hold_out("unseen-both:NK, bright:KLF1", _known())
    assert (found["cell_types"], found["perturbations"]) == (("NK, bright",), ("KLF1",))
    trained = {(c, p) for c in TYPES for p in NAMES} - {("NK, bright", "KLF1"), *found["left_out"]}
    assert {p for c, p in trained if c == "NK, bright"} == {"ctrl"}
    assert not any("KLF1" in p.split("+") for _, p in trained)
    assert hold_out("unseen-both", _known())["cell_types"] == ("B",)


def test_unseen_each_holds_out_row_and_column():
    found = hold_out("unseen-each:NK, bright:KLF1", _known())
    held_out, left_out = set(found["pairs"]), set(found["left_out"])
    trained = {(c, p) for c in TYPES for p in NAMES} - held_out - left_out
    assert {("NK, bright", "KLF1"), ("NK, bright", "SGK1"), ("B", "KLF1")} <= held_out
    assert {p for c, p in trained if c == "NK, bright"} == {"ctrl"}
    assert not any("KLF1" in p.split("+") for _, p in trained)
    assert left_out == {(c, p) for c in TYPES for p in DOUBLES if "KLF1" in p}
    assert len(trained) == len(TYPES) + 2 * (len(NAMES) - 2 - 3)  # controls; the rest of the other two


@pytest.mark.parametrize("wanted", ["2", "1", "0,1", "0,1,2"])
def test_doubles_are_held_out_by_how_many_of_the_two_are_seen(wanted):
    for seed in range(5):
        found = hold_out(f"doubles:{wanted}-seen", _known(seed))
        assert set(found["perturbations"]) <= set(DOUBLES)
        out = {*found["perturbations"], *(p for _, p in found["left_out"])}
        trained = {part for name in set(NAMES) - out for part in name.split("+")}
        seen = {sum(part in trained for part in name.split("+")) for name in found["perturbations"]}
        assert seen == set(map(int, wanted.split(",")))


def test_folds_part_the_pairs_and_keep_a_perturbation_apart():
    cells = np.full((len(TYPES), len(NAMES)), 30)
    cells[0, 3] = 5  # too few to be held out
    folds = [hold_out(f"k-fold:{i}/4", _known(cells=cells))["pairs"] for i in (1, 2, 3, 4)]
    pairs = [pair for fold in folds for pair in fold]
    assert len(pairs) == len(set(pairs)) == len(TYPES) * (len(NAMES) - 1) - 1
    for fold in folds:
        assert len({p for _, p in fold}) == len(fold)
    cells[1:, 1] = 0  # of one cell type alone: held out, it would be unseen
    folds = [hold_out(f"k-fold:{i}/4", _known(cells=cells))["pairs"] for i in (1, 2, 3, 4)]
    assert NAMES[1] not in {p for fold in folds for _, p in fold}
    cells[1:] = 0
    assert len(hold_out("k-fold:1/2", _known(cells=cells))["pairs"]) == 6  # of perturbations in a single cell type


def test_what_a_study_makes_of_one_text():
    assert list(expand("k-fold:3", _known())) == ["k-fold:1/3", "k-fold:2/3", "k-fold:3/3"]
    named = expand("leave-one-cell-type-out:NK, bright,B", _known())
    assert named == {"NK, bright": "unseen-cell-type:NK, bright", "B": "unseen-cell-type:B"}
    cells = np.full((len(TYPES), len(NAMES)), 30)
    cells[1, 0] = 3  # hardly a control
    assert list(expand("leave-one-cell-type-out", _known(cells=cells))) == ["B", "NK, bright"]
    assert expand("unseen-both:B", _known()) == {"unseen-both:B": "unseen-both:B"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unseen-cell-type:CD41 Mono", "unknown cell type 'CD41 Mono'. Did you mean"),
        ("unseen-cell-type:", "name the cell type"),
        ("unseen-cell-type:B,CD14 Mono,NK, bright", "no perturbed cell is left to train on"),
        ("unseen-perturbation:1.5", "give a share between 0 and 1"),
        ("unseen-perturbation:KLF2", "unknown perturbation 'KLF2'"),
        ("unseen-perturbation:ctrl", "is the control"),
        ("unseen-both:B:KLF2", "unknown perturbation 'KLF2'"),
        ("unseen-each:C:0.2", "unknown cell type 'C'"),
        ("doubles:3-seen", "write how many of the two"),
        ("donors:patient", "write the obs column and its values"),
        ("k-fold:5", "say which part to hold out, as k-fold:1/5"),
        ("k-fold:6/5", "is no part of 5"),
        ("k-fold:1/99", "ask for fewer parts"),
        ("leave-one-cell-type-out:B", "is several splits"),
    ],
)
def test_bad_short_names(text, message):
    with pytest.raises(EvaeError, match=message) as caught:
        hold_out(text, _known())
    assert "\n" not in str(caught.value)


def _prepared(screen, tmp_path, split):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    return prepare_dataset(tmp_path / "screen.h5ad", tmp_path / "data", split=split, progress=False, **keys)


def _labels(folder):
    dataset = Dataset.open(folder)
    found = {}
    for split in ("train", "validation", "test"):
        obs = read_split(dataset, split).obs
        found[split] = set(zip(obs["cell_type"].astype(str), obs["perturbation"].astype(str), strict=True))
    return dataset.info, found["train"] | found["validation"], found["test"]


def test_prepared_pairs_left_out_are_nowhere(screen, tmp_path):
    name = next(p for p in screen.obs["perturbation"].cat.categories if p != "control")
    info, trained, tested = _labels(_prepared(screen, tmp_path, f"unseen-both:type_B:{name}"))
    assert tested == {("type_B", name)}
    assert {p for c, p in trained if c == "type_B"} == {"control"}
    assert name not in {p for _, p in trained}
    assert info.held_out_pairs() == [("type_B", name)]
    assert sum(info.n_cells.values()) < screen.n_obs
    assert info.statistics["dropped_cells"] == 0  # these were not asked for


def test_what_is_left_out_everywhere_is_no_name_of_the_dataset(screen, tmp_path):
    cells = screen.copy()
    names = [p for p in cells.obs["perturbation"].cat.categories if p != "control"]
    renamed = dict(zip(names, ["STAT1", "STAT1+JAK2", "JAK2", "IRF1"], strict=True))
    cells.obs["perturbation"] = pd.Categorical(cells.obs["perturbation"].astype(str).replace(renamed))
    info, trained, tested = _labels(_prepared(cells, tmp_path, "unseen-perturbation:STAT1"))
    assert info.perturbations == ["control", "IRF1", "JAK2", "STAT1"]
    assert {p for _, p in tested} == {"STAT1"}
    assert {p for _, p in trained} == {"control", "IRF1", "JAK2"}
    expected = cells.obs[cells.obs["perturbation"] == "JAK2"].index
    labels = pd.concat([read_split(tmp_path / "data", split).obs for split in ("train", "validation")])["perturbation"]
    assert set(labels[labels == "JAK2"].index) == set(expected)


def test_prepared_folds_and_donors(screen, tmp_path):
    (tmp_path / "fold").mkdir()
    info, trained, tested = _labels(_prepared(screen, tmp_path / "fold", "k-fold:1/4"))
    assert tested == {tuple(pair) for pair in info.split["pairs"]} == set(info.held_out_pairs())
    assert not trained & tested
    cells = screen.copy()
    cells.obs["patient"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 3 == 0, "P1", "P2"))
    folder = _prepared(cells, tmp_path, "donors:patient:P1")
    names = set(read_split(folder, "test").obs_names)
    perturbed = cells.obs["perturbation"] != "control"
    assert names == set(cells.obs_names[(cells.obs["patient"] == "P1") & perturbed])
    (tmp_path / "bad").mkdir()
    with pytest.raises(EvaeError, match="unknown value of obs column 'patient' 'P3'"):
        _prepared(cells, tmp_path / "bad", "donors:patient:P3")


def test_on_the_command_line(run, screen, screen_file, tmp_path):
    out = tmp_path / "data"
    outcome = run("prepare", screen_file, "--control", "control", "--split", "k-fold:1/4", "--out", out)
    assert outcome.code == 0
    assert "held out: 2 (cell type, perturbation) pairs" in outcome.out
    outcome = run("prepare", screen_file, "--control", "control", "--split", "k-fold:4", "--out", tmp_path / "b")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert not (tmp_path / "b").exists()
    twice = ad.concat([screen, screen[:50]], keys=["a", "b"], index_unique="-")
    twice.write_h5ad(tmp_path / "twice.h5ad")
    outcome = run(
        "prepare", tmp_path / "twice.h5ad", "--control", "control", "--split", "random:0.2", "--out", out / "c"
    )
    assert "have exactly the counts of a held-out cell" in outcome.out
