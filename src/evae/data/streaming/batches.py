"""Sparse batches out of row groups, without a dense copy.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int32, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.stride_tricks import as_strided

from evae.data.rows import RowFormat, flat_values
from evae.data.streaming.order import EpochOrder, Window
from evae.data.streaming.row_groups import RowGroups

TOGETHER_BYTES = 1 << 20  # of rows that are gathered together: they stay in a cache


def window_tables(groups: RowGroups, order: EpochOrder, batch: int) -> Iterator[pa.Table]:
    """The rows of this rank's windows, lane after lane, from the one that holds batch number `batch` on.

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
        yield pa.concat_tables(parts)


def keep_freed_memory() -> None:
    """Keep the C library from giving the memory of every batch back to the system.

    Once a large array (never touched; one of 32 MiB would not count) was freed, glibc serves arrays up to that size
    from memory that it has already; page faults take a third of the loader's time otherwise. Elsewhere without effect.
    """
    np.empty(31 << 20, np.uint8)


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
        columns = (("genes", rows.gene_dtype), ("counts", rows.count_dtype))
        parts = [[flat_values(chunk, dtype) for chunk in table[name].chunks] for name, dtype in columns]
        self._sizes = np.concatenate([np.diff(ends) for _, ends in parts[1]])
        self._starts = np.cumsum(self._sizes) - self._sizes
        widest = padded_width(self._sizes)
        joined = [np.concatenate([*(v for v, _ in part), np.zeros(widest, part[0][0].dtype)]) for part in parts]
        self._genes, self._counts = (_runs(values, widest) for values in joined)
        edge = np.repeat(np.array([-1, 0], np.int8), widest)
        self._inside = {a.dtype: _runs(edge.astype(a.dtype), widest) for a in joined}  # row i: all bits set before i

    def rectangles(self, chosen: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`gene_ids` and `counts` of the sparse batches of the chosen cells, in their order."""
        row_bytes = self._genes.shape[1] * self._genes.itemsize
        together = max(1, TOGETHER_BYTES // (row_bytes * batch_size)) * batch_size
        for some in np.split(chosen, range(together, len(chosen), together)):
            starts, sizes = self._starts[some], self._sizes[some]
            width = padded_width(sizes)
            # row n of the mask has so many set
            inside = {dtype: masks[:, :width][-1 - sizes] for dtype, masks in self._inside.items()}
            genes, counts = (source[:, :width][starts] for source in (self._genes, self._counts))
            for block in (genes, counts):
                block &= inside[block.dtype]
            for start in range(0, len(some), batch_size):
                own = np.s_[start : start + batch_size, : padded_width(sizes[start : start + batch_size])]
                yield genes[own].astype(np.int32), counts[own].astype(np.float32)


def _runs(values: np.ndarray, width: int) -> np.ndarray:
    """(len(values) - width + 1, width): the values from each place on, without a copy."""
    return as_strided(values, (len(values) - width + 1, width), values.strides * 2)


def padded_width(sizes: np.ndarray) -> int:
    """The width of a batch of rows of these sizes."""
    return max(8, -(-int(sizes.max(initial=0)) // 8) * 8)
