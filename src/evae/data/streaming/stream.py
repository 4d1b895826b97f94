"""Sparse batches out of an `IterableDataset` of HF `datasets`: its filters, maps and shuffles before training.

Rows are read in windows, and the rows of a window are permuted. The place of a stream is the window, as `datasets`
states where it began, and the number of batches since. On resume the window is read again and compared by its checksum.
Where `datasets` does not come back to the same rows (it forgets the buffer of `IterableDataset.shuffle`, and 4.0 loses
rows of filtered and mapped streams), the epoch is read again from its beginning.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from evae.common.prefetch import prefetch
from evae.data.format import AnyDataset, Dataset
from evae.data.rows import RowFormat
from evae.data.streaming.batches import window_batches
from evae.data.streaming.loader import WINDOW_ROWS, SparseBatch
from evae.data.streaming.mixture import Sources
from evae.data.streaming.order import Window
from evae.data.streaming.stream_rows import CellReader, check_stream, checksum
from evae.models.contract_evae import EvaeError

if TYPE_CHECKING:
    from datasets import IterableDataset

START: dict[str, Any] = {"epoch": 0, "batch": 0, "window": None}


class CellStream:
    """Sparse batches of the cells of an `IterableDataset`; resumes exactly; each rank gets its own rows.

    The cells are those of a dataset of `evae prepare`, in a folder or on the Hub. `filter`, `shuffle`, `take`,
    `interleave_datasets` and the like may be applied to them, and `map` with `features=cells.features`. `datasets` must
    give the same rows again: `shuffle` needs a seed, and the functions may not draw random numbers.

    Rows are permuted within windows of 8,192 by (seed, epoch, window, rank). A rank's share is that of
    `split_dataset_by_node`: whole shards where their number divides among the ranks, else every so many-th row.

    Args:
        cells: for example `load_dataset("me/screen", split="train", streaming=True)`.
        panel: the dataset (folder, Hub id or open) in whose gene panel and vocabularies the batches count. The panel
            must be that of the cells; perturbations and cell types are matched by name.
        batch_size: cells a batch (of this rank).
        seed: of the permutations.
        rank, world_size: this process among all.
        shuffle: False keeps the order of `cells`.
        epochs: how many times to go through `cells`; None never ends.
        drop_last: leave out the incomplete last batch of an epoch.
        prefetch: batches prepared ahead in a background thread; 0 prepares them when asked.

    Iterating yields what `CellLoader` yields. `state_dict` differs between ranks.

    Raises:
        EvaeError: no `IterableDataset` of such cells, or cells over another panel; while iterating, labels that the
            panel's dataset does not have, damaged rows, fewer cells than a batch, other cells than before a stop.
    """

    def __init__(
        self, cells: "IterableDataset", panel: AnyDataset, batch_size: int = 128, seed: int = 0, rank: int = 0,
        world_size: int = 1, shuffle: bool = True, epochs: int | None = None, drop_last: bool = True, prefetch: int = 4,
    ):  # fmt: skip
        if batch_size < 1 or not 0 <= rank < world_size:
            raise EvaeError(f"need batch_size >= 1 and rank < world_size; got {batch_size}, {rank}, {world_size}.")
        check_stream(cells)
        self._reader = CellReader(cells.features, Dataset.open(panel))
        self._cells = copy.deepcopy(cells)  # iterators over one stream share its state
        self._rank, self._world_size = rank, world_size
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.epochs, self.drop_last, self.prefetch = epochs, drop_last, prefetch
        self._window_batches = max(1, WINDOW_ROWS // batch_size)
        self._place, self._ended = START, False

    def state_dict(self) -> dict[str, Any]:
        """What this rank has yielded so far (not what was prefetched): plain values."""
        order = {"seed": self.seed, "batch_size": self.batch_size, "stream_ranks": self._world_size}
        return {**self._place, **order, "shuffle": int(self.shuffle), "drop_last": int(self.drop_last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch yielded when `state` was taken.

        Raises:
            EvaeError: the stream differs in seed, batch size, ranks or order.
        """
        for name, own in self.state_dict().items():
            if name not in START and state.get(name) != own:
                raise EvaeError(
                    f"cannot resume the data: {name} was {state.get(name)} and is now {own}; set it back, or start "
                    "anew."
                )
        self._place, self._ended = {name: state[name] for name in START}, False

    def rows_of(self, ago: int) -> np.ndarray:
        """Not known of a stream: its rows stand in no file of their own."""
        raise EvaeError("the cells of a stream cannot be named; look at the saved batch.")

    def __iter__(self) -> Iterator[SparseBatch]:
        if self._ended:
            self._place, self._ended = START, False
        batches = self._batches(**self._place)
        for place, batch in prefetch(batches, self.prefetch) if self.prefetch else batches:
            self._place = place
            yield batch
        self._ended = True

    def _batches(
        self, epoch: int, batch: int, window: dict[str, Any] | None
    ) -> Iterator[tuple[dict[str, Any], SparseBatch]]:
        """Pairs of the place after a batch and the batch."""
        while self.epochs is None or epoch < self.epochs:
            for read in self._windows(epoch, window):
                rows = read.table.num_rows
                rows -= rows % self.batch_size if self.drop_last else 0
                chance = np.random.default_rng([self.seed, epoch, read.first, self._rank])
                order = Window(read.first, [], chance.permutation(rows) if self.shuffle else None)
                if rows:
                    for cells in window_batches(read.table.slice(0, rows), order, read.format, batch, self.batch_size):
                        batch += 1
                        yield {"epoch": epoch, "batch": batch, "window": read.place}, cells
            if not batch:
                whose = f"the share of rank {self._rank} of " if self._world_size > 1 else ""
                lacking = f"fewer cells than batch_size={self.batch_size}; lower it" if self.drop_last else "no cells"
                raise EvaeError(f"{whose}the stream holds {lacking}, or filter less.")
            epoch, batch, window = epoch + 1, 0, None

    def _windows(self, epoch: int, place: dict[str, Any] | None) -> Iterator["ReadWindow"]:
        """The windows of an epoch, from that at a place on."""
        if place is None:
            return self._read(epoch, 0, None)
        windows: Iterator[ReadWindow] = iter(())
        found = None
        if place["state"] is not None:
            windows = self._read(epoch, place["first"], place["state"])
            try:
                found = next(windows, None)
            except Exception:  # datasets 5.2.0 ends in a SystemError near the end of a shuffled stream
                found = None  # what is wrong with the stream itself comes up again below
        if found is None or found.checksum != place["checksum"]:
            windows = self._read(epoch, 0, None)
            found = next((window for window in windows if window.first == place["first"]), None)
        if found is None or found.checksum != place["checksum"]:
            raise EvaeError(
                "cannot resume the data: the stream does not give the cells again that it gave before; give the same "
                "cells, with a seed for shuffle and without random numbers in map and filter, or start anew."
            )
        return chain([found], windows)

    def _read(self, epoch: int, first: int, state: dict[str, Any] | None) -> Iterator["ReadWindow"]:
        """The windows of an epoch, from batch number `first` on, where `datasets` is in the given state."""
        from datasets.distributed import split_dataset_by_node

        stream = split_dataset_by_node(self._cells.with_format("arrow"), self._rank, self._world_size)
        stream.set_epoch(epoch)
        if state is not None:
            stream.load_state_dict(state)
        for rows in stream.iter(batch_size=self._window_batches * self.batch_size):
            table, row_format = self._reader(rows, first * self.batch_size)
            yield ReadWindow(first, state, checksum(table), table, row_format)
            first, state = first + self._window_batches, stream.state_dict()


