"""The table of cells of a file, with columns from elsewhere: a table of the user, or the obs of a whole h5mu file.

Rows are brought together by the names of cells; a cell that the other table lacks has missing values there.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evae.common.messages import number_of
from evae.data.reading.parts import Frame, MemoryFrame
from evae.models.contract_evae import EvaeError


class JoinedFrame(Mapping[str, Any]):
    """A table of cells with columns of another one.

    Args:
        own: the table.
        more: the other one.
        names: of the columns to take from it, new name -> name there; they come before columns of the same name.
    """

    def __init__(self, own: Frame, more: Frame, names: Mapping[str, str]):
        self._own, self._more, self._names = own, more, names
        self._rows: np.ndarray | None = None

    def index(self, rows: slice = slice(None)) -> np.ndarray:
        return self._own.index(rows)

    def frame(self) -> pd.DataFrame:
        return self._own.frame().assign(**{name: self[name] for name in self._names})

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._own if name not in self._names)
        yield from self._names

    def __contains__(self, column: object) -> bool:
        return column in self._names or column in self._own

    def __len__(self) -> int:
        return len(list(self))

    def __getitem__(self, column: str) -> Any:
        if column not in self._names:
            return self._own[column]
        if self._rows is None:
            self._rows = pd.Index(self._more.index()).get_indexer(pd.Index(self._own.index()))
        return pd.Series(self._more[self._names[column]]).reindex(self._rows).array  # -1 is no row, so missing


def read_cell_table(path: str | Path) -> pd.DataFrame:
    """A table of labels of cells, whose first column (or index) names the cells.

    Args:
        path: CSV, or tab-separated text (.tsv, .txt), either gzipped or not, or Parquet.

    Raises:
        EvaeError: no such file, it cannot be read, or a cell stands in it twice.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaeError(f"no such table of cells: {path}")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            if isinstance(table.index, pd.RangeIndex):
                table = table.set_index(table.columns[0])
        else:
            tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".txt"))
            table = pd.read_csv(path, sep="\t" if tabs else ",", dtype={0: str}, low_memory=False)
            table = table.set_index(table.columns[0])
    except (ValueError, OSError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise EvaeError(f"{path} cannot be read as a table of cells ({reason}); write CSV, or Parquet.") from error
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()]
        raise EvaeError(
            f"{number_of(len(twice), 'cell stands', 'cells stand')} in {path} more than once "
            f"(such as '{twice[0]}'); keep one row each."
        )
    return table


def with_table(obs: Frame, table: pd.DataFrame, table_name: str, file_name: str) -> JoinedFrame:
    """The cells of a file with the columns of a table.

    Raises:
        EvaeError: the table names no cell of the file.
    """
    names = obs.index()
    if not pd.Index(names).isin(table.index).any():
        raise EvaeError(
            f"{table_name} names no cell of {file_name} (there '{table.index[0] if len(table) else ''}', here "
            f"'{names[0]}'); its first column must hold the names of the cells, as they are in the file."
        )
    return JoinedFrame(obs, MemoryFrame(table), {str(column): str(column) for column in table.columns})
