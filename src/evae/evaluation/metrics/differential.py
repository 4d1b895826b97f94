"""Differential expression of every perturbation against the controls: Mann-Whitney U with Benjamini-Hochberg.

For each gene the two-sided asymptotic test with tie and continuity correction, as scipy.stats.mannwhitneyu(
method="asymptotic") and pdex give it, and false discovery rates over the genes of each perturbation. The fold
change is that of pdex's default, between geometric means:  log2( expm1(mean log1p x) / expm1(mean log1p
control) ),  0 where both are 0.

Written here because pdex sorts the controls again for every perturbation: here the nonzero control values of all genes
are sorted once, and those of a batch of perturbations are sorted and looked up among them in one go, a batch a core.
Zeros, the bulk of the data, are never touched: all are tied at the bottom. The tests compare the tables with those of
pdex.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr

from evae.common.cluster import spread
from evae.evaluation.cells.normalised import mean_of
from evae.models.contract_evae import EvaeError

_VALUE_BITS = 31  # of a float32 that is not negative
_GROUP_BITS = 12
_GENES = 1 << 63 - _VALUE_BITS - _GROUP_BITS  # that fit above the value and the group of a key
MOST_GROUPS = 1 << _GROUP_BITS
_SORTED = 1_024  # values that are sorted at once: they stay in the cache of a core


@dataclass(frozen=True)
class DETable:
    """Differential expression of the perturbations of one cell type.

    Attributes:
        perturbations: names, (perturbations,).
        genes: the panel, (genes,).
        log2_fold_change: against the controls, (perturbations, genes); infinite where one side is all zero.
        p_value: two-sided, (perturbations, genes).
        fdr: Benjamini-Hochberg over the genes of a perturbation, (perturbations, genes).
    """

    perturbations: np.ndarray
    genes: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    fdr: np.ndarray


class ControlRanks:
    """Control cells made ready to be compared with many perturbations."""

    def __init__(self, controls: sp.csr_matrix) -> None:
        """Sort the nonzero values of all genes.

        Args:
            controls: log1p expression, sparse (cells, genes), no negative values.
        """
        if controls.shape[0] == 0:
            raise EvaeError("differential expression needs control cells; pass controls=... or name their label.")
        self.n_cells, self.n_genes = controls.shape
        self.geometric_mean = np.expm1(mean_of(controls))
        if self.n_genes > _GENES:
            raise EvaeError(f"differential expression of {self.n_genes:,} genes; at most {_GENES:,} can be tested.")
        keys = np.sort(_keys(controls))
        first = np.flatnonzero(np.diff(keys, prepend=-1))  # one entry for each distinct value of a gene
        n_values = np.bincount(controls.indices, minlength=self.n_genes)
        self._keys = np.append(keys[first], np.iinfo(np.int64).max)
        self._count = np.diff(first, append=[len(keys), len(keys)])
        self._first = np.append(first, len(keys)).astype(np.float64)
        self._zeros = (self.n_cells - n_values).astype(np.float64)
        self._start = np.cumsum(n_values) - n_values
        # sum of t^3 - t over the groups of tied nonzero controls
        tied = _cubed(self._count.astype(np.float64))
        self._ties = np.bincount(self._keys[:-1] >> _VALUE_BITS, weights=tied[:-1], minlength=self.n_genes)

    def test(self, cells: sp.csr_matrix, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare groups of cells with the controls.

        Args:
            cells: log1p expression, sparse (cells, genes).
            codes: group of each cell, 0 .. n_groups - 1.
            n_groups: number of groups, at most `MOST_GROUPS`; each needs at least one cell.

        Returns:
            log2 fold change and p-value, (n_groups, genes) each.

        Raises:
            EvaeError: more groups than a key can name.
        """
        if n_groups > MOST_GROUPS:
            raise EvaeError(f"{n_groups:,} groups of cells; at most {MOST_GROUPS:,} can be tested at once.")
        sizes = np.bincount(codes, minlength=n_groups)
        keys = _sorted_keys(cells, codes)  # so that those looked up one after the other stand side by side
        places = (keys >> _VALUE_BITS + _GROUP_BITS) * n_groups + (keys & MOST_GROUPS - 1)
        values = (keys >> _GROUP_BITS).astype(np.uint32) & np.uint32((1 << _VALUE_BITS) - 1)
        shape = self.n_genes, n_groups
        n_values = np.bincount(places, minlength=self.n_genes * n_groups).reshape(shape)
        sums = np.bincount(places, weights=values.view(np.float32), minlength=n_values.size).reshape(shape)
        u, ties = self._statistics(keys, places, n_values)
        own_zeros = sizes - n_values
        u = u + 0.5 * self._zeros[:, None] * own_zeros
        ties = ties + self._ties[:, None] + _cubed(self._zeros[:, None] + own_zeros)
        with np.errstate(divide="ignore", invalid="ignore"):
            fold = np.log2(np.expm1(sums / sizes) / self.geometric_mean[:, None])
        fold[np.isnan(fold)] = 0.0  # neither side expresses the gene
        return fold.T, _p_values(u, ties, sizes, self.n_cells).T

    def _statistics(self, keys: np.ndarray, places: np.ndarray, n_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the nonzero values of all groups: how often they win over a control, and how much they add to the sums of
        tied nonzero controls; (genes, groups) each.

        Args:
            keys: gene, value and group, sorted.
            places: gene * groups + group of each.
            n_values: how many there are, (genes, groups).
        """
        wanted = keys >> _GROUP_BITS
        found = np.searchsorted(self._keys, wanted)
        below = np.bincount(places, weights=self._first[found], minlength=n_values.size).reshape(n_values.shape)
        below = below + n_values * (self._zeros - self._start)[:, None]
        # few values are those of a control or of another cell of their group, as cells have totals of their own
        known = self._keys[found] == wanted
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        shared = known.copy()
        shared[repeated] = shared[repeated + 1] = True
        tied = np.flatnonzero(shared)
        controls = np.where(known[tied], self._count[found[tied]], 0.0)  # that have the value, (tied values,)
        half = np.bincount(places[tied], weights=0.5 * controls, minlength=n_values.size)
        first = np.flatnonzero(np.diff(keys[tied], prepend=-1))  # one entry for each distinct value of a group
        own = np.diff(first, append=len(tied))
        grown = _cubed(controls[first] + own) - _cubed(controls[first])
        ties = np.bincount(places[tied[first]], weights=grown, minlength=n_values.size)
        return below + half.reshape(n_values.shape), ties.reshape(n_values.shape)


def differential_expression(
    batches: Iterable[tuple[list[str], sp.csr_matrix, np.ndarray]],
    controls: ControlRanks,
    genes: np.ndarray,
) -> DETable:
    """Differential expression of many perturbations of one cell type.

    Args:
        batches: (names, cells, codes) with the cells of a few perturbations at a time, so that memory stays
            bounded; codes index the names.
        controls: the controls of the cell type.
        genes: the panel, (genes,).
    """
    names: list[str] = []
    folds, p_values = [], []

    for batch_names, fold, p_value in spread(_test, controls, batches):
        names += batch_names
        folds.append(fold)
        p_values.append(p_value)
    p = np.concatenate(p_values)
    return DETable(np.array(names, dtype=object), genes, np.concatenate(folds), p, false_discovery_rates(p))


def _test(
    controls: ControlRanks, names: list[str], cells: sp.csr_matrix, codes: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    return names, *controls.test(cells, codes, len(names))


def false_discovery_rates(p_values: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg false discovery rates over the last axis, (perturbations, genes).

    As scipy.stats.false_discovery_control gives them; its import alone takes 35 MB and a second.
    """
    order = np.argsort(p_values, axis=-1)
    n = p_values.shape[-1]
    rates = np.take_along_axis(p_values, order, axis=-1) * (n / np.arange(1, n + 1))
    rates = np.minimum.accumulate(rates[..., ::-1], axis=-1)[..., ::-1].clip(0, 1)
    found = np.empty_like(rates)
    np.put_along_axis(found, order, rates, axis=-1)
    return found


def _keys(matrix: sp.csr_matrix) -> np.ndarray:
    """Gene and value of every stored value as one number: the bits of non-negative float32 values sort as they do."""
    keys = matrix.indices.astype(np.int64)
    keys <<= _VALUE_BITS
    keys |= matrix.data.astype(np.float32, copy=False).view(np.uint32)
    return keys


def _sorted_keys(cells: sp.csr_matrix, codes: np.ndarray) -> np.ndarray:
    """Gene, value and group of every stored value, sorted: put in order by gene first, then sorted a few genes at a
    time, which takes half the time of one sort of all."""
    by_gene = cells.tocsc()
    keys = np.repeat(np.arange(cells.shape[1]), np.diff(by_gene.indptr))
    keys <<= _VALUE_BITS
    keys |= by_gene.data.astype(np.float32, copy=False).view(np.uint32)
    keys <<= _GROUP_BITS
    keys |= codes[by_gene.indices]
    cuts = by_gene.indptr[np.searchsorted(by_gene.indptr, np.arange(0, len(keys), _SORTED))]
    for start, stop in pairwise([*cuts.tolist(), len(keys)]):
        keys[start:stop].sort()
    return keys


def _cubed(count: np.ndarray) -> np.ndarray:
    return count * count * count - count  # a power takes ten times as long


def _p_values(u: np.ndarray, ties: np.ndarray, n: np.ndarray, m: int) -> np.ndarray:
    """Two-sided normal approximation of U with continuity correction; 1 where all values are tied."""
    total = n + m
    mean = n * m / 2.0
    variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))
    distance = np.maximum(u, n * m - u) - mean - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * ndtr(-distance / np.sqrt(variance))
    return np.where(variance > 1e-12 * mean * total, p, 1.0).clip(0, 1)