@dataclass(frozen=True)
class ReadWindow:
    """Rows that were read together."""

    first: int  # number of the first batch
    state: dict[str, Any] | None  # of the `IterableDataset` before them; None at the beginning of an epoch
    checksum: int
    table: pa.Table
    format: RowFormat

    @property
    def place(self) -> dict[str, Any]:
        """What a window is found again by."""
        return {"first": self.first, "state": self.state, "checksum": self.checksum}


class StreamedSources(Sources):
    """One dataset, whose training cells are those of an `IterableDataset` instead.

    Panel, vocabularies, statistics and validation cells are the dataset's.

    Args:
        datasets: the dataset, alone.
        cells: see `CellStream`.

    Raises:
        EvaeError: several datasets, or `cells` that `CellStream` refuses.
    """

    def __init__(self, datasets: Sequence[AnyDataset], cells: "IterableDataset"):
        if len(datasets) != 1:
            raise EvaeError("cells= goes with one dataset, whose gene panel they count over; give one.")
        super().__init__(datasets)
        self._cells = cells
        self.training_batches(1)  # what is wrong with the cells comes up now

    def order(self) -> list[Any]:
        """What tells the training from one on the dataset's own cells."""
        return ["cells of an IterableDataset"]

    def training_batches(  # type: ignore[override]
        self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> CellStream:
        """An endless source of training batches for one rank."""
        return CellStream(self._cells, self.datasets[0], batch_size, seed, rank, world_size)

    def sample(self, n_cells: int, seed: int) -> SparseBatch:
        """About `n_cells` cells from the beginning of the stream."""
        options: dict[str, Any] = {"epochs": 1, "drop_last": False, "prefetch": 0}
        return next(iter(CellStream(self._cells, self.datasets[0], n_cells, seed, **options)))
