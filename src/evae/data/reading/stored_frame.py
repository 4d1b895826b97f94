"""`obs` or `var` of an h5ad file, column by column, as anndata since 0.5 and writers in R and Julia store it.

Categories, text and numbers in HDF5 are read here, other columns by anndata's own reader, whose import takes 26 MB. It
leaves two dialects as they are, which are read here too: tables of one compound type (anndata before 0.7), and factors
as integers whose levels stand in `__categories` (SeuratDisk, which writes no reference to them).
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import pandas as pd

from evae.common.messages import first_line
from evae.models.contract_evae import EvaeError

LEVELS = "__categories"
R_MISSING = -(2**31)  # how R stores a missing integer


class StoredFrame(Mapping[str, Any]):
    """A data frame in an h5ad file or a Zarr store, of which only the columns that are asked for are read.

    Args:
        stored: `obs` or `var`.
        name: what to call it in messages.
        levels: `uns`, where anndata before 0.7 put the categories of the columns.
        index: the column of the names of the rows, where the table itself does not say.

    Raises:
        EvaeError: no data frame.
    """

    def __init__(self, stored: Any, name: str, levels: Any = None, index: str | None = None):
        self._stored, self.name, self._levels = stored, name, {} if levels is None else levels
        self._names: np.ndarray | None = None
        fields = stored.dtype.names if isinstance(stored, h5py.Dataset) else None
        if isinstance(stored, h5py.Dataset):
            if not fields:
                raise EvaeError(f"{name} is no table; write the file with anndata.")
            self._index, self._columns = fields[0], list(fields[1:])
            return
        self._index, *self._columns = columns_of(stored)
        self._index = index or self._index

    @property
    def is_old(self) -> bool:
        """Whether anndata before 0.7 wrote it."""
        return isinstance(self._stored, h5py.Dataset)

    def index(self, rows: slice = slice(None)) -> np.ndarray:
        """The names of the rows as strings, (rows,)."""
        if self.is_old:
            return np.asarray(_decoded(self._stored[self._index][rows]), dtype=object).astype(str)
        stored = self._element(self._index)
        if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "OS":
            return np.asarray(_decoded(stored[rows]), dtype=object)
        if self._names is None:  # read whole, so once
            self._names = np.asarray(self._read(stored, self._index), dtype=object)
        return self._names[rows].astype(str)

    def frame(self) -> pd.DataFrame:
        """All columns in memory. A column that cannot be read is left out, and a warning says so."""
        columns = {}
        for column in self:
            try:
                columns[column] = self[column]
            except EvaeError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        return pd.DataFrame(columns, index=pd.Index(self.index()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, column: object) -> bool:
        return column in self._columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, column: str) -> Any:
        """The values of a column, (rows,); missing ones are NaN or NA.

        Raises:
            KeyError: no such column.
            EvaeError: it cannot be read, or not without doubt.
        """
        if column not in self._columns:
            raise KeyError(column)
        if self.is_old:
            values = self._stored[column]
            levels = self._levels.get(f"{column}_categories")
            return _decoded(values) if levels is None else _named(values, np.atleast_1d(_decoded(levels[()])))
        stored = self._element(column)
        levels = self._stored[LEVELS].get(column) if LEVELS in self._stored else None
        values = _decoded(self._read(stored, column))
        if levels is not None:
            return _named(values, np.asarray(_decoded(self._read(levels, column))))
        if getattr(values, "dtype", None) == np.int32:
            self._refuse_logicals(column, values)
            missing = values == R_MISSING
            return pd.arrays.IntegerArray(values, missing) if missing.any() else values
        return values

    def _element(self, key: str) -> Any:
        if key not in self._stored:
            raise EvaeError(f"{self.name} has no '{key}'; write the file with anndata.")
        return self._stored[key]

    def _read(self, stored: Any, column: str) -> Any:
        plain = isinstance(stored, h5py.Dataset) and not {"encoding-type", "categories"} & set(stored.attrs)
        if isinstance(stored, h5py.Dataset) and (plain or stored.dtype.kind == "S"):  # anndata takes bytes for ASCII
            return stored[()]
        try:
            known = _known(stored)
            if known is not None:
                return known
            from anndata.io import read_elem

            return read_elem(stored)
        except Exception as error:  # anndata raises whatever its readers raise
            reason = first_line(error)
            raise EvaeError(
                f"column '{column}' of {self.name} cannot be read ({reason}); store it as text or numbers, or update "
                "anndata."
            ) from error

    def _refuse_logicals(self, column: str, values: np.ndarray) -> None:
        """SeuratDisk writes FALSE, TRUE and NA as 0, 1 and 2, and nothing that tells them from numbers."""
        named = [c for c in self._columns if c in self._stored and "categories" in self._stored[c].attrs]
        by_seurat = LEVELS in self._stored and not named
        if by_seurat and np.isin(values, (0, 1, 2)).all() and (values == 2).any():
            raise EvaeError(
                f"column '{column}' of {self.name} holds 0, 1 and 2, which are numbers or SeuratDisk's FALSE, TRUE and "
                f"missing; write it as text: in R, object${column} <- as.character(object${column})."
            )


def _known(stored: Any) -> Any:
    """What anndata's reader makes of the commonest columns of HDF5 files; None of others."""
    kind, version = (as_text(stored.attrs.get(f"encoding-{name}", "")) for name in ("type", "version"))
    if not isinstance(stored, (h5py.Dataset, h5py.Group)) or version != "0.2.0":
        return None
    if isinstance(stored, h5py.Group):
        parts = [_known(stored[part]) for part in ("codes", "categories")] if kind == "categorical" else [None]
        if any(part is None for part in parts):
            return None
        return pd.Categorical.from_codes(parts[0], parts[1], ordered=bool(stored.attrs["ordered"]))
    if kind == "string-array":
        return stored.asstr()[()]
    return stored[()] if kind == "array" else None


def columns_of(stored: Any) -> list[str]:
    """The name of the index of a stored data frame, then those of its columns: those it says, else those it has."""
    index = as_text(stored.attrs.get("_index", "_index"))
    said = stored.attrs.get("column-order")
    columns = [key for key in stored if key not in (LEVELS, index)] if said is None else np.atleast_1d(said)
    return [index, *(as_text(column) for column in columns)]


def as_text(value: Any) -> str:
    """An attribute as text; a string of fixed length comes as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _named(codes: Any, levels: np.ndarray) -> pd.Categorical:
    """Levels by number. A number that is none of theirs is a missing value: -1, or -2147483648 from R."""
    codes = np.asarray(codes)
    return pd.Categorical.from_codes(np.where((codes >= 0) & (codes < len(levels)), codes, -1), pd.Index(levels))


def _decoded(values: Any) -> Any:
    """Text that came as bytes, as text."""
    if isinstance(values, bytes):
        return values.decode()
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    if kind == "S":
        return np.char.decode(values, "utf-8").astype(object)
    if kind == "O" and isinstance(values, np.ndarray):
        return np.array([v.decode() if isinstance(v, bytes) else v for v in values.ravel()], dtype=object).reshape(
            values.shape
        )
    return values
