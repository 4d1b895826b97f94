"""The nonzero values of many groups of cells, gene by gene in order: one number holds gene, value, group and half.

The bits of non-negative float32 values sort as the values do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

VALUE_BITS = 31  # of a float32 that is not negative
GROUP_BITS = 10
HALF_BITS = 2
MOST_GENES = 1 << 63 - VALUE_BITS - GROUP_BITS - HALF_BITS  # that fit above value, group and half of a key
MOST_GROUPS = 1 << GROUP_BITS
_SORTED = 1_024  # values that are sorted at once
_VALUES = 1 << 16  # that are worked on at once


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

    def places(self, n_groups: int, first: int) -> np.ndarray:
        """(gene - first) * groups + group of each."""
        places = self.keys >> VALUE_BITS + GROUP_BITS
        places -= first
        places *= n_groups
        places += self.keys & MOST_GROUPS - 1
        return places

    def expression(self) -> np.ndarray:
        """log1p expression, float32."""
        bits = (self.keys >> GROUP_BITS).astype(np.uint32)
        bits &= np.uint32((1 << VALUE_BITS) - 1)
        return bits.view(np.float32)


def gene_slices(by_gene: sp.csc_matrix) -> Iterator[slice]:
    """Runs of genes with so few values that all arrays of them stay in the cache of a core; together all genes."""
    ends = by_gene.indptr
    cuts = np.searchsorted(ends, np.arange(_VALUES, ends[-1], _VALUES)).tolist()
    yield from (slice(*cut) for cut in pairwise(sorted({0, *cuts, len(ends) - 1})))


def sorted_keys(by_gene: sp.csc_matrix, codes: np.ndarray, genes: slice) -> np.ndarray:
    """Gene, value and code (group and half) of every stored value of some genes, sorted.

    Args:
        by_gene: log1p expression, (cells, genes).
        codes: of each cell, (cells,).
        genes: a run of them.
    """
    ends = by_gene.indptr[genes.start : genes.stop + 1]
    part = slice(ends[0], ends[-1])
    keys = np.repeat(np.arange(genes.start, genes.stop), np.diff(ends))
    keys <<= VALUE_BITS
    keys |= by_gene.data[part].astype(np.float32, copy=False).view(np.uint32)
    keys <<= GROUP_BITS + HALF_BITS
    keys |= codes[by_gene.indices[part]]
    cuts = ends[np.searchsorted(ends, np.arange(ends[0], ends[-1], _SORTED))] - ends[0]
    for start, stop in pairwise([*cuts.tolist(), len(keys)]):
        keys[start:stop].sort()  # a few genes at a time, in half the time of one sort of all
    return keys
