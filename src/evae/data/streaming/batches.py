"""Sparse batches out of row groups, without a dense copy.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int32, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.stride_tricks import as_strided

from evae.data.rows import RowFormat, flat_values
from evae.data.streaming.order import EpochOrder, Window
from evae.data.streaming.row_groups import RowGroups

LONG_ROW = 1_000  # values


def window_tables(groups: RowGroups, order: EpochOrder, batch: int) -> Iterator[pa.Table]:
    """The rows of this rank's windows, lane after lane, from the one that holds batch number `batch` on.

    The shard that a lane reads next is fetched while it reads the one before.
    """
    upcoming = [order.shards_from(lane, batch) for lane in order.lanes]
    for shards in upcoming:
        groups.store.expect(shards[0] if shards else None)
    current: list[tuple[tuple[str, int], pa.Table] | None] = [None] * len(upcoming)
    for window in order.windows_from(batch):
        parts = []
        for lane, pieces in enumerate(window.pieces):
            for piece in pieces:
                place, held = (piece.shard, piece.row_group), current[lane]
                if held is None or held[0] != place:
                    held = current[lane] = place, groups.read(*place, piece.rows)
                if piece.shard == next(iter(upcoming[lane]), None):
                    upcoming[lane].pop(0)
                    groups.store.expect(next(iter(upcoming[lane]), None))
                parts.append(held[1].slice(piece.start, piece.stop - piece.start))
        yield pa.concat_tables(parts)


def keep_freed_memory() -> None:
    """Keep the C library from giving the memory of every batch back to the system.

    Once a large array (a page short of 32 MiB, never touched) was freed, glibc serves arrays up to that size from
    memory that it has already; page faults take a fifth of the loader's time otherwise. Elsewhere without effect.
    """
    np.empty((32 << 20) - 4096, np.uint8)


def window_batches(
    table: pa.Table, window: Window, rows: RowFormat, first: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The sparse batches of a window, from batch number `first` on; the last one may be smaller.

    Args:
        table: the window's rows, lane after lane.
    """
    order = np.arange(table.num_rows) if window.permutation is None else window.permutation
    cells = CellRows(table, rows)
    labels = {f"{name}_ids": table[name].to_numpy() for name in ("perturbation", "cell_type")}
    for start in range((first - window.first_batch) * batch_size, table.num_rows, batch_size):
        chosen = order[start : start + batch_size]
        batch = {**cells.padded(chosen), **{name: column[chosen] for name, column in labels.items()}}
        yield {name: torch.from_numpy(column) for name, column in batch.items()}


class CellRows:
    """The expressed genes and counts of the cells of a table, laid out as rectangles on demand.

    Long rows are copied one after another, from where they lie; short ones, for which the steps of such a loop would
    take longest, in blocks.

    Args:
        table: the cells.
        rows: what the rows are.
    """

    def __init__(self, table: pa.Table, rows: RowFormat):
        columns = (("genes", rows.gene_dtype), ("counts", rows.count_dtype))
        parts = [[flat_values(chunk, dtype) for chunk in table[name].chunks] for name, dtype in columns]
        ends = [ends for _, ends in parts[1]]
        self._sizes = np.concatenate([np.diff(e) for e in ends])
        values = [[v for v, _ in part] for part in parts]
        if self._sizes.mean() < LONG_ROW:
            widest = padded_width(self._sizes)
            joined = [np.concatenate([*v, np.zeros(widest, v[0].dtype)]) for v in values]
            self._blocks = [as_strided(v, (len(v) - widest + 1, widest), v.strides * 2) for v in joined]
            self._starts = np.cumsum(self._sizes) - self._sizes
            self._copy = self._copy_blocks
        else:
            self._parts = list(zip(*values, strict=True))
            self._part = np.repeat(np.arange(len(ends)), [len(e) - 1 for e in ends])
            self._starts = np.concatenate([e[:-1] for e in ends])
            self._copy = self._copy_rows

    def padded(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """`gene_ids`, `counts`, `library_size` of a sparse batch of the chosen cells."""
        shape = len(chosen), padded_width(self._sizes[chosen])
        genes, counts = np.empty(shape, np.int32), np.empty(shape, np.float32)
        self._copy(chosen, genes, counts)
        return {"gene_ids": genes, "counts": counts, "library_size": counts.sum(1)}  # exact below 2^24 counts a cell

    def _copy_rows(self, chosen: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        places = (column[chosen].tolist() for column in (self._part, self._starts, self._sizes))
        for own_genes, own_counts, part, start, size in zip(genes, counts, *places, strict=True):
            stored_genes, stored_counts = self._parts[part]
            own_genes[:size] = stored_genes[start : start + size]
            own_genes[size:] = 0
            own_counts[:size] = stored_counts[start : start + size]
            own_counts[size:] = 0

    def _copy_blocks(self, chosen: np.ndarray, genes: np.ndarray, counts: np.ndarray) -> None:
        width = genes.shape[1]
        columns = np.arange(width, dtype=np.min_scalar_type(width))  # numbers of few bytes are compared faster
        inside = columns < self._sizes[chosen].astype(columns.dtype)[:, None]
        for target, blocks in zip((genes, counts), self._blocks, strict=True):
            # whatever follows a row is copied along and then erased
            block = blocks[:, :width][self._starts[chosen]]
            block *= inside
            target[...] = block


def padded_width(sizes: np.ndarray) -> int:
    """The width of a batch of rows of these sizes."""
    return max(8, -(-int(sizes.max(initial=0)) // 8) * 8)
