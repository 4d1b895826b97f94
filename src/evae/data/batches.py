"""Sparse batches out of row groups, without a dense copy.

A sparse batch is a dict of torch tensors:

    gene_ids         (cells, max_expressed) int32, panel index; 0 where padded
    counts           (cells, max_expressed) float32; 0 marks padding
    library_size     (cells,) float32, total counts over the gene panel
    perturbation_ids (cells,) int64
    cell_type_ids    (cells,) int64

max_expressed is the largest number of expressed genes in the batch, rounded up to a multiple of 8.

Rows come through the `IterableDataset` of HF `datasets`, one for each epoch of a rank, which streams the row groups
in the order that `evae.data.order` works out and cuts them into windows. What `datasets` itself would remember of its
place is not used: a place is a batch number, from which the rows are known.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.stride_tricks import as_strided

from evae.data.order import EpochOrder, Window
from evae.data.row_groups import RowFormat, RowGroups, flat_values

CACHED_VALUES = 1 << 16  # so many at a time stay in a core's cache until they are padded and converted


def window_tables(groups: RowGroups, order: EpochOrder, batch: int) -> Iterator[pa.Table]:
    """The rows of this rank's windows, from the one that holds batch number `batch` on, streamed by HF `datasets`."""
    from datasets import IterableDataset  # slow to import
    from datasets.iterable_dataset import ArrowExamplesIterable

    stream = IterableDataset(ArrowExamplesIterable(partial(_pieces, groups, order, batch), {}))
    return stream.with_format("arrow").iter(batch_size=order.window_rows)


def _pieces(groups: RowGroups, order: EpochOrder, batch: int) -> Iterator[tuple[str, pa.Table]]:
    """Window by window, in each lane by lane."""
    upcoming = [order.shards_from(lane, batch) for lane in order.lanes]
    for shards in upcoming:
        groups.store.expect(shards[0] if shards else None)
    current: list[tuple[tuple[str, int], pa.Table] | None] = [None] * len(upcoming)
    for window in order.windows_from(batch):
        for lane, pieces in enumerate(window.pieces):
            for piece in pieces:
                place, held = (piece.shard, piece.row_group), current[lane]
                if held is None or held[0] != place:
                    held = current[lane] = place, groups.read(*place, piece.stop)
                if piece.shard == next(iter(upcoming[lane]), None):
                    upcoming[lane].pop(0)
                    groups.store.expect(next(iter(upcoming[lane]), None))
                yield f"{piece.shard}:{piece.row_group}", held[1].slice(piece.start, piece.stop - piece.start)


def window_batches(
    table: pa.Table, window: Window, rows: RowFormat, first: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The sparse batches of a window, from batch number `first` on; the last one may be smaller.

    Args:
        table: the window's rows, lane after lane.
    """
    n = table.num_rows
    order = np.arange(n) if window.permutation is None else window.permutation
    _, ends = flat_values(table["counts"], rows.count_dtype)
    starts, sizes = ends[:-1], np.diff(ends)
    widest = padded_width(sizes)
    genes = overlapping(flat_values(table["genes"], rows.gene_dtype, tail=widest)[0], widest)
    counts = overlapping(flat_values(table["counts"], rows.count_dtype, tail=widest)[0], widest)
    labels = {f"{name}_ids": table[name].to_numpy() for name in ("perturbation", "cell_type")}
    for start in range((first - window.first_batch) * batch_size, n, batch_size):
        chosen = order[start : start + batch_size]
        batch = {
            **rectangles(genes, counts, starts[chosen], sizes[chosen]),
            **{name: column[chosen] for name, column in labels.items()},
        }
        yield {name: torch.from_numpy(column) for name, column in batch.items()}


def padded_width(sizes: np.ndarray) -> int:
    """The width of a batch of rows of these sizes."""
    return max(8, -(-int(sizes.max(initial=0)) // 8) * 8)


def overlapping(values: np.ndarray, width: int) -> np.ndarray:
    """A view (values - width + 1, width) whose row i is values[i : i + width]."""
    return as_strided(values, (len(values) - width + 1, width), values.strides * 2)


def rectangles(genes: np.ndarray, counts: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of different lengths as rectangles, zeros behind the end of each.

    Args:
        genes, counts: views as `overlapping` makes them of the values of all rows end to end.
        starts, sizes: (cells,), where the rows begin in the values, and how long they are.

    Returns:
        `gene_ids`, `counts`, `library_size` of a sparse batch.
    """
    width = padded_width(sizes)
    padded = np.empty((len(sizes), width), np.int32), np.empty((len(sizes), width), np.float32)
    library_size = np.empty(len(sizes), np.float32)  # exact below 2^24 counts a cell
    columns = np.arange(width, dtype=np.min_scalar_type(width))  # numbers of few bytes are compared faster
    lengths = sizes.astype(columns.dtype)[:, None]
    step = max(1, CACHED_VALUES // width)
    for rows in (slice(first, first + step) for first in range(0, len(sizes), step)):
        inside = columns < lengths[rows]
        for target, source in zip(padded, (genes, counts), strict=True):
            # whatever follows a row is copied along and then erased: one copy of memory a row, at any length
            block = source[:, :width][starts[rows]]
            block *= inside
            target[rows] = block
        padded[1][rows].sum(1, out=library_size[rows])
    return {"gene_ids": padded[0], "counts": padded[1], "library_size": library_size}
