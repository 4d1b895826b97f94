"""Row groups of Parquet shards, checked, and kept in memory up to a limit: what `CellLoader` streams from.

A set that fits in the limit is decoded once however many epochs it is read; a larger one is read from its shards but
for the part that is kept, in constant memory.
"""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.messages import number_of
from evae.data.format import PANEL_KEY
from evae.data.rows import REMEDY, RowFormat
from evae.data.store import ShardStore
from evae.models.contract_evae import EvaeError

OPEN_SHARDS = 16  # two for each lane


class RowGroups:
    """Reads row groups; each is checked the first time, and kept in memory while the limit allows.

    Args:
        store: where the shards lie.
        rows: what the rows must be.
        kept_bytes: how much of decoded row groups to keep; the first ones read stay.
    """

    def __init__(self, store: ShardStore, rows: RowFormat, kept_bytes: int):
        self.store, self.format, self._left = store, rows, kept_bytes
        self._kept: dict[tuple[str, int], pa.Table] = {}
        self._checked: set[tuple[str, int]] = set()
        self._files: dict[str, tuple[Path, pq.ParquetFile]] = {}  # the one opened last is the last
        self._lock = threading.Lock()  # a loop that was left may still read ahead in its thread

    def read(self, shard: str, row_group: int, rows: int) -> pa.Table:
        """The columns of a row group that a batch is made of.

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
                if table.nbytes <= self._left:
                    self._kept[place] = table
                    self._left -= table.nbytes
        if table.num_rows != rows:
            raise EvaeError(f"{self._name(*place)} has {number_of(table.num_rows, 'row')}, not {rows}; {REMEDY}")
        return table

    def _name(self, shard: str, row_group: int) -> str:
        return f"row group {row_group} of {self.store.place(shard)}"

    def _read(self, shard: str, row_group: int) -> pa.Table:
        try:
            path, file = self._open(shard)
            table: pa.Table = file.read_row_group(row_group, columns=self.format.columns, use_threads=False)
            if (shard, row_group) not in self._checked:
                first = sum(file.metadata.row_group(g).num_rows for g in range(row_group))
                self.format.check(table, str(path), first)
                self._checked.add((shard, row_group))
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise EvaeError(f"{self._name(shard, row_group)} cannot be read ({reason}); {REMEDY}") from error
        return table

    def _open(self, shard: str) -> tuple[Path, pq.ParquetFile]:
        """A shard, kept open: its footer holds the vocabularies, which take long to read."""
        if shard not in self._files:
            path = self.store.path(shard)
            file = pq.ParquetFile(path)
            panel = (file.schema_arrow.metadata or {}).get(PANEL_KEY, self.format.panel.encode()).decode()
            if panel != self.format.panel:
                raise EvaeError(f"{path} holds cells over another gene panel than its dataset; {REMEDY}")
            if len(self._files) == OPEN_SHARDS:
                self._files.pop(next(iter(self._files)))[1].close()
            self._files[shard] = path, file
        self._files[shard] = self._files.pop(shard)
        return self._files[shard]
