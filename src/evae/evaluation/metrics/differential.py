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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr

from evae.common.cluster import spread
from evae.evaluation.cells.normalised import mean_of
from evae.models.contract_evae import EvaeError

_VALUE_BITS = 31  # of a float32 that is not negative
_GROUP_BITS = 10
_HALF_BITS = 2
_GENES = 1 << 63 - _VALUE_BITS - _GROUP_BITS - _HALF_BITS  # that fit above value, group and half of a key
MOST_GROUPS = 1 << _GROUP_BITS
HALVES = 0, 1, 2  # all cells, and two halves of them
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
        self._count = np.diff(first, append=[len(keys), len(keys)]).astype(np.float64)
        self._first = np.append(first, len(keys)).astype(np.float64)
        self._zeros = (self.n_cells - n_values).astype(np.float64)
        self._start = np.cumsum(n_values) - n_values
        # sum of t^3 - t over the groups of tied nonzero controls
        tied = _cubed(self._count)
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
        return self.test_halves(cells, codes, n_groups, np.zeros_like(codes), (0,))[0]

    def test_halves(
        self, cells: sp.csr_matrix, codes: np.ndarray, n_groups: int, halves: np.ndarray, wanted: Sequence[int] = HALVES
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`test` of all cells and of some of them, from one sort.

        Args:
            cells, codes, n_groups: as of `test`.
            halves: of each cell the half that it belongs to, 1 or 2; 0 where to none.
            wanted: which halves to compare, 0 for all cells.

        Returns:
            What `test` gives, for each of `wanted`; without meaning for groups that have no cell in it.
        """
        if n_groups > MOST_GROUPS:
            raise EvaeError(f"{n_groups:,} groups of cells; at most {MOST_GROUPS:,} can be tested at once.")
        keys = _sorted_keys(cells, codes << _HALF_BITS | halves)  # those looked up in turn stand side by side
        half_of = (keys & (1 << _HALF_BITS) - 1).astype(np.uint8)
        keys >>= _HALF_BITS
        found = np.searchsorted(self._keys, keys >> _GROUP_BITS)
        results = []
        for half in wanted:
            own = slice(None) if half == 0 else half_of == half
            sizes = np.bincount(codes if half == 0 else codes[halves == half], minlength=n_groups)
            results.append(self._compare(keys[own], found[own], sizes))
        return results

    def _compare(self, keys: np.ndarray, found: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log2 fold change and p-value, (groups, genes) each.

        Args:
            keys: gene, value and group of each value, sorted.
            found: the place of each among the controls' keys.
            sizes: cells of each group, (groups,).
        """
        n_groups = len(sizes)
        places = (keys >> _VALUE_BITS + _GROUP_BITS) * n_groups + (keys & MOST_GROUPS - 1)
        values = (keys >> _GROUP_BITS).astype(np.uint32) & np.uint32((1 << _VALUE_BITS) - 1)
        shape = self.n_genes, n_groups
        n_values = np.bincount(places, minlength=self.n_genes * n_groups).reshape(shape)
        sums = np.bincount(places, weights=values.view(np.float32), minlength=n_values.size).reshape(shape)
        u, ties = self._statistics(keys, found, places, n_values)
        own_zeros = sizes - n_values
        u = u + 0.5 * self._zeros[:, None] * own_zeros
        ties = ties + self._ties[:, None] + _cubed(self._zeros[:, None] + own_zeros)
        with np.errstate(divide="ignore", invalid="ignore"):
            fold = np.log2(np.expm1(sums / sizes) / self.geometric_mean[:, None])
        fold[np.isnan(fold)] = 0.0  # neither side expresses the gene
        return fold.T, _p_values(u, ties, sizes, self.n_cells).T

    def _statistics(
        self, keys: np.ndarray, found: np.ndarray, places: np.ndarray, n_values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the nonzero values of all groups: how often they win over a control, and how much they add to the sums of
        tied nonzero controls; (genes, groups) each.

        Args:
            keys: gene, value and group, sorted.
            found: the place of each among the controls' keys.
            places: gene * groups + group of each.
            n_values: how many there are, (genes, groups).
        """
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])  # of each distinct value of a group
        own = np.diff(first, append=len(keys)).astype(np.float64)
        places, found = places[first], found[first]
        controls = np.where(self._keys[found] == keys[first] >> _GROUP_BITS, self._count[found], 0.0)
        won = np.bincount(places, weights=own * (self._first[found] + 0.5 * controls), minlength=n_values.size)
        # (controls + own)^3 - (controls + own) less the same of the controls alone
        grown = own * (3 * controls * (controls + own) + own * own - 1)
        ties = np.bincount(places, weights=grown, minlength=n_values.size).reshape(n_values.shape)
        return won.reshape(n_values.shape) + n_values * (self._zeros - self._start)[:, None], ties


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
    whole = ((names, cells, codes, np.zeros_like(codes), (0,)) for names, cells, codes in batches)
    return differential_expression_of_halves(whole, controls, genes)[0]


def differential_expression_of_halves(
    batches: Iterable[tuple[list[str], sp.csr_matrix, np.ndarray, np.ndarray, Sequence[int]]],
    controls: ControlRanks,
    genes: np.ndarray,
) -> list[DETable]:
    """Differential expression of all cells and of two halves of them, from one sort.

    Args:
        batches: as of `differential_expression`, with the half of every cell and which tables are wanted; see
            `ControlRanks.test_halves`.
        controls: the controls of the cell type.
        genes: the panel, (genes,).

    Returns:
        The wanted tables, each with the names of all batches.
    """
    names: list[str] = []
    found: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for batch_names, tables in spread(_test, controls, batches):
        names += batch_names
        found.append(tables)
    return [_joined(np.array(names, dtype=object), genes, parts) for parts in zip(*found, strict=True)]


def _joined(names: np.ndarray, genes: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> DETable:
    fold, p_value = (np.concatenate(values) for values in zip(*parts, strict=True))
    return DETable(names, genes, fold, p_value, false_discovery_rates(p_value))


def _test(
    controls: ControlRanks,
    names: list[str],
    cells: sp.csr_matrix,
    codes: np.ndarray,
    halves: np.ndarray,
    wanted: Sequence[int],
) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    return names, controls.test_halves(cells, codes, len(names), halves, wanted)


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
    """Gene, value and code (group and half) of every stored value, sorted: put in order by gene first, then sorted a
    few genes at a time, which takes half the time of one sort of all."""
    by_gene = cells.tocsc()
    keys = np.repeat(np.arange(cells.shape[1]), np.diff(by_gene.indptr))
    keys <<= _VALUE_BITS
    keys |= by_gene.data.astype(np.float32, copy=False).view(np.uint32)
    keys <<= _GROUP_BITS + _HALF_BITS
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
