"""Which cells of the datasets a training batch held: for the message about a loss that is no number."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evae.data.dataset import CellLoader, resolve_dataset
from evae.data.shard_store import ShardStore
from evae.data.sources import Mixture, Sources
from evae.training.codes import CodeBatches

Place = tuple[int, int]  # number of the dataset, row of its training cells in stored order


def places_of(batches: Any, ago: int) -> list[Place]:
    """Where the cells of a batch come from that was handed out already; `ago` is 1 for the last one."""
    if isinstance(batches, Mixture):
        parts = [[(i, row) for _, row in places_of(part, ago)] for i, part in enumerate(batches._parts)]
        joined = [place for part in parts for place in part]
        return [joined[i] for i in batches._rows.tolist()]
    rows = _rows_of_loader(batches, ago) if isinstance(batches, CellLoader) else _rows_of_codes(batches, ago)
    return [(0, int(row)) for row in rows]


def _rows_of_codes(batches: CodeBatches, ago: int) -> np.ndarray:
    start = batches.seen - (ago * batches.world_size - batches.rank) * batches.batch_size
    return batches._rows(start, start + batches.batch_size)


def _rows_of_loader(loader: CellLoader, ago: int) -> np.ndarray:
    order, each = loader._order, loader.batches_per_epoch
    number, batch = divmod(loader._epoch * each + loader._batch - ago, each)
    window = next(order.epoch(number).windows_from(batch))
    ends = np.cumsum([0, *(n for _, n in order.shards)])
    first_row = {name: int(end) for (name, _), end in zip(order.shards, ends, strict=False)}
    held = np.concatenate(
        [
            first_row[p.shard] + p.row_group * order.row_group_rows + np.arange(p.start, p.stop)
            for lane in window.pieces
            for p in lane
        ]
    )
    held = held if window.permutation is None else held[window.permutation]
    begin = (batch - window.first_batch) * loader.batch_size
    return held[begin : begin + loader.batch_size]


def named_cells(sources: Sources, batches: Any, ago: int) -> list[dict[str, Any]]:
    """The shard, the row in it and the name of every cell of a batch; see `places_of`."""
    found: list[dict[str, Any]] = []
    names: dict[str, list[str]] = {}
    for number, row in places_of(batches, ago):
        path, info = sources.paths[number], sources.infos[number]
        row %= info.n_cells["train"]  # thinned copies follow the whole cells
        for shard in (s for s in info.statistics["shards"] if s["path"].startswith("data/train-")):
            if row < shard["rows"]:
                break
            row -= shard["rows"]
        place = f"{path}/{shard['path']}"
        if place not in names:
            store = ShardStore(resolve_dataset(path), None if Path(path).is_dir() else path)
            names[place] = pq.read_table(store.path(shard["path"]), columns=["cell_id"])["cell_id"].to_pylist()
        found.append({"file": place, "row": row, "cell": names[place][row]})
    return found
