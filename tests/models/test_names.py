"""Names of perturbations that hold a plus or a comma themselves, and names that stand for the same perturbation."""

import pytest

from evae.models.contract_evae import parts_of, split_names
from evae.models.processing_evae import EvaeProcessor


@pytest.mark.parametrize(
    ("name", "known", "parts"),
    [
        ("KLF1+TGFBR2", {"KLF1", "TGFBR2"}, ["KLF1", "TGFBR2"]),
        ("A+ctrl", {"A"}, ["A"]),
        ("ctrl", {"A"}, ["ctrl"]),
        ("ctrl+ctrl", set(), ["ctrl+ctrl"]),
        ("A+C", {"A"}, ["A", "C"]),  # C is a part because A is one
        ("TNF+IL4", set(), ["TNF+IL4"]),
        ("(+)-ibuprofen", {"(-)-ibuprofen", "DMSO"}, ["(+)-ibuprofen"]),
        ("(+)-ibuprofen", {"(+)-ibuprofen"}, ["(+)-ibuprofen"]),
        ("TNF+(+)-ibuprofen", {"TNF"}, ["TNF", "(+)-ibuprofen"]),
        ("(+)-ibuprofen+TNF", {"(+)-ibuprofen"}, ["(+)-ibuprofen", "TNF"]),
        ("(+)-ibuprofen+(+)-menthol", {"(+)-ibuprofen", "(+)-menthol"}, ["(+)-ibuprofen", "(+)-menthol"]),
        ("A+B+C", {"A", "B", "C", "A+B"}, ["A", "B", "C"]),
        ("A + B", {"A", "B"}, ["A", "B"]),
        ("Na+", {"Na"}, ["Na+"]),
    ],
)
def test_parts_are_cut_at_known_names(name, known, parts):
    assert parts_of(name, known, "ctrl") == parts
    assert parts_of(name, known | {name}, "ctrl") == parts


def test_the_sign_may_be_another_or_none():
    assert parts_of("A_B", {"A", "B"}, sign="_") == ["A", "B"]
    assert parts_of("A+B", {"A", "B"}, sign="_") == ["A+B"]
    assert parts_of("A+B", {"A", "B"}, sign="") == ["A+B"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("STAT1,JAK2", ["STAT1", "JAK2"]),
        ("STAT1, JAK2,STAT1", ["STAT1", "JAK2"]),
        ("1,10-decanediol,B", ["1,10-decanediol", "B"]),
        ("B,1,10-decanediol", ["B", "1,10-decanediol"]),
        ("1,10-decanediol", ["1,10-decanediol"]),
        ("X,Y", ["X", "Y"]),
    ],
)
def test_a_comma_in_a_known_name_does_not_part_it(text, names):
    assert split_names(text, {"1,10-decanediol", "B", "STAT1", "JAK2"}) == names


@pytest.fixture
def processor() -> EvaeProcessor:
    pairs = {"T1": ["ctrl", "A+ctrl", "A+B"], "T2": ["ctrl", "B+ctrl"]}
    names = ["ctrl", "A+ctrl", "B+ctrl", "A+B"]
    return EvaeProcessor(
        ["G1"], None, names, ["T1", "T2"], perturbation_units=["ctrl", "A", "B"], control="ctrl", training_pairs=pairs
    )


@pytest.mark.parametrize(
    ("one", "other"), [("A", "A+ctrl"), ("ctrl+A", "A+ctrl"), ("B+A", "A+B"), ("A+B+ctrl", "A+B"), ("B", "B+ctrl")]
)
def test_names_of_the_same_parts_are_the_same_perturbation(processor, one, other):
    ids = processor.perturbation_ids([one, other])
    assert ids[0].sort().values.tolist() == ids[1].sort().values.tolist()
    for cell_type in processor.cell_types:
        assert processor.support(cell_type, one) == processor.support(cell_type, other)


def test_support(processor):
    assert processor.supports([("T1", "B+A"), ("T2", "A+B"), ("T2", "B"), ("T1", "B"), ("T3", "A"), ("T1", "C")]) == [
        *("seen together", "seen apart", "seen together", "seen apart", "unseen", "unseen")
    ]
