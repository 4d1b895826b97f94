"""The order in which cells are read: which rows batch number b of epoch e holds on rank r of w.

The unit of reading is the row group of a Parquet shard. The row counts of all shards are known from
dataset.json, so each rank is given an equal, disjoint run of rows whatever the number of shards, and any batch
is found from its number alone: the state of a loader is two integers.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A run of rows inside one row group of one shard."""

    shard: str
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

    shards: list[tuple[str, int]]  # (path in the dataset folder, number of rows)
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
            name, rows = order.shards[shard]
            starts = range(0, rows, order.row_group_rows)
            groups = rng.permutation(len(starts)) if order.shuffle else range(len(starts))
            for g in groups:
                size = min(order.row_group_rows, rows - int(g) * order.row_group_rows)
                self._groups.append(Piece(name, int(g), 0, size))
        self._ends = np.cumsum([p.stop for p in self._groups])
        self._index = {(p.shard, p.row_group): g for g, p in enumerate(self._groups)}

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

    def shard_after(self, window: WindowOrder) -> str | None:
        """The shard that this rank will read next after those of a window; None at the end of its share."""
        last = window.pieces[-1]
        g = self._index[last.shard, last.row_group]
        while g < len(self._groups) and self._groups[g].shard == last.shard:
            g += 1
        more = g < len(self._groups) and self._ends[g - 1] < self._order.share[1]
        return self._groups[g].shard if more else None

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        pieces = []
        g = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            group = self._groups[g]
            offset = int(self._ends[g]) - group.stop
            end = min(stop, int(self._ends[g]))
            pieces.append(Piece(group.shard, group.row_group, start - offset, end - offset))
            start, g = end, g + 1
        return pieces
