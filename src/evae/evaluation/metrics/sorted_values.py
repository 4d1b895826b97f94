"""The nonzero values of many groups of cells, gene by gene in order: one number holds gene, value, group and half.

The bits of non-negative float32 values sort as the values do.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

VALUE_BITS = 31  # of a float32 that is not negative
GROUP_BITS = 10
HALF_BITS = 2
MOST_GENES = 1 << 63 - VALUE_BITS - GROUP_BITS - HALF_BITS  # that fit above value, group and half of a key
MOST_GROUPS = 1 << GROUP_BITS
_SORTED = 1_024  # values that are sorted at once: they stay in the cache of a core


@dataclass(frozen=True)
class SortedValues:
    """The nonzero values of groups of cells.

    Attributes:
        keys: gene, value and group of each, sorted.
        found: the place of each among the controls' keys.
    """

    keys: np.ndarray
    found: np.ndarray

    def where(self, own: np.ndarray) -> "SortedValues":
        """Some of them, by a mask."""
        return SortedValues(self.keys[own], self.found[own])

    def places(self, n_groups: int) -> np.ndarray:
        """gene * groups + group of each."""
        places = self.keys >> VALUE_BITS + GROUP_BITS
        places *= n_groups
        places += self.keys & MOST_GROUPS - 1
        return places

    def expression(self) -> np.ndarray:
        """log1p expression, float32."""
        bits = (self.keys >> GROUP_BITS).astype(np.uint32)
        bits &= np.uint32((1 << VALUE_BITS) - 1)
        return bits.view(np.float32)


def sorted_keys(cells: sp.csr_matrix, codes: np.ndarray) -> np.ndarray:
    """Gene, value and code (group and half) of every stored value, sorted: put in order by gene first, then sorted a
    few genes at a time, which takes half the time of one sort of all."""
    by_gene = cells.tocsc()
    keys = np.repeat(np.arange(cells.shape[1]), np.diff(by_gene.indptr))
    keys <<= VALUE_BITS
    keys |= by_gene.data.astype(np.float32, copy=False).view(np.uint32)
    keys <<= GROUP_BITS + HALF_BITS
    keys |= codes[by_gene.indices]
    cuts = by_gene.indptr[np.searchsorted(by_gene.indptr, np.arange(0, len(keys), _SORTED))]
    for start, stop in pairwise([*cuts.tolist(), len(keys)]):
        keys[start:stop].sort()
    return keys
