"""`obs` or `var` of an h5ad file, column by column."""

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem

from evae.models.contract_evae import EvaeError


class StoredFrame(Mapping[str, Any]):
    """A data frame in an h5ad file, of which only the columns that are asked for are read.

    Args:
        group: `obs` or `var`.
        name: what to call it in messages.

    Raises:
        EvaeError: no data frame, or one that anndata wrote before 0.7.
    """

    def __init__(self, group: h5py.Group | h5py.Dataset, name: str):
        if isinstance(group, h5py.Dataset):
            raise EvaeError(f"{name} was written by an anndata before 0.7; read and write it once anew.")
        self._group, self.name = group, name
        self._index = _text(group.attrs.get("_index", "_index"))
        stored = [key for key in group if key not in ("__categories", self._index)]
        self._columns = [_text(column) for column in group.attrs.get("column-order", stored)]

    def index(self, rows: slice = slice(None)) -> np.ndarray:
        """The names of the rows as strings, (rows,)."""
        stored = self._element(self._index)
        if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "OS":
            return np.asarray(stored.asstr()[rows], dtype=object)
        return np.asarray(read_elem(stored), dtype=object)[rows].astype(str)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, column: str) -> Any:
        if column not in self._columns:
            raise KeyError(column)
        stored = self._element(column)
        if "__categories" in self._group and "categories" in stored.attrs:  # as anndata wrote before 0.8
            return read_elem(self._group)[column]
        return read_elem(stored)

    def _element(self, key: str) -> Any:
        if key not in self._group:
            raise EvaeError(f"{self.name} has no '{key}'; write the file with anndata.")
        return self._group[key]


def _text(value: Any) -> str:
    """An attribute as text; a string of fixed length comes as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
