"""Writing the Parquet shards of a dataset folder: rows scattered to their shard, then permuted within it.

A row is one cell, see `evae.data.rows`. Memory holds one block of cells or one shard. First every block is sorted by
shard and written to a scratch file. Then the rows of every shard are gathered from these files and put in order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evae.common.files import atomic_write
from evae.common.messages import number_of
from evae.data.format import SPLITS, shard_name
from evae.models.contract_evae import EvaeError

MANY_ROWS = 1 << 18
SHARD_BYTES = 256 << 20  # before compression
MAX_SHARDS = 768
SHARDS_KEY = b"shards"  # in the schema of scattered rows: where the rows of each shard begin, and how many there are


@dataclass(frozen=True)
class RowPlan:
    """Where every cell goes: its split (-1: dropped), its shard among all, its place within the split."""

    split: np.ndarray  # (cells,) int8, index into SPLITS
    shard: np.ndarray  # (cells,) int32
    place: np.ndarray  # (cells,) int64
    shards: list[tuple[str, int]]  # (path in the folder, number of rows)


def plan_rows(
    kept: np.ndarray, held_out: np.ndarray, seed: int, row_bytes: float = 0.0, label: np.ndarray | None = None
) -> RowPlan:
    """Shuffle all rows globally and deal them into shards; 5 % of what is not held out becomes `validation`.

    Args:
        kept: (cells,) bool, False for cells to drop.
        held_out: (cells,) bool, the test cells.
        seed: of the shuffle.
        row_bytes: mean size of a row before compression, which bounds the rows of a shard.
        label: (cells,), of which every one keeps a cell in `train` that has one outside `test`.
    """
    rng = np.random.default_rng([seed, 2])
    rest = rng.permutation(np.flatnonzero(kept & ~held_out))
    n_validation = min(5_000, max(1, round(0.05 * len(rest))))
    if len(rest) <= n_validation:
        raise EvaeError(
            f"the split leaves {len(rest)} of {number_of(len(kept), 'cell')}, too few to train on; hold out less."
        )
    training, validation = rest[n_validation:], rest[:n_validation]
    if label is not None:
        lost = first_of_each(label, validation, ~np.isin(label[validation], label[training]))
        training, validation = np.append(training, lost), validation[~np.isin(validation, lost)]
    rows_of = (training, validation, rng.permutation(np.flatnonzero(kept & held_out)))
    n = len(kept)
    split, shard, place = np.full(n, -1, np.int8), np.zeros(n, np.int32), np.zeros(n, np.int64)
    shards: list[tuple[str, int]] = []
    for s, (name, rows) in enumerate(zip(SPLITS, rows_of, strict=True)):
        n_shards = shard_count(len(rows), row_bytes)
        own = np.arange(len(rows)) * n_shards // max(1, len(rows))
        split[rows], shard[rows], place[rows] = s, len(shards) + own, np.arange(len(rows))
        sizes = np.bincount(own, minlength=n_shards)
        shards += [(shard_name(name, i, n_shards), int(c)) for i, c in enumerate(sizes)]
    return RowPlan(split, shard, place, shards)


def first_of_each(label: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first row of every label among the rows that are `wanted`, a mask over `rows`."""
    chosen = rows[wanted]
    return chosen[np.unique(label[chosen], return_index=True)[1]]


def shard_count(n_rows: int, row_bytes: float) -> int:
    """8 shards of a split; 64, 128, ... where there are many rows or a shard would not fit well in memory.

    Each shard is put in order in memory, hence the bound on its size.
    """
    if n_rows < 8:
        return min(1, n_rows)
    if n_rows <= MANY_ROWS and n_rows * row_bytes <= 8 * SHARD_BYTES:
        return 8
    least = max(-(-n_rows * row_bytes // SHARD_BYTES), 128 if n_rows > 16 * MANY_ROWS else 64)
    return min(MAX_SHARDS, 64 * int(-(-least // 64)))


def row_group_rows(n_genes: int) -> int:
    """Rows of a row group, the unit in which shards are read: smaller for wide panels."""
    return 4096 if n_genes <= 10_000 else 1024


def scatter_rows(rows: pa.RecordBatch, shard: np.ndarray, place: np.ndarray, path: Path) -> None:
    """Write cells sorted by shard: an Arrow file that says which shards they go to.

    Args:
        rows: (cells,) the columns of a shard.
        shard: (cells,) the shard among all that each cell goes to, -1 for cells to drop.
        place: (cells,) the cell's place within its split.
        path: the file, which appears whole or not at all.
    """
    rows = rows.append_column("place", pa.array(place))
    kept = np.flatnonzero(shard >= 0)
    order = kept[np.argsort(shard[kept], kind="stable")]
    targets, starts = np.unique(shard[order], return_index=True)
    runs = {int(t): [int(a), int(b - a)] for t, (a, b) in zip(targets, pairwise([*starts, len(order)]), strict=True)}
    ordered = rows.take(pa.array(order)).replace_schema_metadata({SHARDS_KEY: json.dumps(runs)})
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, ordered.schema) as out,
    ):
        out.write_batch(ordered)


def gather_shard(scattered: Sequence[Path], shard: int, schema: pa.Schema, group_rows: int, target: Path) -> int:
    """Bring the rows of one shard together, in order, as Parquet; returns their number.

    Args:
        scattered: the files of `scatter_rows`.
        shard: which one.
        schema: of the shard.
        group_rows: rows of a row group.
        target: the file, which appears whole or not at all.
    """
    batches = []
    for path in scattered:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            runs = json.loads(reader.schema.metadata[SHARDS_KEY])
            if str(shard) in runs:
                batches.append(reader.get_batch(0).slice(*runs[str(shard)]))
    table = pa.Table.from_batches(batches).combine_chunks()
    order = pc.sort_indices(table["place"])
    table = table.drop_columns(["place"]).replace_schema_metadata(schema.metadata)
    with (
        atomic_write(target) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=1,  # bytes as these are read quicker than at higher levels, and are hardly larger
            use_dictionary=["perturbation", "cell_type", "high"],
            write_statistics=["perturbation", "cell_type", "library_size"],
        ) as writer,
    ):
        for start in range(0, table.num_rows, group_rows):
            writer.write_table(table.take(order.slice(start, group_rows)), group_rows)
    return table.num_rows
