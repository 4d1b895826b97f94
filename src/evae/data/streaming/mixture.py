"""Several datasets as one: a union of the vocabularies, and batches that hold a fixed share of each.

The datasets must count over the same gene panel and have the same control. Perturbations and cell types are united, and
ids are translated while reading. A batch holds as many cells of each dataset as the weights say, rounded (see
`Sources.batch_quotas`), so every rank has its share and the place in all datasets follows from the number of batches.
Each dataset is gone through in its own order, reshuffled whenever it has come to its end; an epoch of all together is
one pass through the dataset that takes longest, the one with most training cells for its weight.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from evae.common.messages import number_of
from evae.data.format import AnyDataset, Dataset, DatasetInfo
from evae.data.streaming.loader import CellLoader, SparseBatch
from evae.data.streaming.onto import Onto
from evae.data.streaming.order import MOST_LANES, PLACE
from evae.data.streaming.united import united
from evae.models.contract_evae import EvaeError

ROUNDING = 0.1  # of a share


@dataclass(frozen=True)
class Ids:
    """The ids of one dataset in the united vocabularies.

    Attributes:
        perturbation, cell_type: int64, by the dataset's own id.
        gene: likewise, over another panel; None where the panel is the dataset's own.
    """

    perturbation: torch.Tensor
    cell_type: torch.Tensor
    gene: torch.Tensor | None = None

    def __call__(self, batch: SparseBatch) -> SparseBatch:
        ids = {
            "perturbation_ids": self.perturbation[batch["perturbation_ids"]],
            "cell_type_ids": self.cell_type[batch["cell_type_ids"]],
        }
        if self.gene is not None:
            ids["gene_ids"] = self.gene.to(batch["gene_ids"].dtype)[batch["gene_ids"].long()]
        return {**batch, **ids}


class Sources:
    """One dataset, or several as one.

    Args:
        datasets: folders, Hub ids or open datasets.
        weights: how many cells of each a batch holds, in proportion; by the numbers of training cells if empty, so
            that every cell is seen equally often.
        onto: a model whose panel and vocabularies they are read over; their own if None.

    Attributes:
        datasets: open, in the order given.
        info: of the one dataset, or of all together; `statistics` then holds what is known of all: counts of cells,
            quantiles of the library size (of the cells as the weights mix them), and what `summary` tells.
        shares: of a batch, for each dataset; they sum to 1.

    Raises:
        EvaeError: datasets over different panels or with different controls, weights that do not fit.
    """

    def __init__(self, datasets: Sequence[AnyDataset], weights: Sequence[float] = (), onto: Onto | None = None):
        self.datasets = [Dataset.open(dataset) for dataset in datasets]
        self.infos = [dataset.info if onto is None else onto.carried(dataset) for dataset in self.datasets]
        if weights and len(weights) != len(datasets):
            raise EvaeError(
                f"{len(weights)} dataset_weights for {number_of(len(datasets), 'dataset')}; give one for each."
            )
        if any(not 0 < weight < math.inf for weight in weights):
            raise EvaeError(f"dataset_weights are {list(weights)}; give numbers above 0.")
        parts = np.array(weights or [info.n_cells["train"] for info in self.infos], dtype=float)
        self.shares: list[float] = (parts / (parts.sum() or 1)).tolist()
        named = [replace(dataset, info=info) for dataset, info in zip(self.datasets, self.infos, strict=True)]
        self.info = self.infos[0] if len(self.infos) == 1 else united(named, self.shares)
        self.info = self.info if onto is None else onto.grown(self.info)
        places = [None if onto is None else torch.from_numpy(onto.places(d.info)) for d in self.datasets]
        self._ids = [_ids(info, self.info, place) for info, place in zip(self.infos, places, strict=True)]
        self._as_stored = len(self.datasets) == 1 and onto is None

    def __len__(self) -> int:
        return len(self.datasets)

    def order(self) -> list[Any]:
        """What tells several datasets apart, in their order; nothing of one alone."""
        return [[i.n_cells, i.perturbations, i.cell_types] for i in self.infos] if len(self) > 1 else []

    def quotas(self, n_cells: int, setting: str = "batch_size") -> list[int]:
        """`n_cells`, the value of a setting, divided among the datasets, the largest remainders rounded up.

        Raises:
            EvaeError: one of them would get none.
        """
        quotas = self._divided(n_cells)
        for dataset, number, share in zip(self.datasets, quotas, self.shares, strict=True):
            if not number:
                raise EvaeError(
                    f"of {number_of(n_cells, 'cell')} the dataset {dataset} gets none with a share of {share:.2g}; "
                    f"raise {setting} or its weight in dataset_weights."
                )
        return quotas

    def batch_quotas(self, batch_size: int, world_size: int = 1) -> list[int]:
        """The cells of each dataset in a batch of one rank of several.

        All ranks together get multiples of 8 cells where that keeps every share within 10 % of what the weights say
        (always, where each is of 80 cells or more and all of a multiple of 8): then 1, 2, 4 or 8 ranks with as many
        cells a step have the same shares. Elsewhere every rank rounds for itself to whole cells, and other numbers of
        ranks may have other shares.

        Raises:
            EvaeError: a dataset would get none.
        """
        whole = batch_size * world_size
        eights = self._divided(whole // MOST_LANES)
        wanted = [share * whole for share in self.shares]
        near = all(abs(n * MOST_LANES - exact) <= ROUNDING * exact for n, exact in zip(eights, wanted, strict=True))
        if near and whole % MOST_LANES == 0 and MOST_LANES % world_size == 0:
            return [n * MOST_LANES // world_size for n in eights]
        return self.quotas(batch_size)

    def _divided(self, n: int) -> list[int]:
        exact = [share * n for share in self.shares]
        whole = [math.floor(number) for number in exact]
        largest = sorted(range(len(self)), key=lambda i: whole[i] - exact[i])
        for i in largest[: n - sum(whole)]:
            whole[i] += 1
        return whole

    def cells(self, number: int, split: str, batch_size: int) -> Iterator[SparseBatch]:
        """All cells of a split of one dataset, in stored order."""
        loader = CellLoader(self.datasets[number], split, batch_size, shuffle=False, epochs=1, drop_last=False)
        return map(self._ids[number], loader)

    def training_batches(
        self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> "CellLoader | Mixture":
        """An endless source of shuffled training batches for one rank; see `CellLoader` and `Mixture`."""
        options: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size}
        if self._as_stored:
            return CellLoader(self.datasets[0], batch_size=batch_size, **options)
        quotas = self.batch_quotas(batch_size, world_size)
        loaders = [CellLoader(d, batch_size=q, **options) for d, q in zip(self.datasets, quotas, strict=True)]
        return Mixture(loaders, world_size, self._ids)

    def sample(self, n_cells: int, seed: int) -> SparseBatch:
        """About `n_cells` shuffled training cells, of each dataset its share."""
        parts = []
        for dataset, ids, quota in zip(
            self.datasets, self._ids, self.quotas(n_cells, "calibration_cells"), strict=True
        ):
            loader = CellLoader(dataset, batch_size=quota, seed=seed, drop_last=False, epochs=1, prefetch=0)
            parts.append(ids(next(iter(loader))))
        return joined_batches(parts)


class Part(Protocol):
    """What a mixture needs of its parts: endless batches of a fixed size, and a place that is a number of batches."""

    batch_size: int

    @property
    def batches_per_epoch(self) -> int: ...

    def __iter__(self) -> Iterator[SparseBatch]: ...

    def go_to(self, n_batches: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def rows_of(self, ago: int) -> np.ndarray: ...


class Mixture:
    """Batches that hold a fixed number of cells of each of several sources.

    Ranks together see what one rank with as many cells sees, in the same order, where the sources do and the cells of
    each divide among the ranks: the cells of the sources alternate in as many blocks as lanes allow, and a rank's
    blocks follow those of the rank before.

    Args:
        parts: the sources, each with its own batch size, for one rank.
        world_size: number of ranks.
        translate: what becomes of the batches of each source; nothing if None.
    """

    def __init__(self, parts: Sequence[Any], world_size: int, translate: Sequence[Any] | None = None):
        self._parts: Sequence[Part] = parts
        self._translate = translate
        self.batch_size = sum(part.batch_size for part in parts)
        self.batches_per_epoch = max(part.batches_per_epoch for part in parts)
        lanes = MOST_LANES // world_size if MOST_LANES % world_size == 0 else 1
        blocks = math.gcd(lanes, *(part.batch_size for part in parts))
        ends = np.cumsum([0, *(part.batch_size for part in parts)])
        rows = [np.arange(start, stop).reshape(blocks, -1) for start, stop in pairwise(ends)]
        self._rows = torch.from_numpy(np.concatenate(rows, axis=1).ravel())
        self._order = {"quotas": [part.batch_size * world_size for part in parts], "parts": self._orders()}
        self._done = 0

    def _orders(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in part.state_dict().items() if k not in PLACE} for part in self._parts]

    def __iter__(self) -> Iterator[SparseBatch]:
        sources = [iter(part) for part in self._parts]
        while True:
            batches = [next(source) for source in sources]
            if self._translate is not None:
                batches = [ids(batch) for ids, batch in zip(self._translate, batches, strict=True)]
            self._done += 1
            yield {name: column[self._rows] for name, column in joined_batches(batches).items()}

    def state_dict(self) -> dict[str, Any]:
        """The place, and the order that it is a place in."""
        epoch, batch = divmod(self._done, self.batches_per_epoch)
        return {"epoch": epoch, "batch": batch, **self._order}

    def places_of(self, ago: int) -> list[tuple[int, int]]:
        """(number of the source, row in it) of the cells of a batch that was yielded; `ago` is 1 for the last one."""
        joined = [(number, int(row)) for number, part in enumerate(self._parts) for row in part.rows_of(ago)]
        return [joined[i] for i in self._rows.tolist()]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in this order.

        Raises:
            EvaeError: the place is one in another order.
        """
        if any(state.get(name) != own for name, own in self._order.items()):
            raise EvaeError("cannot resume the data: the datasets or their shares are others; set them back.")
        self._done = state["epoch"] * self.batches_per_epoch + state["batch"]
        for part in self._parts:
            part.go_to(self._done)


def joined_batches(batches: Sequence[SparseBatch]) -> SparseBatch:
    """One batch of all cells, the gene lists padded to the same length."""
    columns = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if parts[0].dim() == 2:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
        columns[name] = torch.cat(parts)
    return columns


def _ids(own: DatasetInfo, united: DatasetInfo, genes: torch.Tensor | None) -> Ids:
    places = [
        torch.tensor([names.index(name) for name in mine], dtype=torch.int64)
        for mine, names in ((own.perturbations, united.perturbations), (own.cell_types, united.cell_types))
    ]
    return Ids(places[0], places[1], genes)
