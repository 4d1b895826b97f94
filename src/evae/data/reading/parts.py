"""What the reader of a format gives: a matrix of which rows can be read, and the tables of its cells and genes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp


class Matrix(Protocol):
    """Cells by genes, somewhere; `StoredMatrix` says what each of these means."""

    encoding: str
    shape: tuple[int, int]

    def close(self) -> None: ...
    def convert_to_csr(self) -> None: ...
    def block_end(self, start: int, chunk_size: int) -> int: ...
    def rows(self, start: int, stop: int) -> sp.csr_matrix: ...
    def sample(self, n: int) -> np.ndarray: ...


class Frame(Protocol):
    """Columns of cells or genes, each read when it is asked for; `StoredFrame` and `MemoryFrame` are such."""

    def index(self, rows: slice = slice(None)) -> np.ndarray: ...
    def frame(self) -> pd.DataFrame: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, column: object) -> bool: ...
    def __getitem__(self, column: str) -> Any: ...


class MemoryFrame(Mapping[str, Any]):
    """A table that is in memory, with the face of `StoredFrame`."""

    def __init__(self, table: pd.DataFrame):
        self._table = table

    def index(self, rows: slice = slice(None)) -> np.ndarray:
        return self._table.index[rows].to_numpy().astype(str)

    def frame(self) -> pd.DataFrame:
        return self._table.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self._table.columns))

    def __contains__(self, column: object) -> bool:
        return column in self._table.columns

    def __len__(self) -> int:
        return self._table.shape[1]

    def __getitem__(self, column: str) -> Any:
        return self._table[column].array


class LazyFrame(MemoryFrame):
    """A table whose columns are read when they are asked for.

    Args:
        names: of its rows, (rows,).
        columns: the names of its columns.
        read: gives a column.
    """

    def __init__(self, names: np.ndarray, columns: list[str], read: Callable[[str], pd.Series]):
        super().__init__(pd.DataFrame(index=pd.Index(names.astype(str))))
        self._columns, self._read = columns, read

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame({name: self[name] for name in self}, index=self._table.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, column: object) -> bool:
        return column in self._columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, column: str) -> Any:
        if column not in self._columns:
            raise KeyError(column)
        return self._read(column).array


@dataclass
class Parts:
    """An opened file or folder.

    Attributes:
        kind: the format, such as "h5ad".
        layer: which of `layers` is read.
        where: where in the file the matrix stands, for messages.
        matrix: cells by genes.
        obs, var: the columns of its cells and genes.
        layers: all matrices that the file has, as the argument `layer` names them.
        close: lets go of the file.
        notes: sentences on what was left out, or found.
        title: what to call it in messages; its path if "".
        counts_in: gives those of `layers` that hold raw counts, by some of their values.
    """

    kind: str
    where: str
    matrix: Matrix
    obs: Frame
    var: Frame
    layer: str
    layers: list[str]
    close: Callable[[], None]
    notes: list[str] = field(default_factory=list)
    counts_in: Callable[[], list[str]] = list
    title: str = ""
