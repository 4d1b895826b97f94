"""A dataset folder: what it holds (`DatasetInfo`), and sparse batches out of it (`CellLoader`)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from evae.common.hub import explain_hub_errors
from evae.common.prefetch import prefetch
from evae.data.preparing.card import FORMAT_VERSION, panel_digest
from evae.data.streaming.batches import keep_freed_memory, window_batches, window_tables
from evae.data.streaming.order import BatchOrder
from evae.data.streaming.row_groups import RowFormat, RowGroups
from evae.data.streaming.shard_store import ShardStore
from evae.models.contract_evae import EvaeError, near_matches

SparseBatch = dict[str, torch.Tensor]
WINDOW_ROWS = 8192
ROOM = 512 << 20  # bytes of decoded cells that a loader keeps


def resolve_dataset(path_or_id: str | Path, split: str | None = None) -> Path:
    """The local folder of a dataset given as a folder or as a Hub id; the one place where that is decided.

    Args:
        path_or_id: a folder made by `prepare_dataset`, or an id such as "evae/replogle".
        split: fetch the cells of this split too; by default only the small files.

    Raises:
        EvaeError: neither a dataset folder nor a dataset on the Hub.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / "dataset.json").is_file():
            raise EvaeError(f"{folder} is not a dataset folder (no dataset.json); make one with `evae prepare`.")
        return folder
    parts = str(path_or_id).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", ".."):
        several = "," in str(path_or_id)
        fix = f"for several write [{path_or_id}]" if several else "make one with `evae prepare`, or give a Hub id"
        raise EvaeError(f"no such dataset folder: {path_or_id}; {fix}.")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for folders

    wanted = ["*.json", "genes.parquet", "perturbations.parquet", "cell_types.parquet"]
    with explain_hub_errors(str(path_or_id), "dataset"):
        local = snapshot_download(
            str(path_or_id),
            repo_type="dataset",
            allow_patterns=wanted + ([f"data/{split}-*.parquet"] if split else []),
        )
    if not (Path(local) / "dataset.json").is_file():
        raise EvaeError(f"the Hub dataset '{path_or_id}' was not made by `evae prepare` (no dataset.json).")
    return Path(local)


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset folder says about itself.

    Attributes:
        genes: symbols of the gene panel, in the order of the gene indices.
        ensembl_ids: their Ensembl ids, "" where unknown.
        perturbations: the vocabulary in the order of `perturbation_ids`; the control is the first.
        cell_types: the vocabulary in the order of `cell_type_ids`.
        control: name of the control.
        statistics: the content of dataset.json, among it `library_size_quantiles` (101 quantiles of the total
            counts over the panel, training cells), `median_library_size`, `max_count`, `nonzero_fraction`,
            `cell_counts[split][cell_type][perturbation]`, `dropped_cells`, `shards`, `sources`.
        split: what is held out: {"cell_type": [...], "pert": [...]}, {"random": 0.1} or {}.
        n_cells: number of cells of each split.
    """

    genes: list[str]
    ensembl_ids: list[str]
    perturbations: list[str]
    cell_types: list[str]
    control: str
    statistics: dict[str, Any]
    split: dict[str, Any]
    n_cells: dict[str, int]

    @classmethod
    def load(cls, path_or_id: str | Path) -> "DatasetInfo":
        """Read the small files of a dataset folder or Hub dataset.

        Raises:
            EvaeError: not a dataset, a file missing or unreadable, or a newer format than this version reads.
        """
        folder = resolve_dataset(path_or_id)
        try:
            meta = json.loads((folder / "dataset.json").read_text())
            split = json.loads((folder / "split.json").read_text())
            genes = pq.read_table(folder / "genes.parquet").to_pydict()
            perturbations = pq.read_table(folder / "perturbations.parquet").to_pydict()["name"]
            cell_types = pq.read_table(folder / "cell_types.parquet").to_pydict()["name"]
        except (OSError, ValueError, KeyError) as error:
            raise EvaeError(f"the dataset {path_or_id} is incomplete ({error}); make it anew.") from error
        if meta.get("format_version") != FORMAT_VERSION:
            raise EvaeError(
                f"the dataset {path_or_id} has format {meta.get('format_version')}, this evae reads "
                f"{FORMAT_VERSION}; make it anew, or update evae."
            )
        return cls(
            genes=genes["symbol"],
            ensembl_ids=genes["ensembl_id"],
            perturbations=perturbations,
            cell_types=cell_types,
            control=meta["control"],
            statistics=meta,
            split=split,
            n_cells=meta["n_cells"],
        )

    def held_out_pairs(self) -> list[tuple[str, str]]:
        """The (cell type, perturbation) pairs of the held-out cross product that have cells."""
        if "cell_type" not in self.split:
            return []
        held_out = self.statistics["cell_counts"]["test"]
        return [(kind, p) for kind, row in held_out.items() for p in row]

    def summary(self) -> str:
        """A few lines for a person: sizes, splits, what is held out, what was dropped."""
        sizes = ", ".join(f"{n:,} {name}" for name, n in self.n_cells.items())
        dropped = self.statistics["dropped_cells"]
        coverage = min(s["panel_coverage"] for s in self.statistics["sources"])
        return (
            f"{sum(self.n_cells.values()):,} cells ({sizes}), {len(self.genes):,} genes "
            f"(panel coverage {coverage:.0%}), {len(self.perturbations) - 1} perturbations and the control "
            f"'{self.control}', {len(self.cell_types)} cell types; {len(self.held_out_pairs())} (cell type, "
            f"perturbation) pairs held out; {dropped:,} cells dropped for having no count over the panel."
        )


def row_format(info: DatasetInfo) -> RowFormat:
    """What the rows of a dataset must be."""
    return RowFormat(
        gene_dtype=np.dtype(info.statistics["gene_dtype"]),
        count_dtype=np.dtype(info.statistics["count_dtype"]),
        max_count=info.statistics["max_count"],
        panel=panel_digest(info.genes),
        n_genes=len(info.genes),
        n_perturbations=len(info.perturbations),
        n_cell_types=len(info.cell_types),
    )


class CellLoader:
    """Sparse batches of cells, streamed from the shards; resumes exactly; each rank gets its own rows.

    The shards' row groups are the unit of reading, through HF `datasets`; decoded ones are kept from epoch to epoch
    while they fit in `ROOM` (512 MiB, about 500,000 cells of 200 expressed genes). Beside these a loader holds a window
    and a row group of each lane, so its memory does not grow with the number of cells.

    The order of an epoch is: shards and the row groups in them permuted by (seed, epoch); that sequence cut into lanes
    (see `evae.data.streaming.order`), each rank reading its own; windows of about 8,192 rows over all lanes permuted
    within the lane by (seed, epoch, first row). As rows were shuffled globally at conversion, a batch is a fair sample.
    All of it is a function of (seed, epoch, batch number), so the state is two numbers, and every rank has the same
    number of batches when `drop_last` is set.

    Args:
        path_or_id: dataset folder, or Hub id; shards on the Hub are fetched when they are first read, each once: one
            for each lane to begin with.
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
        path_or_id: str | Path,
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
        info = DatasetInfo.load(path_or_id)
        if split not in info.n_cells:
            raise EvaeError(f"no split '{split}'. {near_matches(split, list(info.n_cells))}")
        self.n_cells = info.n_cells[split]
        if not self.n_cells:
            raise EvaeError(f"the split '{split}' of {path_or_id} holds no cells; prepare it with a split.")
        self.info, self.batch_size, self.epochs, self.prefetch = info, batch_size, epochs, prefetch
        store = ShardStore(resolve_dataset(path_or_id), None if Path(path_or_id).is_dir() else str(path_or_id))
        self._groups = RowGroups(store, row_format(info), room=0 if epochs == 1 else ROOM)
        self._order = BatchOrder(
            shards=[(s["path"], s["rows"]) for s in info.statistics["shards"]
                    if s["path"].startswith(f"data/{split}-")],
            row_group_rows=info.statistics["row_group_rows"],
            batch_size=batch_size, seed=seed, rank=rank, world_size=world_size,
            shuffle=shuffle, drop_last=drop_last, window_rows=WINDOW_ROWS,
        )  # fmt: skip
        self.batches_per_epoch = self._order.n_batches
        if not self.batches_per_epoch:
            raise EvaeError(
                f"the split '{split}' has {self.n_cells:,} cells, fewer than {world_size} x batch_size "
                f"{batch_size}; use a batch_size of at most {max(1, self.n_cells // world_size)}, "
                "or drop_last=False."
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
        source = self._batches(self._epoch, self._batch)
        for (epoch, position), batch in prefetch(source, self.prefetch) if self.prefetch else source:
            self._epoch, self._batch = epoch, position
            yield batch
        self._ended = True

    def _batches(self, epoch: int, batch: int) -> Iterator[tuple[tuple[int, int], SparseBatch]]:
        """Pairs of the state after a batch and the batch."""
        keep_freed_memory()
        rows = self._groups.format
        while self.epochs is None or epoch < self.epochs:
            order = self._order.epoch(epoch)
            tables = window_tables(self._groups, order, batch)
            for window, table in zip(order.windows_from(batch), tables, strict=True):
                for cells in window_batches(table, window, rows, batch, self.batch_size):
                    batch += 1
                    yield (epoch + 1, 0) if batch == self.batches_per_epoch else (epoch, batch), cells
            epoch, batch = epoch + 1, 0
