"""Differential expression of every perturbation against the controls: Mann-Whitney U with Benjamini-Hochberg.

For each gene the two-sided asymptotic test with tie and continuity correction, as scipy.stats.mannwhitneyu(
method="asymptotic") and pdex give it, and false discovery rates over the genes of each perturbation. The fold
change is that of pdex's default, between geometric means:  log2( expm1(mean log1p x) / expm1(mean log1p
control) ),  0 where both are 0.

Written here because pdex sorts the controls again for every perturbation: here the nonzero control values of
a gene are sorted once, and a perturbation's values are looked up among them. Zeros, the bulk of the data, are
never touched: all are tied at the bottom. The tests compare the tables with those of pdex.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from evae.evaluation.cells.normalised import mean_of
from evae.models.contract_evae import EvaeError


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
        """Sort the nonzero values of every gene.

        Args:
            controls: log1p expression, sparse (cells, genes), no negative values.
        """
        if controls.shape[0] == 0:
            raise EvaeError("differential expression needs control cells; pass controls=... or name their label.")
        columns = controls.tocsc()
        self.n_cells, self.n_genes = controls.shape
        self.values = [np.sort(_column(columns, j)) for j in range(self.n_genes)]
        self.geometric_mean = np.expm1(mean_of(controls))
        # sum of t^3 - t over the groups of tied nonzero controls
        self.ties = np.array([_tie_sum(np.unique(v, return_counts=True)[1]) for v in self.values])

    def test(self, cells: sp.csr_matrix, codes: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare groups of cells with the controls.

        Args:
            cells: log1p expression, sparse (cells, genes).
            codes: group of each cell, 0 .. n_groups - 1.
            n_groups: number of groups; each needs at least one cell.

        Returns:
            log2 fold change and p-value, (n_groups, genes) each.
        """
        sizes = np.bincount(codes, minlength=n_groups)
        columns = sp.csr_matrix(cells, dtype=np.float32).tocsc()
        u = np.empty((n_groups, self.n_genes))
        ties = np.empty((n_groups, self.n_genes))
        for j in range(self.n_genes):
            rows = codes[columns.indices[columns.indptr[j] : columns.indptr[j + 1]]]
            u[:, j], ties[:, j] = self._gene(j, _column(columns, j), rows, sizes)
        indicator = sp.csr_matrix((1.0 / sizes[codes], (codes, np.arange(len(codes)))), shape=(n_groups, len(codes)))
        means = (indicator @ cells.astype(np.float64)).toarray()  # (groups, genes)
        with np.errstate(divide="ignore", invalid="ignore"):
            fold = np.log2(np.expm1(means) / self.geometric_mean)
        fold[np.isnan(fold)] = 0.0  # neither side expresses the gene
        return fold, _p_values(u, ties, sizes[:, None], self.n_cells)

    def _gene(
        self, gene: int, values: np.ndarray, groups: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """U statistic and tie sum of every group for one gene, from the nonzero values of all cells."""
        n_groups, controls = len(sizes), self.values[gene]
        # sort by (group, value) in one go: the bits of non-negative float32 values sort as the values do
        keys = np.sort((groups.astype(np.int64) << 32) | values.view(np.uint32).astype(np.int64))
        groups, values = keys >> 32, (keys & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
        below = np.searchsorted(controls, values, side="left")
        equal = np.searchsorted(controls, values, side="right") - below
        zeros = self.n_cells - len(controls)
        own_zeros = sizes - np.bincount(groups, minlength=n_groups)
        wins = np.bincount(groups, weights=zeros + below + 0.5 * equal, minlength=n_groups)
        u = wins + 0.5 * zeros * own_zeros
        first = np.flatnonzero(np.diff(keys, prepend=-1))  # one entry for each distinct value of a group
        count = np.diff(first, append=len(keys)).astype(np.float64)
        there = equal[first].astype(np.float64)
        grown = _cubed(there + count) - _cubed(there)
        ties = self.ties[gene] + np.bincount(groups[first], weights=grown, minlength=n_groups)
        return u, ties + _cubed((zeros + own_zeros).astype(np.float64))


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
    for batch_names, cells, codes in batches:
        fold, p_value = controls.test(cells, codes, len(batch_names))
        names += batch_names
        folds.append(fold)
        p_values.append(p_value)
    p = np.concatenate(p_values)
    return DETable(np.array(names, dtype=object), genes, np.concatenate(folds), p, false_discovery_control(p, axis=1))


def _column(columns: sp.csc_matrix, gene: int) -> np.ndarray:
    return np.ascontiguousarray(columns.data[columns.indptr[gene] : columns.indptr[gene + 1]], dtype=np.float32)


def _cubed(count: np.ndarray) -> np.ndarray:
    return count**3 - count


def _tie_sum(counts: np.ndarray) -> float:
    return float(_cubed(counts.astype(np.float64)).sum())


def _p_values(u: np.ndarray, ties: np.ndarray, n: np.ndarray, m: int) -> np.ndarray:
    """Two-sided normal approximation of U with continuity correction; 1 where all values are tied."""
    total = n + m
    mean = n * m / 2.0
    variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))
    distance = np.maximum(u, n * m - u) - mean - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * ndtr(-distance / np.sqrt(variance))
    return np.where(variance > 1e-12 * mean * total, p, 1.0).clip(0, 1)
