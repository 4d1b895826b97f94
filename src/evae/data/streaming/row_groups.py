"""Row groups of Parquet shards, checked, and kept while there is room: what `CellLoader` streams from.

A set that fits in the room is decoded once however many epochs it is read; a larger one is read from its shards but
for the part that is kept, in constant memory.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evae.data.preparing.card import PANEL_KEY
from evae.data.streaming.shard_store import ShardStore
from evae.models.contract_evae import EvaeError

COLUMNS = ["genes", "counts", "perturbation", "cell_type"]
MEND = "fetch or make the dataset anew."
OPEN_SHARDS = 16  # two for each lane


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a dataset are, as dataset.json and the vocabularies say; rows are checked against it.

    Attributes:
        gene_dtype, count_dtype: little-endian unsigned integers in the two binary columns.
        max_count: the largest count of any cell.
        panel: digest of the gene panel (`evae.data.preparing.card.panel_digest`).
        n_genes, n_perturbations, n_cell_types: sizes of the vocabularies.
    """

    gene_dtype: np.dtype
    count_dtype: np.dtype
    max_count: int
    panel: str
    n_genes: int
    n_perturbations: int
    n_cell_types: int


class RowGroups:
    """Reads row groups; each is checked the first time, and kept in memory if there is room.

    Args:
        store: where the shards lie.
        rows: what the rows must be.
        room: bytes of decoded row groups to keep; the first ones read stay.
    """

    def __init__(self, store: ShardStore, rows: RowFormat, room: int):
        self.store, self.format, self._room = store, rows, room
        self._kept: dict[tuple[str, int], pa.Table] = {}
        self._checked: set[tuple[str, int]] = set()
        self._files: dict[str, tuple[Path, pq.ParquetFile]] = {}  # the one opened last is the last
        self._lock = threading.Lock()  # a loop that was left may still read ahead in its thread

    def read(self, shard: str, row_group: int, rows: int) -> pa.Table:
        """The columns COLUMNS of a row group.

        Args:
            rows: how many it must have.

        Raises:
            EvaeError: it cannot be read, or is not what the dataset says; names the file, and the row if there is one.
        """
        place = shard, row_group
        with self._lock:
            table = self._kept.get(place)
            if table is None:
                table = self._read(shard, row_group)
                if table.nbytes <= self._room:
                    self._kept[place] = table
                    self._room -= table.nbytes
        if table.num_rows != rows:
            raise EvaeError(f"{self._name(*place)} has {table.num_rows} rows, not {rows}; {MEND}")
        return table

    def _name(self, shard: str, row_group: int) -> str:
        return f"row group {row_group} of {self.store.place(shard)}"

    def _read(self, shard: str, row_group: int) -> pa.Table:
        try:
            path, file = self._open(shard)
            table: pa.Table = file.read_row_group(row_group, columns=COLUMNS, use_threads=False)
            if (shard, row_group) not in self._checked:
                first = sum(file.metadata.row_group(g).num_rows for g in range(row_group))
                _check_rows(table, self.format, first, path)
                self._checked.add((shard, row_group))
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise EvaeError(f"{self._name(shard, row_group)} cannot be read ({reason}); {MEND}") from error
        return table

    def _open(self, shard: str) -> tuple[Path, pq.ParquetFile]:
        """A shard, kept open: its footer holds the vocabularies, which take long to read."""
        if shard not in self._files:
            path = self.store.path(shard)
            file = pq.ParquetFile(path)
            panel = (file.schema_arrow.metadata or {}).get(PANEL_KEY, self.format.panel.encode()).decode()
            if panel != self.format.panel:
                raise EvaeError(f"{path} holds cells over another gene panel than its dataset; {MEND}")
            if len(self._files) == OPEN_SHARDS:
                self._files.pop(next(iter(self._files)))[1].close()
            self._files[shard] = path, file
        self._files[shard] = self._files.pop(shard)
        return self._files[shard]


def _check_rows(table: pa.Table, rows: RowFormat, first: int, path: Path) -> None:
    """Raise `EvaeError` naming the file and the row where a row is not what the dataset says.

    Args:
        table: a row group, columns COLUMNS.
        rows: what the rows must be.
        first: number of its first row in the file.
        path: the file.
    """
    genes, gene_ends = flat_values(table["genes"], rows.gene_dtype)
    counts, count_ends = flat_values(table["counts"], rows.count_dtype)
    if not np.array_equal(gene_ends, count_ends):
        row = first + int(np.flatnonzero(gene_ends != count_ends)[0]) - 1
        raise EvaeError(f"row {row} of {path} has not one count for each gene; {MEND}")
    limits = (
        ("gene index", genes, 0, rows.n_genes - 1),
        ("count", counts, 1, rows.max_count),
        ("perturbation", table["perturbation"].to_numpy(), 0, rows.n_perturbations - 1),
        ("cell type", table["cell_type"].to_numpy(), 0, rows.n_cell_types - 1),
    )
    for name, values, low, high in limits:
        if values.size and not low <= int(values.min()) <= int(values.max()) <= high:
            at = int(np.flatnonzero((values < low) | (values > high))[0])
            row = int(np.searchsorted(gene_ends, at, side="right")) - 1 if name in ("gene index", "count") else at
            raise EvaeError(
                f"row {first + row} of {path} has the {name} {values[at]}, outside {low} to {high}, which "
                f"dataset.json and the vocabularies state; {MEND}"
            )


def flat_values(column: pa.Array | pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The values of a binary column end to end, and where each row begins (rows + 1,), in values.

    One chunk is not copied.
    """
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    if data is None or ends[-1] == ends[0]:
        return np.empty(0, dtype), np.zeros(len(ends), np.int64)
    sizes = ends - ends[0]
    if (sizes % dtype.itemsize).any():
        raise EvaeError(f"a binary column does not hold whole {dtype} values; {MEND}")
    values = np.frombuffer(data, dtype, count=int(sizes[-1]) // dtype.itemsize, offset=int(ends[0]))
    return values, sizes // dtype.itemsize
