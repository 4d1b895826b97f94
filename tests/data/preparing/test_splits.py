import json

import numpy as np
import pytest

from evae.data.preparing.splits import Split, parse_split
from evae.models.contract_evae import EvaeError

TYPES = ["hepg2", "jurkat", "k562"]
PERTURBATIONS = ["non-targeting", "AAAS", "ABCB7", "STAT1"]


def _read(split, **changes):
    known = {
        "cell_type_key": "cell_line",
        "perturbation_key": "gene",
        "cell_types": TYPES,
        "perturbations": PERTURBATIONS,
        "control": "non-targeting",
    }
    return parse_split(split, **(known | changes))


def test_cross_product_holds_out_exactly_the_pairs():
    split = _read({"cell_type": ["hepg2"], "pert": ["ABCB7", "STAT1"]})
    kinds, given = (a.ravel() for a in np.meshgrid(range(3), range(4), indexing="ij"))
    mask = split.held_out(kinds, given, TYPES, PERTURBATIONS, seed=0)
    pairs = {(TYPES[k], PERTURBATIONS[p]) for k, p in zip(kinds[mask], given[mask], strict=True)}
    assert pairs == {("hepg2", "ABCB7"), ("hepg2", "STAT1")}  # its controls stay in training
    assert split.to_dict() == {"cell_type": ["hepg2"], "pert": ["ABCB7", "STAT1"]}


@pytest.mark.parametrize("columns", [("cell_line", "gene"), ("gene", "cell_line"), ("line", "target"), ("a", "b")])
@pytest.mark.parametrize("swapped", [False, True])
def test_published_form_matches_by_name_else_by_values(tmp_path, columns, swapped):
    values = {
        "cell_line": ["hepg2"],
        "gene": ["AAAS"],
        "line": ["hepg2"],
        "target": ["AAAS"],
        "a": ["hepg2"],
        "b": ["AAAS"],
    }
    order = columns[::-1] if swapped else columns
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"genes": ["x"], "labels": {c: values[c] for c in order}, "dataset": "replogle"}))
    assert _read(path) == Split(cell_types=("hepg2",), perturbations=("AAAS",))


@pytest.mark.parametrize(
    ("name", "keys", "control", "sizes"),
    [
        ("replogle", ("cell_line", "gene"), "non-targeting", (1, 372)),
        ("parse1m", ("cell_type", "cytokine"), "PBS", (1, 27)),
    ],
)
def test_published_files(real_data, name, keys, control, sizes):
    labels = json.loads((real_data / "splits" / f"scldm_{name}_train.json").read_text())["labels"]
    split = parse_split(
        real_data / "splits" / f"scldm_{name}_test.json",
        cell_type_key=keys[0],
        perturbation_key=keys[1],
        cell_types=labels[keys[0]],
        perturbations=labels[keys[1]],
        control=control,
    )
    assert (len(split.cell_types), len(split.perturbations)) == sizes


def test_random_share():
    split = _read("random:0.1")
    codes = np.zeros(1000, dtype=int)
    first, again, other = (split.held_out(codes, codes, TYPES, PERTURBATIONS, seed) for seed in (0, 0, 1))
    assert first.sum() == 100
    assert (first == again).all()
    assert (first != other).any()
    assert split.to_dict() == {"random": 0.1}


def test_no_split():
    assert _read(None).to_dict() == {}
    assert not _read(None).held_out(np.zeros(5, int), np.zeros(5, int), TYPES, PERTURBATIONS, 0).any()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"cell_type": ["hepg3"], "pert": ["AAAS"]}, "unknown cell type 'hepg3'. Did you mean 'hepg2'"),
        ({"cell_type": ["hepg2"], "pert": ["STAT2"]}, "unknown perturbation 'STAT2'. Did you mean 'STAT1'"),
        ({"cell_type": ["hepg2"], "pert": ["AAAS", "AAAS"]}, "more than once"),
        (
            {"cell_type": ["hepg2"], "pert": ["non-targeting", "AAAS"]},
            "holds out the control 'non-targeting'",
        ),
        ({"cell_type": ["hepg2"], "pert": []}, "holds nothing out"),
        ({"cell_type": "hepg2", "pert": ["AAAS"]}, "must list names"),
        ({"cell_type": ["hepg2"], "perturbation": ["AAAS"]}, "must hold"),
        ({"labels": {"cell_line": ["hepg2"]}}, "must hold"),
        ("random:1.5", "is not a split; write random:0.1"),
        ("random", "is not a split; write random:0.1"),
        ("nowhere.json", "no such split file"),
    ],
)
def test_bad_splits(split, message):
    with pytest.raises(EvaeError) as caught:
        _read(split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{not json", "[1, 2]"])
def test_bad_files(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(EvaeError, match=r"split\.json"):
        _read(tmp_path / "split.json")
