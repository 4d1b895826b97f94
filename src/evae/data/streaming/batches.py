"""Sparse batches out of row groups, without a dense copy.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int32, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.lib.stride_tricks import as_strided

from evae.data.rows import RowFormat
from evae.data.streaming.order import EpochOrder, Window
from evae.data.streaming.row_groups import RowGroups

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of settings of glibc, malloc.h
MOST_KEPT = 32 << 20  # bytes of an array whose memory is kept, the most that glibc takes
TOGETHER_BYTES = 1 << 20  # of rows that are gathered together: they stay in a cache


def read_windows(groups: RowGroups, order: EpochOrder, batch: int) -> Iterator[tuple[Window, pa.Table]]:
    """This rank's windows and their rows, lane after lane, from the one that holds batch number `batch` on.

    The shard that a lane reads next is fetched while it reads the one before. A row group in which one lane ends and
    the next begins stays in memory for the other of the two, so that none is read twice.
    """
    places = [order.places_from(lane, batch) for lane in order.lanes]
    upcoming = [list(dict.fromkeys(shard for shard, _ in own)) for own in places]
    for shards in upcoming:
        groups.store.expect(shards[0] if shards else None)
    lanes_left = Counter(place for own in places for place in own)
    waiting: dict[tuple[str, int], pa.Table] = {}
    current: list[tuple[tuple[str, int], pa.Table] | None] = [None] * len(upcoming)
    for window in order.windows_from(batch):
        parts = []
        for lane, pieces in enumerate(window.pieces):
            for piece in pieces:
                place, held = (piece.shard, piece.row_group), current[lane]
                if held is None or held[0] != place:
                    table = waiting.pop(place, None)
                    table = groups.read(*place, piece.rows) if table is None else table
                    lanes_left[place] -= 1
                    if lanes_left[place]:
                        waiting[place] = table
                    held = current[lane] = place, table
                if piece.shard == next(iter(upcoming[lane]), None):
                    upcoming[lane].pop(0)
                    groups.store.expect(next(iter(upcoming[lane]), None))
                parts.append(held[1].slice(piece.start, piece.stop - piece.start))
        yield window, pa.concat_tables(parts)


def keep_freed_memory() -> None:
    """Keep the C library from giving the memory of every batch back to the system.

    Page faults take a third of the loader's time otherwise. Elsewhere than with glibc without effect.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        mallopt(M_TRIM_THRESHOLD, 2 * MOST_KEPT)


def window_batches(
    table: pa.Table, window: Window, rows: RowFormat, first: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The sparse batches of a window, from batch number `first` on; the last one may be smaller.

    Args:
        table: the window's rows, lane after lane.
    """
    order = np.arange(table.num_rows) if window.permutation is None else window.permutation
    order = order[(first - window.first_batch) * batch_size :]
    columns = {f"{name}_ids": table[name].to_numpy()[order] for name in ("perturbation", "cell_type")}
    labels = {name: torch.from_numpy(column).split(batch_size) for name, column in columns.items()}
    for i, (genes, counts) in enumerate(CellRows(table, rows).rectangles(order, batch_size)):
        batch = {"gene_ids": torch.from_numpy(genes), "counts": torch.from_numpy(counts)}
        batch["library_size"] = batch["counts"].sum(1)  # exact below 2^24 counts a cell
        yield {**batch, **{name: parts[i] for name, parts in labels.items()}}


class CellRows:
    """The expressed genes and counts of the cells of a table, laid out as rectangles on demand.

    A rectangle is copied row by row from where the cells lie end to end, each row as long as the longest; what follows
    a cell is copied along and then erased. That is a few calls of numpy for several batches.

    Args:
        table: the cells.
        rows: what the rows are.
    """

    def __init__(self, table: pa.Table, rows: RowFormat):
        item = 1 if rows.steps else rows.count_dtype.itemsize
        widest = padded_width(pc.max(pc.binary_length(table["counts"])).as_py() // item)
        cells = rows.cells(table, room=widest)
        self._starts, self._sizes = cells.ends[:-1], np.diff(cells.ends)
        joined, self._before = [cells.genes, cells.counts], None
        if rows.steps:
            joined[0] = running_sums(cells.genes, rows.gene_dtype)
            self._before = np.where(self._starts > 0, joined[0][self._starts - 1], joined[0].dtype.type(0))
        self._genes, self._counts = (_runs(values, widest) for values in joined)
        edge = np.repeat(np.array([-1, 0], np.int8), widest)
        self._inside = {a.dtype: _runs(edge.astype(a.dtype), widest) for a in joined}  # row i: all bits set before i

    def rectangles(self, chosen: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`gene_ids` and `counts` of the sparse batches of the chosen cells, in their order."""
        row_bytes = self._genes.shape[1] * self._genes.itemsize
        together = max(1, TOGETHER_BYTES // (row_bytes * batch_size)) * batch_size
        for some in np.split(chosen, range(together, len(chosen), together)):
            starts, sizes = self._starts[some], self._sizes[some]
            width = padded_width(sizes.max(initial=0))
            # row n of the mask has so many set
            inside = {dtype: masks[:, :width][-1 - sizes] for dtype, masks in self._inside.items()}
            genes, counts = (source[:, :width][starts] for source in (self._genes, self._counts))
            if self._before is not None:
                genes -= self._before[some][:, None]
            for block in (genes, counts):
                block &= inside[block.dtype]
            for start in range(0, len(some), batch_size):
                own = np.s_[start : start + batch_size, : padded_width(sizes[start : start + batch_size].max())]
                yield genes[own].astype(np.int32), counts[own].astype(np.float32)


def running_sums(steps: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Sums from the first step on, modulo the size of `dtype`; of two bytes torch adds quicker than numpy."""
    signed = steps.view(f"i{steps.itemsize}") if steps.itemsize > 1 else steps  # torch knows few unsigned integers
    wide = torch.int16 if dtype.itemsize == 2 else torch.int32
    return torch.from_numpy(signed).cumsum(0, dtype=wide).numpy().view(dtype)


def _runs(values: np.ndarray, width: int) -> np.ndarray:
    """(len(values) - width + 1, width): the values from each place on, without a copy."""
    return as_strided(values, (len(values) - width + 1, width), values.strides * 2)


def padded_width(size: int) -> int:
    """The width of a batch whose longest row is of this size."""
    return max(8, -(-int(size) // 8) * 8)
