"""The order in which cells are read, and the packing of Parquet rows into sparse batches.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int64, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.

Parquet row groups are read directly with pyarrow rather than through `datasets` streaming: the row counts of
all shards are known from dataset.json, so each rank can be given an equal, disjoint run of rows whatever the
number of shards, and any batch can be found from its number alone. `datasets` reads the same files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from evae.models.contract_evae import EvaeError

COLUMNS = ["genes", "counts", "perturbation", "cell_type"]


@dataclass(frozen=True)
class Piece:
    """A run of rows inside one row group of one shard."""

    path: Path
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class WindowOrder:
    """The rows of one window: where they lie, how they are permuted, and which batch they begin with."""

    pieces: list[Piece]
    permutation: np.ndarray | None  # (rows,), None for the stored order
    first_batch: int


@dataclass(frozen=True)
class BatchOrder:
    """Everything that decides which rows batch number b of epoch e holds on this rank."""

    shards: list[tuple[Path, int]]
    row_group_rows: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    shuffle: bool
    drop_last: bool
    window_rows: int

    @property
    def n_cells(self) -> int:
        return sum(rows for _, rows in self.shards)

    @property
    def share(self) -> tuple[int, int]:
        """First and one past the last row of this rank in the epoch's sequence."""
        n = self.n_cells
        if self.drop_last:  # equal shares, so that all ranks have the same number of batches
            each = n // self.world_size
            return self.rank * each, (self.rank + 1) * each
        return self.rank * n // self.world_size, (self.rank + 1) * n // self.world_size

    @property
    def n_batches(self) -> int:
        start, stop = self.share
        rows = stop - start
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def fingerprint(self) -> dict[str, int]:
        """What must be equal for a state to mean the same rows."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "cells": self.n_cells,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
        }

    def epoch(self, epoch: int) -> "EpochOrder":
        return EpochOrder(self, epoch)


class EpochOrder:
    """The sequence of row groups of one epoch."""

    def __init__(self, order: BatchOrder, epoch: int):
        self._order, self._epoch = order, epoch
        rng = np.random.default_rng([order.seed, epoch])
        self._groups: list[Piece] = []
        for shard in rng.permutation(len(order.shards)) if order.shuffle else range(len(order.shards)):
            path, rows = order.shards[shard]
            starts = range(0, rows, order.row_group_rows)
            groups = rng.permutation(len(starts)) if order.shuffle else range(len(starts))
            for g in groups:
                size = min(order.row_group_rows, rows - int(g) * order.row_group_rows)
                self._groups.append(Piece(path, int(g), 0, size))
        self._ends = np.cumsum([p.stop for p in self._groups])

    def window_at(self, batch: int) -> WindowOrder:
        """The window that holds batch number `batch` of this rank, to be read from that batch on."""
        order = self._order
        per_window = max(1, order.window_rows // order.batch_size)
        first, last = order.share
        start = first + batch // per_window * per_window * order.batch_size
        stop = min(last, start + per_window * order.batch_size)
        permutation = None
        if order.shuffle:
            permutation = np.random.default_rng([order.seed, self._epoch, start]).permutation(stop - start)
        return WindowOrder(self._pieces(start, stop), permutation, batch // per_window * per_window)

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        pieces = []
        g = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            group = self._groups[g]
            offset = int(self._ends[g]) - group.stop
            end = min(stop, int(self._ends[g]))
            pieces.append(Piece(group.path, group.row_group, start - offset, end - offset))
            start, g = end, g + 1
        return pieces


class ShardReader:
    """Reads windows of rows and packs them into sparse batches; keeps the row group it read last.

    Args:
        gene_dtype, count_dtype: little-endian unsigned integers in the two binary columns.
        n_genes, n_perturbations, n_cell_types: sizes of the vocabularies, to check what is read.
    """

    def __init__(self, gene_dtype: str, count_dtype: str, n_genes: int, n_perturbations: int, n_cell_types: int):
        self._dtypes = {"genes": np.dtype(gene_dtype), "counts": np.dtype(count_dtype)}
        self._limits = {"genes": n_genes, "perturbation": n_perturbations, "cell_type": n_cell_types}
        self._last: tuple[tuple[Path, int] | None, pa.Table | None] = (None, None)

    def batches(self, window: WindowOrder, first: int, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """The sparse batches of a window, from batch number `first` on; the last one may be smaller."""
        table = pa.concat_tables([self._rows(piece) for piece in window.pieces])
        if window.permutation is not None:
            table = table.take(pa.array(window.permutation))
        genes, ends = flat_values(table["genes"], self._dtypes["genes"])
        counts, _ = flat_values(table["counts"], self._dtypes["counts"])
        labels = {k: torch.from_numpy(table[k].to_numpy().copy()) for k in ("perturbation", "cell_type")}
        for start in range((first - window.first_batch) * batch_size, table.num_rows, batch_size):
            rows = slice(start, min(start + batch_size, table.num_rows))
            low, high = ends[rows.start], ends[rows.stop]
            batch = pack(genes[low:high], counts[low:high], np.diff(ends[rows.start : rows.stop + 1]))
            batch["perturbation_ids"] = labels["perturbation"][rows].clone()
            batch["cell_type_ids"] = labels["cell_type"][rows].clone()
            yield batch

    def _rows(self, piece: Piece) -> pa.Table:
        key = (piece.path, piece.row_group)
        if self._last[0] != key:
            self._last = key, self._row_group(piece)
        table = self._last[1]
        assert table is not None
        return table.slice(piece.start, piece.stop - piece.start)

    def _row_group(self, piece: Piece) -> pa.Table:
        where = f"row group {piece.row_group} of {piece.path}"
        try:
            with pq.ParquetFile(piece.path) as file:
                table = file.read_row_group(piece.row_group, columns=COLUMNS)
            if table.num_rows < piece.stop:
                raise EvaeError(f"{where} has {table.num_rows} rows, not {piece.stop}; fetch or make the dataset anew.")
            genes, gene_ends = flat_values(table["genes"], self._dtypes["genes"])
            _, count_ends = flat_values(table["counts"], self._dtypes["counts"])
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            raise EvaeError(f"{where} cannot be read ({error}); fetch or make the dataset anew.") from error
        if not np.array_equal(gene_ends, count_ends):
            row = int(np.flatnonzero(gene_ends != count_ends)[0]) - 1
            raise EvaeError(f"row {row} in {where} has not one count for each gene; fetch or make the dataset anew.")
        for name, values in (
            ("genes", genes),
            *((k, table[k].to_numpy()) for k in ("perturbation", "cell_type")),
        ):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < self._limits[name]:
                bad = int(np.flatnonzero((values < 0) | (values >= self._limits[name]))[0])
                row = int(np.searchsorted(gene_ends, bad, side="right")) - 1 if name == "genes" else bad
                raise EvaeError(
                    f"row {row} in {where} has the {name} index {values[bad]} of {self._limits[name]}; "
                    "fetch or make the dataset anew."
                )
        return table


def flat_values(column: pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The values of a binary column end to end, and where each row begins (rows + 1,), in values; no copy."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what combine_chunks gives for no or several chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.binary())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if data is None or ends[-1] == ends[0]:
        return np.empty(0, dtype), np.zeros(len(ends), np.int64)
    sizes = ends - ends[0]
    if (sizes % dtype.itemsize).any():
        raise EvaeError(f"a binary column does not hold whole {dtype} values; fetch or make the dataset anew.")
    values = np.frombuffer(data, dtype, count=int(sizes[-1]) // dtype.itemsize, offset=int(ends[0]))
    return values, sizes // dtype.itemsize


def pack(genes: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> dict[str, torch.Tensor]:
    """CSR parts to padded tensors.

    Args:
        genes, counts: (entries,) panel indices and counts of the cells, end to end.
        lengths: (cells,) expressed genes of each cell.

    Returns:
        `gene_ids`, `counts`, `library_size` of a sparse batch.
    """
    n = len(lengths)
    width = max(8, -(-int(lengths.max(initial=0)) // 8) * 8)
    filled = np.arange(width) < lengths[:, None]  # (cells, max_expressed)
    gene_ids = np.zeros((n, width), dtype=np.int64)
    gene_ids[filled] = genes
    values = np.zeros((n, width), dtype=np.float32)
    values[filled] = counts
    return {
        "gene_ids": torch.from_numpy(gene_ids),
        "counts": torch.from_numpy(values),
        "library_size": torch.from_numpy(values.sum(1, dtype=np.float64).astype(np.float32)),
    }
