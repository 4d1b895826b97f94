"""Sparse batches of cells out of a dataset, in an order that resumes exactly: `CellLoader`."""

from collections.abc import Iterator

import numpy as np
import torch

from evae.common.messages import number_of
from evae.common.prefetch import prefetch
from evae.data.format import AnyDataset, Dataset, DatasetInfo
from evae.data.rows import RowFormat
from evae.data.store import resolve_dataset
from evae.data.streaming.batches import keep_freed_memory, read_windows, window_batches
from evae.data.streaming.order import BatchOrder
from evae.data.streaming.row_groups import RowGroups
from evae.models.contract_evae import EvaeError

__all__ = ["CellLoader", "DatasetInfo", "resolve_dataset"]  # the last two lived here, and are still imported from here

SparseBatch = dict[str, torch.Tensor]
WINDOW_ROWS = 8192
KEPT_BYTES = 512 << 20  # of decoded cells, which a loader keeps from epoch to epoch


class CellLoader:
    """Sparse batches of cells, streamed from the shards; resumes exactly; each rank gets its own rows.

    The shards' row groups are the unit of reading; decoded ones are kept from epoch to epoch while they fit in
    `KEPT_BYTES` (512 MiB, about a million cells of 200 expressed genes). Beside these a loader holds a window and two
    row groups of each lane, so its memory does not grow with the number of cells.

    The order of an epoch is: shards and the row groups in them permuted by (seed, epoch); that sequence cut into lanes
    (see `evae.data.streaming.order`), each rank reading its own; windows of about 8,192 rows over all lanes permuted
    within the lane by (seed, epoch, first row). As rows were shuffled globally at conversion, a batch is a fair sample.
    All of it is a function of (seed, epoch, batch number), so the state is two numbers, and every rank has the same
    number of batches when `drop_last` is set.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`; shards on the Hub are fetched when they are first read, each
            once: one for each lane to begin with.
        split: "train", "validation" or "test".
        batch_size: cells a batch (of this rank).
        seed: of the order.
        rank, world_size: this process among all.
        shuffle: False keeps the stored order.
        epochs: how many times to go through the data; None never ends.
        drop_last: leave out the incomplete last batch of an epoch.
        prefetch: batches prepared ahead in a background thread; 0 prepares them when asked.

    Iterating yields dicts of `gene_ids`, `counts`, `library_size`, `perturbation_ids`, `cell_type_ids`
    (shapes: see `evae.data.streaming.batches`). A second `iter()` goes on where the first one stopped, or starts over
    if that one came to its end; `reset()` starts over at once.

    Raises:
        EvaeError: unknown or empty split; a batch larger than a rank's share of the cells with `drop_last`.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        split: str = "train",
        batch_size: int = 128,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        epochs: int | None = None,
        drop_last: bool = True,
        prefetch: int = 4,
    ):
        if batch_size < 1 or not 0 <= rank < world_size:
            raise EvaeError(f"need batch_size >= 1 and rank < world_size; got {batch_size}, {rank}, {world_size}.")
        dataset = Dataset.open(dataset)
        info = dataset.info
        self.n_cells = dataset.cells_of(split)
        self.info, self.batch_size, self.epochs, self.prefetch = info, batch_size, epochs, prefetch
        self._groups = RowGroups(dataset.store, RowFormat.of(info), kept_bytes=0 if epochs == 1 else KEPT_BYTES)
        self._order = BatchOrder(
            shards=info.shards(split),
            row_group_rows=info.statistics["row_group_rows"],
            batch_size=batch_size, seed=seed, rank=rank, world_size=world_size,
            shuffle=shuffle, drop_last=drop_last, window_rows=WINDOW_ROWS,
        )  # fmt: skip
        self.batches_per_epoch = self._order.n_batches
        if not self.batches_per_epoch:
            raise EvaeError(
                f"the split '{split}' has {number_of(self.n_cells, 'cell')}, fewer than {world_size} x batch_size "
                f"{batch_size}; use a batch_size of at most {max(1, self.n_cells // world_size)}."
            )
        self._epoch, self._batch, self._ended = 0, 0, False

    def reset(self) -> None:
        """Start over at the first batch of the first epoch."""
        self._epoch, self._batch, self._ended = 0, 0, False

    def go_to(self, n_batches: int) -> None:
        """Go on as if so many batches had been yielded since the start."""
        self._epoch, self._batch = divmod(n_batches, self.batches_per_epoch)
        self._ended = False

    def state_dict(self) -> dict[str, int]:
        """What was yielded so far (not what was prefetched): plain integers."""
        return {"epoch": self._epoch, "batch": self._batch, **self._order.fingerprint()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the last batch yielded when `state` was taken.

        Raises:
            EvaeError: the loader differs in seed, cells a batch of all ranks, cells or order.
        """
        for name, own in self._order.fingerprint().items():
            if state.get(name) != own:
                raise EvaeError(
                    f"cannot resume the data: {name} was {state.get(name)} and is now {own}; "
                    "set it back, or start anew."
                )
        self._epoch, self._batch, self._ended = int(state["epoch"]), int(state["batch"]), False

    def rows_of(self, ago: int) -> np.ndarray:
        """Rows of the split, in stored order, of a batch that was yielded; `ago` is 1 for the last one."""
        order, each = self._order, self.batches_per_epoch
        epoch, batch = divmod(self._epoch * each + self._batch - ago, each)
        window = next(order.epoch(epoch).windows_from(batch))
        ends = np.cumsum([0, *(n for _, n in order.shards)])
        first_row = {name: int(end) for (name, _), end in zip(order.shards, ends, strict=False)}
        pieces = [piece for lane in window.pieces for piece in lane]
        starts = [first_row[piece.shard] + piece.row_group * order.row_group_rows for piece in pieces]
        held = np.concatenate([s + np.arange(p.start, p.stop) for s, p in zip(starts, pieces, strict=True)])
        held = held if window.permutation is None else held[window.permutation]
        begin = (batch - window.first_batch) * self.batch_size
        return held[begin : begin + self.batch_size]

    def __iter__(self) -> Iterator[SparseBatch]:
        if self._ended:
            self.reset()
        batches = self._batches(self._epoch, self._batch)
        for (epoch, position), batch in prefetch(batches, self.prefetch) if self.prefetch else batches:
            self._epoch, self._batch = epoch, position
            yield batch
        self._ended = True

    def _batches(self, epoch: int, batch: int) -> Iterator[tuple[tuple[int, int], SparseBatch]]:
        """Pairs of the state after a batch and the batch."""
        keep_freed_memory()
        rows = self._groups.format
        while self.epochs is None or epoch < self.epochs:
            order = self._order.epoch(epoch)
            for window, table in read_windows(self._groups, order, batch):
                for cells in window_batches(table, window, rows, batch, self.batch_size):
                    batch += 1
                    yield (epoch + 1, 0) if batch == self.batches_per_epoch else (epoch, batch), cells
            epoch, batch = epoch + 1, 0
