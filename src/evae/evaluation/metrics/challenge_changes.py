"""The metrics of the Virtual Cell Challenge 2026 on changed genes: direction, reach, Jaccard and fold changes.

A gene is tested where the controls have more than 5 counts per million of it, and changed where the Benjamini-Hochberg
false discovery rate over a perturbation's tested genes is below 0.05. The fold change is of mean counts per million.
A perturbation's own target gene is in no set. Source: the definitions of the preset `vcc2026` of cell-eval2 0.20 (Arc
Institute); the tests compare the numbers with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.common.cluster import spread
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.metrics.differential import ControlRanks
from evae.evaluation.metrics.false_discovery import false_discovery_rates

SIGNIFICANT = 0.05
MIN_CONTROL_CPM = 5.0
PURITY = 0.9  # share of right directions down to which a ranking is followed
MIN_GENES = 10  # changed genes that a mean error of fold changes needs
_TINY = 1e-9
_ROWS = 512


@dataclass(frozen=True)
class Changes:
    """Differential expression of some perturbations against controls, over all genes.

    Attributes:
        tested: which genes are tested, (genes,).
        fold: log2 fold change, (perturbations, genes); NaN where a gene is not tested.
        p_value, fdr: the same; 1 where a gene is not tested.
    """

    tested: np.ndarray
    fold: np.ndarray
    p_value: np.ndarray
    fdr: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """Which genes change, (perturbations, genes)."""
        return self.fdr < SIGNIFICANT


class ControlCells:
    """The controls of a context, made ready to be compared with many perturbations.

    Args:
        counts: raw counts, (cells, genes).
    """

    def __init__(self, counts: sp.csr_matrix) -> None:
        self.mean = counts_per_million(counts, np.zeros(counts.shape[0], dtype=int), 1)[0]
        self.tested = self.mean > MIN_CONTROL_CPM
        self._ranks = ControlRanks(self._expression(counts))

    def changes(self, batches: Iterable[tuple[sp.csr_matrix, np.ndarray, int]]) -> Changes:
        """Differential expression of perturbations that come in batches.

        Args:
            batches: (raw counts (cells, genes), code of each cell, perturbations) of some perturbations at a time.
        """
        folds, p_values = [], []
        for fold, p in spread(ControlCells._test, self, batches):
            folds.append(fold)
            p_values.append(p)
        p_value = np.concatenate(p_values)
        fdr = np.ones_like(p_value)
        if self.tested.any():
            fdr[:, self.tested] = false_discovery_rates(p_value[:, self.tested])
        return Changes(self.tested, np.concatenate(folds), p_value, fdr)

    def _test(self, counts: sp.csr_matrix, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        mean = counts_per_million(counts, codes, n)
        fold = np.where(self.tested, np.log2((mean + _TINY) / (self.mean + _TINY)), np.nan)
        p = np.ones_like(mean)
        p[:, self.tested] = self._ranks.test(self._expression(counts), codes, n)[1]
        return fold, p

    def _expression(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """log1p CP10K of the tested genes, (cells, tested genes)."""
        blocks = (log1p_cp10k(counts[rows], "raw counts")[:, self.tested] for rows in _blocks(counts))
        return sp.vstack(list(blocks), format="csr")


def counts_per_million(counts: sp.csr_matrix, codes: np.ndarray, n: int) -> np.ndarray:
    """Mean counts per million of groups of cells, (groups, genes); `codes` is the group of each cell."""
    found, sizes = np.zeros((n, counts.shape[1])), np.bincount(codes, minlength=n)
    for rows in _blocks(counts):
        block, own = counts[rows].astype(np.float64), codes[rows]
        totals = block @ np.ones(block.shape[1])
        per_cell = 1e6 / np.where(totals > 0, totals, 1.0) / sizes[own]
        indicator = sp.csr_matrix((per_cell, (own, np.arange(len(own)))), shape=(n, len(own)))
        found += (indicator @ block).toarray()
    return found


def _blocks(counts: sp.csr_matrix) -> list[slice]:
    """Runs of cells whose arrays are small."""
    return [slice(start, start + _ROWS) for start in range(0, counts.shape[0], _ROWS)]


def change_metrics(predicted: Changes, real: Changes, own: np.ndarray) -> dict[str, np.ndarray]:
    """The four metrics, and whether the real set of changed genes is empty, (perturbations,) each.

    Args:
        predicted, real: of the same perturbations.
        own: column of each perturbation's target gene, -1 where it is not measured.

    Returns:
        direction_fidelity_yield_raw: genes called with the right direction, over the larger of the two sets; NaN where
            both are empty.
        direction_reach_raw: how deep the prediction's ranking of the truly changed genes keeps 90 % right directions,
            as a share of them; NaN where none is.
        sig_jaccard: overlap of the two sets, over their union; 1 where both are empty.
        lfc_nmae: mean error of the fold changes of the truly changed genes, over their mean size; NaN below 10 genes.
        truth_sets: 1 where a gene is truly changed, else 0.
    """
    counted = _counted(real, own)
    truth, called = real.significant & counted, predicted.significant & counted
    shared = predicted.tested & counted & _directed(real.fold)
    right = shared & _directed(predicted.fold) & (np.sign(predicted.fold) == np.sign(real.fold))
    n_truth = truth.sum(axis=1).astype(float)
    n_called = (called & shared).sum(axis=1)
    union = (truth | called).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "direction_fidelity_yield_raw": (called & right).sum(axis=1) / np.maximum(n_called, n_truth),
            "direction_reach_raw": _reach(predicted, truth & predicted.tested, shared, right) / n_truth,
            "sig_jaccard": np.where(union == 0, 1.0, (truth & called).sum(axis=1) / union),
        }
    errors = np.abs(np.where(np.isfinite(predicted.fold), predicted.fold, 0.0) - real.fold)
    return {**found, "lfc_nmae": _over_changed(errors, real, truth), "truth_sets": (n_truth > 0).astype(float)}


def replicate_fold_error(first: Changes, second: Changes, whole: Changes, own: np.ndarray) -> np.ndarray:
    """`lfc_nmae` of one half of the real cells against the other, over the genes that change in all of them."""
    folds = (np.where(np.isfinite(half.fold), half.fold, 0.0) for half in (first, second))
    return _over_changed(np.abs(np.subtract(*folds)), whole, whole.significant & _counted(whole, own))


def _over_changed(errors: np.ndarray, real: Changes, truth: np.ndarray) -> np.ndarray:
    """Mean error over mean size of the real fold changes, both over the truly changed genes; NaN where they are few."""
    size = np.where(truth, np.abs(real.fold), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(truth, errors, 0.0).sum(axis=1) / size
    return np.where((truth.sum(axis=1) >= MIN_GENES) & (size > 0), ratio, np.nan)


def _counted(real: Changes, own: np.ndarray) -> np.ndarray:
    """Which genes may stand in the sets of each perturbation: all but its own, where that is tested."""
    counted = np.ones(real.fold.shape, dtype=bool)
    rows = np.flatnonzero((own >= 0) & real.tested[own])
    counted[rows, own[rows]] = False
    return counted


def _directed(fold: np.ndarray) -> np.ndarray:
    return ~np.isnan(fold) & (fold != 0)


def _reach(predicted: Changes, pool: np.ndarray, shared: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The deepest place, in directed genes, at which the share of right directions is still `PURITY`."""
    deepest = np.zeros(len(pool))
    for i, inside in enumerate(pool):
        genes = np.flatnonzero(inside)
        size = np.abs(np.nan_to_num(predicted.fold[i, genes]))
        order = genes[np.lexsort((genes, -size, predicted.p_value[i, genes], predicted.fdr[i, genes]))]
        depth = shared[i, order].cumsum()
        with np.errstate(invalid="ignore"):
            pure = right[i, order].cumsum() / depth >= PURITY
        if pure.any():
            deepest[i] = depth[pure].max()
    return deepest
