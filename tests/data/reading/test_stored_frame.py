"""obs and var of h5ad files as anndata versions and other writers store them."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem, write_elem

from evae.data.reading.anndata_file import read_h5ad
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.stored_frame import StoredFrame
from evae.models.contract_evae import EvaeError

CELLS, GENES = ["c0", "c1", "c2"], ["A", "B"]


@pytest.fixture
def path(tmp_path):
    var = pd.DataFrame({"gene_ids": ["ENSG00000000001", "ENSG00000000002"], "n_cells": [3, 2]}, index=GENES)
    obs = pd.DataFrame({"label": pd.Categorical(["x", "y", "x"])}, index=CELLS)
    ad.AnnData(np.ones((3, 2), np.float32), obs=obs, var=var).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def replace_index(path, values):
    """Store the index of both tables anew; `values` makes an element of an array of text."""
    with h5py.File(path, "r+") as file:
        for table, names in (("obs", CELLS), ("var", GENES)):
            group = file[table]
            key = group.attrs["_index"]
            del group[key]
            write_elem(group, key, values(np.array(names, object)))


@pytest.mark.parametrize(
    "values",
    [lambda names: names, pd.Categorical, lambda names: names.astype("S4")],
    ids=["strings", "categories", "bytes"],
)
def test_every_index(path, values):
    replace_index(path, values)
    source = FileCounts(path)
    assert source.genes == GENES
    assert source.cell_ids(1, 3).tolist() == CELLS[1:]


COLUMNS = {
    "categories": pd.Categorical(["b", "a", None], categories=["b", "a", "never"]),
    "ordered": pd.Categorical([2, 1, 2], ordered=True),
    "text": np.array(["x", "", "ü"], dtype=object),
    "numbers": np.array([1.5, np.nan, 3]),
    "whole": np.array([1, 2, 3], dtype=np.int8),
    "truth": np.array([True, False, True]),
    "masked": pd.array([1, None, 3], dtype="Int64"),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_is_as_anndata_reads_it(path, column, monkeypatch):
    with h5py.File(path, "r+") as file:
        write_elem(file["obs"], column, COLUMNS[column])
        file["obs"].attrs["column-order"] = ["label", column]
        expected = read_elem(file[f"obs/{column}"])
        if column != "masked":  # the common ones do without anndata
            monkeypatch.setattr("anndata.io.read_elem", lambda *_: pytest.fail("read by anndata"))
        found = StoredFrame(file["obs"], "obs")[column]
    assert type(found) is type(expected)
    pd.testing.assert_series_equal(pd.Series(found), pd.Series(expected))
    pd.testing.assert_series_equal(pd.Series(found), pd.Series(COLUMNS[column]), check_dtype=column != "masked")


def test_a_nullable_index(path):
    """As anndata 0.13 writes it with pandas 3: a group of values and mask."""
    with h5py.File(path, "r+") as file:
        for table, names in (("obs", CELLS), ("var", GENES)):
            group = file[table]
            key = group.attrs["_index"]
            del group[key]
            stored = group.create_group(key)
            kind = {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0", "na-value": "NaN"}
            stored.attrs.update(kind)
            write_elem(stored, "values", np.array(names, object))
            write_elem(stored, "mask", np.zeros(len(names), bool))
    source = FileCounts(path)
    assert source.genes == GENES
    assert source.cell_ids(0, 2).tolist() == CELLS[:2]


def test_columns_that_are_not_needed_are_not_read(path):
    with h5py.File(path, "r+") as file:
        file["var/n_cells"].attrs["encoding-type"] = "of a later version"
    assert FileCounts(path).gene_columns.ensembl_ids == ["ENSG00000000001", "ENSG00000000002"]
    with h5py.File(path) as file:
        frame = StoredFrame(file["var"], "var")
        assert list(frame) == ["gene_ids", "n_cells"]
        assert len(frame) == 2
        with pytest.raises(KeyError):
            frame["label"]


def test_tables_without_the_marks_of_anndata(path):
    """Other writers leave the attributes out; then the columns are what is stored."""
    with h5py.File(path, "r+") as file:
        for stored in (file, file["obs"], file["var"]):
            for mark in list(stored.attrs):
                del stored.attrs[mark]
    source = FileCounts(path)
    assert source.genes == GENES
    assert [source.labels("label")[1][c] for c in source.labels("label")[0]] == ["x", "y", "x"]


class TestUnreadableColumns:
    """A column that is not needed does not matter; one that is needed is named, with its file."""

    @pytest.fixture
    def later(self, path):
        with h5py.File(path, "r+") as file:
            for table in ("obs", "var"):
                write_elem(file[table], "thing", np.arange(len(file[table]["_index"])))
                file[table]["thing"].attrs["encoding-type"] = "of a later version"
                file[table].attrs["column-order"] = [*file[table].attrs["column-order"], "thing"]
        return path

    def test_only_what_is_needed_is_read(self, later):
        source = FileCounts(later)
        assert source.genes == GENES
        assert source.labels("label")[1] == ["x", "y"]
        with pytest.raises(EvaeError, match=r"column 'thing' of obs of .*cells\.h5ad cannot be read \(.*later version"):
            source.labels("thing")

    def test_cells_of_a_file(self, later):
        with pytest.warns(UserWarning, match="left out: column 'thing' of obs"):
            cells = read_h5ad(later, needed=("label", None, "nowhere"))
        assert list(cells.obs) == ["label"]
        assert list(cells.var_names) == GENES
        with pytest.raises(EvaeError, match="column 'thing' of obs"):
            read_h5ad(later, needed=("thing",))


def test_tables_before_anndata_07(path):
    """Compound tables; a column of a single category has it as one text."""
    with h5py.File(path, "r+") as file:
        del file["obs"]
        kinds = [("index", "S2"), ("label", "i1"), ("n", "i4")]
        file["obs"] = np.array([(b"c0", 0, 3), (b"c1", -1, 4), (b"c2", 0, 5)], kinds)
        file["uns/label_categories"] = "x"
    source = FileCounts(path)
    assert source.cell_ids(1, 3).tolist() == CELLS[1:]
    assert source.labels("n")[1] == ["3", "4", "5"]
    with pytest.raises(EvaeError, match=r"missing .* in 1 cell;"):
        source.labels("label")
    assert source.obs.frame()["label"].tolist()[::2] == ["x", "x"]


def test_text_of_bytes(path):
    with h5py.File(path, "r+") as file:
        del file["obs/label"]
        file["obs/label"] = np.array([b"x", b"\xc3\xa9", b"x"])
    assert FileCounts(path).labels("label")[1] == ["x", "é"]
