"""Drawn cells whose mean follows given effects exactly: molecules are taken from genes and added to others.

Let q be the share of each gene among all molecules of a cell type's controls, and f the log2 fold changes given for a
perturbation. The cells drawn for the pair hold N molecules. Their wanted totals are N q 2^f / sum(q 2^f), as whole
numbers. Of a gene with too many molecules some are taken, each alike. To a gene with too few, molecules are added, to
each cell in proportion to its rate, drawn given its count (see `evae.common.mixed_poisson`). So counts stay whole,
cells that express a gene get more of it, and the pseudobulk is the wanted one up to half a molecule a gene.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from evae.common.mixed_poisson import dispersions, draw_rates, relative_sizes
from evae.data.format import Pair
from evae.inference.sampling import ControlFacts, panel_batches

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


def whole_totals(parts: np.ndarray, n_molecules: float) -> np.ndarray:
    """As many molecules divided among the genes in proportion to `parts`, int64 (genes,) (largest remainders)."""
    exact = n_molecules * parts / max(parts.sum(), 1e-12)
    whole = np.floor(exact).astype(np.int64)
    left = round(n_molecules) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole


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
    groups = obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).indices
    blocks, order, rows = [], [], []
    for number, (pair, cells) in enumerate(groups.items()):
        aim, drawn = wanted[str(pair[0]), str(pair[1])], counts[cells]
        before = np.asarray(drawn.sum(axis=0), dtype=np.float64).ravel()
        matched = with_totals(drawn, aim.totals(before.sum()), np.random.default_rng((seed, number)))
        after = np.asarray(matched.sum(axis=0), dtype=np.float64).ravel()
        rows.append({"cell_type": str(pair[0]), "perturbation": str(pair[1])} | aim.report(before, after))
        blocks.append(matched)
        order.append(cells)
    places = np.argsort(np.concatenate(order), kind="stable")
    return sp.csr_matrix(sp.vstack(blocks, format="csr")[places]), pd.DataFrame(rows)


def with_totals(counts: sp.csr_matrix, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Cells in which each gene has the given total, CSR float32; see the module's docstring.

    Args:
        counts: whole numbers, (cells, genes).
        totals: of the genes, int64 (genes,).
        rng: of the molecules that are taken and added.
    """
    n_cells, n_genes = counts.shape
    spread, size, columns = dispersions(counts), relative_sizes(counts), counts.tocsc()
    if not size.any():
        return counts
    ids, cells, values = [], [], []
    for gene in range(n_genes):
        part = slice(columns.indptr[gene], columns.indptr[gene + 1])
        seen = np.zeros(n_cells, dtype=np.int64)
        seen[columns.indices[part]] = columns.data[part].astype(np.int64)
        have, want = int(seen.sum()), int(totals[gene])
        if want < have:
            seen = rng.multivariate_hypergeometric(seen, want, method="marginals")
        elif want > have:
            rates = draw_rates(seen, size * (have or want) / n_cells, spread[gene], rng)
            seen += rng.multinomial(want - have, rates / rates.sum())
        kept = np.flatnonzero(seen)
        cells.append(kept)
        values.append(seen[kept])
        ids.append(np.full(len(kept), gene))
    entries = np.concatenate(values).astype(np.float32), (np.concatenate(cells), np.concatenate(ids))
    return sp.csr_matrix(entries, shape=counts.shape)
