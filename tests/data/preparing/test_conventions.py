"""The column names of public collections are recognised, and nothing is chosen where several could be meant."""

import numpy as np
import pandas as pd
import pytest

from evae.data.preparing.conventions import Named, find_names
from evae.models.contract_evae import EvaeError


def find(**columns: list) -> Named:
    table = pd.DataFrame(columns)

    def labels(key: str) -> tuple[np.ndarray, list[str]]:
        codes, names = pd.factorize(table[key].astype(str))
        return codes, list(names)

    return find_names(table.columns, labels)


def test_scperturb():
    found = find(
        perturbation=["control", "A", "A_B", "B"],
        nperts=[0, 1, 2, 1],
        cell_line=["K562"] * 4,
        celltype=["lymphoblast"] * 4,
        dose_value=[0.0, 1.0, 10.0, 10.0],
    )
    assert (found.perturbation_key, found.cell_type_key, found.control) == ("perturbation", "cell_line", "control")
    said = " / ".join(found.notes)
    assert "the control is 'control', of whose cells nperts is 0" in said
    assert "dose_value holds 3 doses; cells of all doses count as one perturbation" in said
    assert "1 label names several perturbations (nperts) without a '+', such as 'A_B'" in said


def test_pertpy():
    """There `perturbation` says whether, `gene_target` says what."""
    found = find(perturbation=["NT", "Perturbed", "Perturbed"], gene_target=["NT", "STAT1", "JAK2"], cell_type=[*"aab"])
    assert (found.perturbation_key, found.cell_type_key, found.control) == ("gene_target", "cell_type", "NT")


def test_tahoe():
    found = find(drug=["DMSO_TF", "Dabrafenib"], cell_line_id=["CVCL_1", "CVCL_2"], cell_name=["A", "B"], plate=[1, 2])
    assert (found.perturbation_key, found.cell_type_key, found.control) == ("drug", "cell_line_id", "DMSO_TF")


def test_nothing_is_guessed():
    with pytest.raises(EvaeError, match=r'several obs columns could name the perturbation \(gene, drug\).*_key="gene"'):
        find(drug=["DMSO", "x"], gene=["NT", "STAT1"], cell_type=["a", "a"])
    with pytest.raises(EvaeError, match=r"several obs columns could name the cell type \(cell_line, celltype\)"):
        find(perturbation=["ctrl", "x", "x"], cell_line=["a", "b", "a"], celltype=["t", "t", "u"])
    with pytest.raises(EvaeError, match=r"several labels could be the control \('DMSO', 'untreated'\)"):
        find(perturbation=["DMSO", "untreated", "x"], cell_type=["a"] * 3)
    with pytest.raises(EvaeError, match=r"no label has a usual name of a control \(labels are 'wt', 'x', \.\.\.\)"):
        find(perturbation=["wt", "x"], cell_type=["a", "a"])
    with pytest.raises(EvaeError, match=r"several labels could be the control \('a', 'b'\)"):
        find(perturbation=["a", "b", "x"], nperts=[0, 0, 1], cell_type=["a"] * 3)
