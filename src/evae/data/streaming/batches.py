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
import torch

from evae.data.rows import RowFormat
from evae.data.streaming.order import EpochOrder, Window
from evae.data.streaming.row_groups import RowGroups

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of settings of glibc, malloc.h
MOST_KEPT = 32 << 20  # bytes of an array whose memory is kept, the most that glibc takes


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
    from evae.data.streaming.lay_out import lay_out  # numba takes a third of a second and is not wanted without cells

    order = np.arange(table.num_rows) if window.permutation is None else window.permutation
    order = order[(first - window.first_batch) * batch_size :]
    cells = rows.cells(table)
    stored = [cells.genes, cells.counts, cells.ends, cells.high, cells.high_ends]
    for array in stored:  # numba compiles for what may be written to, and for what may not, apart
        array.flags.writeable = False
    widths = np.maximum.reduceat(np.diff(cells.ends)[order], np.arange(0, len(order), batch_size))
    labels = {f"{name}_ids": table[name].to_numpy()[order] for name in ("perturbation", "cell_type")}
    for i, width in enumerate(widths):
        own = slice(i * batch_size, (i + 1) * batch_size)
        shape = len(order[own]), padded_width(width)
        genes, counts = np.empty(shape, np.int32), np.empty(shape, np.float32)
        totals = np.empty(len(genes), np.float32)
        lay_out(*stored, cells.steps, order[own], genes, counts, totals)
        batch = {"gene_ids": genes, "counts": counts, "library_size": totals}
        batch |= {name: ids[own] for name, ids in labels.items()}
        yield {name: torch.from_numpy(column) for name, column in batch.items()}


def padded_width(size: int) -> int:
    """The width of a batch whose longest row is of this size."""
    return max(8, -(-int(size) // 8) * 8)
