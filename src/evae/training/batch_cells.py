"""Which cells of the datasets a training batch held: for the message about a loss that is not finite."""

from typing import Any

import pyarrow.parquet as pq

from evae.data.streaming.loader import CellLoader
from evae.data.streaming.mixture import Mixture, Sources
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
        dataset = sources.datasets[number]
        row %= dataset.info.n_cells["train"]  # thinned copies follow the whole cells
        shard, row = dataset.info.shard_of("train", row)
        place = dataset.store.place(shard)
        if place not in names:
            names[place] = pq.read_table(dataset.store.path(shard), columns=["cell_id"])["cell_id"].to_pylist()
        found.append({"file": place, "row": row, "cell": names[place][row]})
    return found
