"""The cells of `make.py` as writers in R and Julia lay them out, written by h5py after their sources.

No package index that the tests may use serves these writers, so no file of their own is stored here.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

TEXT = h5py.string_dtype()


def seuratdisk(path: Path, counts: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """SeuratDisk 0.0.0.9021: factors as numbers whose levels stand in `__categories`, without a reference to them; a
    missing one is R's smallest integer; logicals as 0, 1 and 2; `raw/var` without any encoding; genes have names only.
    """
    with h5py.File(path, "w") as file:
        file.create_group("raw")
        for place, matrix in (("X", counts), ("raw/X", 2 * counts)):
            _sparse(file, place, matrix, "csr_matrix")
        for place in ("var", "raw/var"):
            table = file.create_group(place)
            table.create_dataset("_index", data=list(var.index), dtype=TEXT)
            table.attrs["_index"] = "_index"
        file["var"].create_dataset("features", data=list(var.index), dtype=TEXT)
        file["var"].attrs.create("column-order", ["features"], dtype=TEXT)
        table = file.create_group("obs")
        table.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "_index"})
        table.create_dataset("_index", data=list(obs.index), dtype=TEXT)
        levels = table.create_group("__categories")
        for name, column in obs.items():
            if isinstance(column.dtype, pd.CategoricalDtype):
                codes = column.cat.codes.to_numpy("i4")
                table[name] = np.where(codes < 0, np.int32(-(2**31)), codes)
                levels.create_dataset(name, data=list(column.cat.categories), dtype=TEXT)
            else:
                _column(table, name, column)
        table["treated"] = np.arange(len(obs), dtype="i4") % 3
        _column(table, "score", pd.Series(np.array([5, -(2**31)] * (len(obs) // 2), dtype="i4")))
        table.attrs.create("column-order", [*obs, "treated", "score"], dtype=TEXT)


def anndatar(path: Path, counts: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """anndataR 1.0: today's encodings, float64 and int32 throughout; a dgCMatrix is stored by column."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for table, frame in (("obs", obs), ("var", var)):
            _modern(file, table, frame, "0.2.0")
        _sparse(file, "X", counts.tocsc(), "csc_matrix")
        file.create_group("raw").attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
        _sparse(file, "raw/X", (2 * counts).tocsc(), "csc_matrix")
        _modern(file, "raw/var", var, "0.2.0")
        for name in ("layers", "obsm", "uns"):
            file.create_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})


def muon_jl(path: Path, counts: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """Muon.jl 0.2: attributes are text of fixed length, columns and the file itself have no encoding."""
    with h5py.File(path, "w") as file:
        for table, frame in (("obs", obs), ("var", var)):
            _modern(file, table, frame, "0.1.0", encoded=False)
        file.create_group("raw")
        _sparse(file, "X", counts, "csr_matrix")
        _sparse(file, "raw/X", 2 * counts, "csr_matrix")
        _modern(file, "raw/var", var, "0.1.0", encoded=False)

        def fix(_: str, stored: Any) -> None:
            for name, value in list(stored.attrs.items()):
                if isinstance(value, str):
                    stored.attrs[name] = np.bytes_(value)
                elif getattr(getattr(value, "dtype", None), "kind", "") == "O":
                    stored.attrs[name] = value.astype("S")

        file.visititems(fix)


LAYOUTS = {"SeuratDisk": seuratdisk, "anndataR": anndatar, "Muon.jl": muon_jl}


def _sparse(file: h5py.File, place: str, matrix: Any, kind: str) -> None:
    group = file.create_group(place)
    group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": np.array(matrix.shape, "i4")})
    group["data"], group["indices"], group["indptr"] = matrix.data.astype("f8"), matrix.indices, matrix.indptr


def _modern(file: h5py.File, place: str, frame: pd.DataFrame, version: str, encoded: bool = True) -> None:
    table = file.create_group(place)
    table.attrs.update({"encoding-type": "dataframe", "encoding-version": version, "_index": "_index"})
    table.attrs.create("column-order", list(frame), dtype=TEXT)
    for name, column in (("_index", frame.index.to_series()), *frame.items()):
        if isinstance(column.dtype, pd.CategoricalDtype):
            group = table.create_group(name)
            group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            _column(group, "categories", column.cat.categories.to_series())
            group["codes"] = column.cat.codes.to_numpy("i4")
        else:
            _column(table, name, column)
        if encoded and isinstance(table[name], h5py.Dataset):
            kind = "string-array" if h5py.check_string_dtype(table[name].dtype) else "array"
            table[name].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})


def _column(table: h5py.Group, name: str, column: pd.Series) -> None:
    if column.dtype.kind in "biuf":
        table[name] = column.to_numpy()
    else:
        table.create_dataset(name, data=list(column), dtype=TEXT)
