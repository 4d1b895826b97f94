"""The spread of predicted cells comes from one draw of their counts, the mean of each pair from another.

Codes describe a cell and hold some of the noise of the molecules that it was encoded from. Counts that are drawn gene
by gene, given the codes, add all of that noise again, so that cells vary too much together. A tokenizer trained with
count splitting can draw other molecules of the same cell instead (`independent` of `EvaeModel.decode`). These vary as
real cells do, but a part of what sets a new cell type apart is taken for noise, and their mean lies too near to that of
the training cells. So the predicted cells are such other molecules, and the mean of each pair is that of the first draw
(see `evae.inference.totals`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evae.common.known_effects import PER
from evae.inference.totals import cells_by_pair

FEWEST_CELLS = 20  # of a pair: the mean of fewer is noise, and they would be drawn together


@dataclass(frozen=True)
class PairMeans:
    """Mean counts per 10,000 of the first draw of every pair.

    Attributes:
        pairs: number of each cell's pair, as `by_pair` counts them, int64 (cells,); -1 for pairs of fewer than
            FEWEST_CELLS cells, which keep the first draw.
        sums: number of a pair -> sums over its cells, float64 (genes,), which grow while cells are drawn.
    """

    pairs: np.ndarray
    sums: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, obs: pd.DataFrame) -> Self | None:
        """Those of the cells that `obs` plans; None for a model that draws no independent molecules."""
        config = getattr(getattr(model, "tokenizer", None), "config", None)
        if not getattr(config, "count_splitting", False):
            return None
        pairs = np.full(len(obs), -1)
        for number, (_, cells) in enumerate(cells_by_pair(obs)):
            if len(cells) >= FEWEST_CELLS:
                pairs[cells] = number
        return cls(pairs)

    def add(self, sums: Mapping[int, np.ndarray]) -> None:
        """Add what `rate_sums` gives for some cells."""
        for pair, values in sums.items():
            self.sums[pair] = self.sums[pair] + values if pair in self.sums else values

    def means(self) -> dict[int, np.ndarray]:
        """Number of a pair -> its mean counts per 10,000, (genes,)."""
        sizes = np.bincount(self.pairs[self.pairs >= 0])
        return {pair: values / sizes[pair] for pair, values in self.sums.items()}


def rate_sums(counts: Tensor, pairs: np.ndarray) -> dict[int, np.ndarray]:
    """Sums of the counts per 10,000 of cells (cells, genes) over the cells of each pair; `pairs` as in `PairMeans`."""
    numbers, place = np.unique(pairs, return_inverse=True)
    rates = counts.cpu().double()  # Metal has no float64
    rates *= PER / rates.sum(1, keepdim=True).clamp_min(1)
    sums = torch.zeros(len(numbers), rates.shape[1], dtype=rates.dtype).index_add_(0, torch.from_numpy(place), rates)
    return {int(n): values for n, values in zip(numbers, sums.numpy(), strict=True) if n >= 0}
