"""Which cells of the datasets a training batch held: for the message about a loss that is not finite."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evae.data.streaming.loader import CellLoader, resolve_dataset
from evae.data.streaming.mixture import Mixture, Sources
from evae.data.streaming.shard_store import ShardStore
from evae.training.codes import CodeBatches


def named_cells(sources: Sources, batches: CellLoader | CodeBatches | Mixture, ago: int) -> list[dict[str, Any]]:
    """The shard, the row in it and the name of every cell of a training batch.

    Args:
        sources: where the cells come from.
        batches: what handed the batch out.
        ago: how many batches ago, 1 for the last one.

    Raises:
        EvaeError, OSError: a shard cannot be had.
    """
    if isinstance(batches, Mixture):
        places = batches.places_of(ago)
    else:
        places = [(0, int(row)) for row in batches.rows_of(ago)]
    found: list[dict[str, Any]] = []
    names: dict[str, list[str]] = {}
    for number, row in places:
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
