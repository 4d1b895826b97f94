"""A table of what to predict."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evae.inference.requests import requested_pairs
from evae.models.contract_evae import EvaeError


@pytest.fixture
def controls():
    obs = pd.DataFrame({"cell_type": ["T", "T", "B", None]}, index=list("abcd"))
    return ad.AnnData(np.ones((4, 2), np.float32), obs)


def asked(rows, controls=None, **columns):
    return requested_pairs(pd.DataFrame(rows, **columns), controls, "cell_type")


def test_every_row_is_a_pair_in_its_order():
    rows = {"cell_type": ["B", "T"], "perturbation": ["P", "Q"], "n_cells": [3, 5.0]}
    assert asked(rows) == {("B", "P"): 3, ("T", "Q"): 5}


def test_what_is_left_out_comes_from_the_controls(controls):
    assert asked({"perturbation": ["P"]}, controls) == {("T", "P"): 2, ("B", "P"): 1}
    rows = {"perturbation": ["P", "Q"], "cell_type": ["T", "T"], "n_cells": [None, 7]}
    assert asked(rows, controls) == {("T", "P"): 2, ("T", "Q"): 7}


def test_names_in_a_file_are_texts_as_they_stand(tmp_path, controls):
    (tmp_path / "r.csv").write_text('perturbation,cell_type,n_cells\n007,T,2\nNA,T,\n"1,10-x",T,1\n')
    expected = {("T", "007"): 2, ("T", "NA"): 2, ("T", "1,10-x"): 1}
    assert requested_pairs(tmp_path / "r.csv", controls, "cell_type") == expected
    pd.DataFrame({"perturbation": ["007"], "n_cells": pd.array([None], dtype="Int64")}).to_parquet(
        tmp_path / "r.parquet"
    )
    assert requested_pairs(str(tmp_path / "r.parquet"), controls, "cell_type") == {("T", "007"): 2, ("B", "007"): 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"cell_type": ["T"]}, "no column 'perturbation'"),
        ({"perturbation": ["P"], "celltype": ["T"]}, "Did you mean 'cell_type'"),
        ({"perturbation": []}, "hold no row"),
        ({"perturbation": ["P", None], "cell_type": ["T", "T"], "n_cells": [1, 1]}, "leave a perturbation empty"),
        ({"perturbation": ["P", "P"], "cell_type": ["T", "T"], "n_cells": [1, 1]}, "P in T twice"),
        ({"perturbation": ["P"], "cell_type": ["T"], "n_cells": [1.5]}, "n_cells '1.5' for P in T"),
        ({"perturbation": ["P"], "cell_type": ["T"], "n_cells": ["many"]}, "whole number"),
        ({"perturbation": ["P"], "cell_type": ["T"], "n_cells": [0]}, "from 1 on"),
        ({"perturbation": ["P"], "cell_type": ["T"]}, "without controls"),
        ({"perturbation": ["P"], "n_cells": [3]}, "add the column cell_type"),
    ],
)
def test_what_is_wrong_is_named(rows, message):
    with pytest.raises(EvaeError, match=message):
        asked(rows)


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "r.h5ad").write_bytes(b"x")
    (tmp_path / "r.parquet").write_bytes(b"x")
    for name, message in {"no.csv": "do not exist", "r.h5ad": "no csv, tsv", "r.parquet": "cannot be read"}.items():
        with pytest.raises(EvaeError, match=message):
            requested_pairs(tmp_path / name, None, None)
