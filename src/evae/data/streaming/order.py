"""The order in which cells are read: which rows are in batch b of epoch e on rank r of w.

The unit of reading is the row group of a Parquet shard. An epoch is a permuted sequence of all row groups, cut into
lanes: equal, disjoint ranges of rows. dataset.json holds the row counts of all shards, so any batch can be computed
from its number, and the state of a loader is two integers (epoch and batch).

In training there are up to 8 lanes. The global batch takes equally many rows from each, and a rank reads its own lanes
only. So 1, 2, 4 or 8 ranks with the same global batch see the same cells in the same steps, and no row is read twice.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A run of rows inside one row group of one shard, which has `rows` rows."""

    shard: str
    row_group: int
    start: int
    stop: int
    rows: int


MOST_LANES = 8
PLACE = ("epoch", "batch", "cells_seen", "window")  # the position in a source's state; other keys describe the order


@dataclass(frozen=True)
class Window:
    """Consecutive batches that are read and shuffled together.

    Attributes:
        first_batch: number of its first batch.
        pieces: its rows in each of the rank's lanes.
        permutation: (rows,), the order of the rows in the batches, as indices into the pieces lane after lane; None
            for the stored order.
    """

    first_batch: int
    pieces: list[list[Piece]]
    permutation: np.ndarray | None


@dataclass(frozen=True)
class BatchOrder:
    """Everything that determines which rows are in a batch on this rank."""

    shards: list[tuple[str, int]]  # (path in the dataset folder, number of rows)
    row_group_rows: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    shuffle: bool
    drop_last: bool
    window_rows: int

    @cached_property
    def n_cells(self) -> int:
        return sum(rows for _, rows in self.shards)

    @cached_property
    def n_lanes(self) -> int:
        """Number of lanes of all ranks together."""
        common = math.gcd(self.world_size * self.batch_size, MOST_LANES)
        alike = self.shuffle and self.drop_last and common % self.world_size == 0
        return common if alike else self.world_size

    @property
    def own_lanes(self) -> range:
        """The lanes that this rank reads."""
        each = self.n_lanes // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)

    @property
    def lane_rows(self) -> int:
        """Rows that a batch takes from one lane."""
        return self.batch_size // len(self.own_lanes)

    @property
    def window_batches(self) -> int:
        """Batches in a window. Rows are permuted within each lane's part of it."""
        return max(1, self.window_rows // min(self.n_lanes, MOST_LANES) // self.lane_rows)

    def window_start(self, batch: int) -> int:
        """Number of the first batch of the window that holds batch number `batch`."""
        return batch // self.window_batches * self.window_batches

    def share(self, lane: int) -> tuple[int, int]:
        """Start and stop row of a lane in the epoch's sequence."""
        n = self.n_cells
        if self.drop_last:  # equal shares, so that all ranks have the same number of batches
            each = n // self.n_lanes
            return lane * each, (lane + 1) * each
        return lane * n // self.n_lanes, (lane + 1) * n // self.n_lanes

    @cached_property
    def n_batches(self) -> int:
        start, stop = self.share(self.own_lanes[0])
        rows = stop - start
        return rows // self.lane_rows if self.drop_last else -(-rows // self.lane_rows)

    def fingerprint(self) -> dict[str, int]:
        """The settings that must be equal for a saved position to mean the same rows."""
        return {
            "seed": self.seed,
            "global_batch": self.batch_size * self.world_size,
            "lanes": self.n_lanes,
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
            name, rows = order.shards[shard]
            starts = range(0, rows, order.row_group_rows)
            groups = rng.permutation(len(starts)) if order.shuffle else range(len(starts))
            for g in groups:
                size = min(order.row_group_rows, rows - int(g) * order.row_group_rows)
                self._groups.append(Piece(name, int(g), 0, size, size))
        self._ends = np.cumsum([p.stop for p in self._groups])

    @property
    def lanes(self) -> range:
        """The lanes that this rank reads."""
        return self._order.own_lanes

    @property
    def window_rows(self) -> int:
        """Rows of a window of this rank; the last one of an epoch may be smaller."""
        return self._order.window_batches * self._order.batch_size

    def places_from(self, lane: int, batch: int) -> list[tuple[str, int]]:
        """The row groups, as (shard, number in it), that a lane reads from the window with batch number `batch` on."""
        first = self._order.window_start(batch)
        pieces = self._pieces(*self._rows(lane, first, self._order.n_batches))
        return [(piece.shard, piece.row_group) for piece in pieces]

    def windows_from(self, batch: int) -> Iterator[Window]:
        """The windows of this rank, from the one with batch number `batch` on."""
        order, each = self._order, self._order.lane_rows
        for first in range(order.window_start(batch), order.n_batches, order.window_batches):
            last = min(first + order.window_batches, order.n_batches)
            pieces: list[list[Piece]] = []
            permuted: list[np.ndarray] = []
            n = 0
            for lane in order.own_lanes:
                start, stop = self._rows(lane, first, last)
                pieces.append(self._pieces(start, stop))
                if order.shuffle:
                    permuted.append(
                        n + np.random.default_rng([order.seed, self._epoch, start]).permutation(stop - start)
                    )
                n += stop - start
            permutation = permuted[0] if permuted else None
            if len(permuted) > 1:  # batch by batch, each batch lane by lane
                permutation = np.stack([p.reshape(-1, each) for p in permuted], axis=1).ravel()
            yield Window(first, pieces, permutation)

    def _rows(self, lane: int, first: int, last: int) -> tuple[int, int]:
        """Start and stop row, in the epoch's sequence, of a lane's batches `first` to `last` (exclusive)."""
        begin, end = self._order.share(lane)
        return begin + first * self._order.lane_rows, min(end, begin + last * self._order.lane_rows)

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        pieces = []
        g = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            group = self._groups[g]
            offset = int(self._ends[g]) - group.stop
            end = min(stop, int(self._ends[g]))
            pieces.append(Piece(group.shard, group.row_group, start - offset, end - offset, group.rows))
            start, g = end, g + 1
        return pieces
