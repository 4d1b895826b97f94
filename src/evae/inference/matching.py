"""Drawn cells whose mean follows given effects exactly: molecules are taken from genes and added to others.

Let q be the share of each gene among all molecules of a cell type's controls, and f the log2 fold changes given for a
perturbation. The cells drawn for the pair hold N molecules. Their wanted totals are N q 2^f / sum(q 2^f), as whole
numbers, so the pseudobulk is the wanted one up to half a molecule a gene (see `evae.inference.totals`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from evae.data.format import Pair
from evae.inference.sampling import ControlFacts, panel_batches
from evae.inference.totals import by_pair, whole_totals, with_totals

JUDGED = 10  # wanted molecules of a gene from which on its fold change is compared


@dataclass(frozen=True)
class Wanted:
    """What the cells of a pair are to follow.

    Attributes:
        controls: molecules of each gene among the controls, (genes,).
        folds: log2 fold changes, (genes,).
    """

    controls: np.ndarray
    folds: np.ndarray

    def shares(self) -> np.ndarray:
        """Wanted shares of the genes, (genes,)."""
        weights = self.controls * np.exp2(self.folds)
        shares: np.ndarray = weights / max(weights.sum(), 1e-12)
        return shares

    def totals(self, n_molecules: float) -> np.ndarray:
        """Wanted molecules of each gene, int64 (genes,), of as many in all (largest remainders)."""
        return whole_totals(self.shares(), n_molecules)

    def report(self, drawn: np.ndarray, matched: np.ndarray) -> dict[str, float]:
        """How far the totals of each gene, (genes,), are from the wanted ones, before and after.

        Returns:
            `genes` that are compared (JUDGED wanted molecules or more), `error_as_drawn` and `error`, root mean squares
            over them of the difference of the log2 fold changes; `offset`, the log2 by which all folds are shifted,
            since shares sum to 1; `genes_without_controls`, which are to change and of which the controls hold none.
        """
        shares = self.shares()
        judged = shares * matched.sum() >= JUDGED

        def error(totals: np.ndarray) -> float:
            own = np.maximum(totals[judged], 0.5) / max(totals.sum(), 1)
            return float(np.sqrt(np.mean(np.log2(own / shares[judged]) ** 2))) if judged.any() else float("nan")

        share = self.controls / max(self.controls.sum(), 1e-12)
        return {
            "genes": int(judged.sum()),
            "error_as_drawn": error(drawn),
            "error": error(matched),
            "offset": float(-np.log2(max(share @ np.exp2(self.folds), 1e-12))),
            "genes_without_controls": int(((self.controls == 0) & (self.folds != 0)).sum()),
        }


def wanted_of(
    processor: Any,
    controls: ad.AnnData,
    found: ControlFacts,
    folds: Mapping[str, np.ndarray],
    pairs: Iterable[Pair],
) -> dict[Pair, Wanted]:
    """What the cells of each (cell type, perturbation) are to follow.

    Args:
        processor: the checkpoint's.
        controls: the cells that `found` was read from.
        found: their rows by cell type.
        folds: perturbation -> log2 fold changes, (genes,).
        pairs: those that were drawn.
    """
    totals: dict[str, np.ndarray] = {}
    wanted = {}
    for cell_type, name in pairs:
        if cell_type not in totals:
            totals[cell_type] = molecules(processor, controls[found.rows[cell_type]])
        wanted[cell_type, name] = Wanted(totals[cell_type], folds[name])
    return wanted


def molecules(processor: Any, cells: ad.AnnData) -> np.ndarray:
    """Molecules of each gene of the panel in all cells together, float64 (genes,)."""
    totals = np.zeros(len(processor.genes))
    for batch in panel_batches(processor, cells, device=torch.device("cpu")):
        np.add.at(totals, batch["gene_ids"].numpy().ravel(), batch["counts"].numpy().ravel().astype(np.float64))
    return totals


def match_effects(
    counts: sp.csr_matrix, obs: pd.DataFrame, wanted: Mapping[Pair, Wanted], seed: int
) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Drawn cells whose pseudobulks follow the given effects.

    Args:
        counts: raw counts, (cells, genes).
        obs: `cell_type` and `perturbation` of the cells.
        wanted: what the cells of each pair are to follow.
        seed: of the molecules that are taken and added.

    Returns:
        the counts, CSR float32 (cells, genes), and one row a pair with the columns of `Wanted.report`.
    """
    rows = []

    def match(number: int, pair: Pair, drawn: sp.csr_matrix) -> sp.csr_matrix:
        aim, before = wanted[pair], np.asarray(drawn.sum(axis=0), dtype=np.float64).ravel()
        matched = with_totals(drawn, aim.totals(before.sum()), np.random.default_rng((seed, number)))
        after = np.asarray(matched.sum(axis=0), dtype=np.float64).ravel()
        rows.append({"cell_type": pair[0], "perturbation": pair[1]} | aim.report(before, after))
        return matched

    return by_pair(counts, obs, match), pd.DataFrame(rows)
