"""Writing the Parquet shards of a dataset folder: rows scattered to their shard, then permuted within it.

A row is one cell: the bytes of its CSR block in two binary columns (`genes`: indices into the panel,
`counts`), its labels as ClassLabel, its full library size, its name. Every row is first appended to the
scratch file of the shard it belongs to, then each shard is read alone and put in order, so memory holds one
block or one shard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from datasets import ClassLabel, Features, Value

from evae.data.card import PANEL_KEY, panel_digest
from evae.models.contract_evae import EvaeError

MANY_ROWS = 1 << 18
SHARD_BYTES = 256 << 20  # before compression
MAX_SHARDS = 768  # below the usual limit of 1,024 open files
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class RowPlan:
    """Where every cell goes: its split (-1: dropped), its shard among all, its place within the split."""

    split: np.ndarray  # (cells,) int8, index into SPLITS
    shard: np.ndarray  # (cells,) int32
    place: np.ndarray  # (cells,) int64
    shards: list[tuple[str, int]]  # (path in the folder, number of rows)


def plan_rows(kept: np.ndarray, held_out: np.ndarray, seed: int, row_bytes: float = 0.0) -> RowPlan:
    """Shuffle all rows globally and deal them into shards; 5 % of what is not held out becomes `validation`.

    Args:
        kept: (cells,) bool, False for cells to drop.
        held_out: (cells,) bool, the test cells.
        seed: of the shuffle.
        row_bytes: mean size of a row before compression, which bounds the rows of a shard.
    """
    rng = np.random.default_rng([seed, 2])
    rest = rng.permutation(np.flatnonzero(kept & ~held_out))
    n_validation = min(5_000, max(1, round(0.05 * len(rest))))
    if len(rest) <= n_validation:
        raise EvaeError(f"the split leaves {len(rest)} of {len(kept):,} cells, too few to train on; hold out less.")
    rows_of = (rest[n_validation:], rest[:n_validation], rng.permutation(np.flatnonzero(kept & held_out)))
    n = len(kept)
    split, shard, place = np.full(n, -1, np.int8), np.zeros(n, np.int32), np.zeros(n, np.int64)
    shards: list[tuple[str, int]] = []
    for s, (name, rows) in enumerate(zip(SPLITS, rows_of, strict=True)):
        n_shards = shard_count(len(rows), row_bytes)
        own = np.arange(len(rows)) * n_shards // max(1, len(rows))
        split[rows], shard[rows], place[rows] = s, len(shards) + own, np.arange(len(rows))
        sizes = np.bincount(own, minlength=n_shards)
        shards += [(f"data/{name}-{i:05d}-of-{n_shards:05d}.parquet", int(c)) for i, c in enumerate(sizes)]
    return RowPlan(split, shard, place, shards)


def shard_count(n_rows: int, row_bytes: float) -> int:
    """8 shards of a split; 64, 128, ... where there are many rows or a shard would not fit well in memory.

    Each shard is put in order in memory, and all are open at once while rows are scattered, hence the bounds.
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


def cell_features(perturbations: Sequence[str], cell_types: Sequence[str]) -> Features:
    """The columns of the cells, as HF `datasets` sees them."""
    return Features(
        {
            "genes": Value("binary"),
            "counts": Value("binary"),
            "perturbation": ClassLabel(names=list(perturbations)),
            "cell_type": ClassLabel(names=list(cell_types)),
            "library_size": Value("int64"),
            "cell_id": Value("string"),
        }
    )


def binary_rows(values: np.ndarray, indptr: np.ndarray) -> pa.Array:
    """A binary column whose rows are the bytes of values[indptr[i]:indptr[i + 1]], without a copy."""
    offsets = (indptr * values.dtype.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values).view(np.uint8))]
    return pa.Array.from_buffers(pa.binary(), len(indptr) - 1, buffers)


class ShardWriter:
    """Takes blocks of cells in any order and leaves finished Parquet shards.

    Args:
        folder: the dataset folder.
        scratch: folder for the unordered rows, on the same disk.
        plan: where every cell goes.
        features: of the cells (see `cell_features`).
        gene_dtype, count_dtype: little-endian unsigned integers of the two binary columns.
        genes: the panel.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        plan: RowPlan,
        features: Features,
        gene_dtype: np.dtype,
        count_dtype: np.dtype,
        genes: Sequence[str],
    ):
        self._folder, self._scratch, self._plan = folder, scratch, plan
        self._dtypes = gene_dtype, count_dtype
        self._group = row_group_rows(len(genes))
        schema: pa.Schema = features.arrow_schema
        self._schema = schema.with_metadata({**(schema.metadata or {}), PANEL_KEY: panel_digest(genes)})
        self._scratch_schema = self._schema.append(pa.field("place", pa.int64()))
        paths = [scratch / f"shard-{i}.arrow" for i in range(len(plan.shards))]
        self._writers = [pa.ipc.new_stream(str(path), self._scratch_schema) for path in paths]
        self._paths = paths

    def add(self, first: int, counts: sp.csr_matrix, columns: dict[str, Any]) -> None:
        """Scatter the cells first, first + 1, ... ; `columns` holds their labels, library sizes and names."""
        rows = slice(first, first + counts.shape[0])
        block = pa.record_batch(
            [
                binary_rows(counts.indices.astype(self._dtypes[0]), counts.indptr),
                binary_rows(counts.data.astype(self._dtypes[1]), counts.indptr),
                *(pa.array(columns[f.name], type=f.type) for f in list(self._schema)[2:]),
                pa.array(self._plan.place[rows]),
            ],
            schema=self._scratch_schema,
        )
        kept = np.flatnonzero(self._plan.split[rows] >= 0)
        order = kept[np.argsort(self._plan.shard[rows][kept], kind="stable")]
        targets, starts = np.unique(self._plan.shard[rows][order], return_index=True)
        ordered = block.take(pa.array(order))
        ends = [*starts[1:], len(order)]
        for target, start, end in zip(targets, starts, ends, strict=True):
            self._writers[target].write_batch(ordered.slice(int(start), int(end - start)))

    def finish(self, advance: Callable[[int], None] = lambda n: None) -> None:
        """Put every shard in order and write it as Parquet; the scratch files are removed on the way."""
        self.close()
        for (name, n_rows), path in zip(self._plan.shards, self._paths, strict=True):
            with pa.ipc.open_stream(str(path)) as reader:
                table = reader.read_all()
            table = table.take(pc.sort_indices(table["place"])).drop_columns(["place"])
            assert table.num_rows == n_rows
            target = self._folder / name
            target.parent.mkdir(exist_ok=True)
            pq.write_table(
                table,
                target,
                row_group_size=self._group,
                compression="zstd",
                compression_level=3,
                use_dictionary=["perturbation", "cell_type"],
                write_statistics=["perturbation", "cell_type", "library_size"],
            )
            path.unlink()
            advance(n_rows)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
