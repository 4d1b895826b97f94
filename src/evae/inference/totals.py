"""Drawn cells whose genes get other totals: molecules are taken from genes and added to others.

Of a gene with too many molecules some are taken, each alike. To a gene with too few, molecules are added, to each cell
in proportion to its rate, drawn given its count (see `evae.common.mixed_poisson`). So counts stay whole, cells that
express a gene get more of it, and totals are the wanted ones.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.known_effects import PER
from evae.common.mixed_poisson import dispersions, draw_rates, relative_sizes
from evae.data.format import Pair


def by_pair(
    counts: sp.csr_matrix, obs: pd.DataFrame, change: Callable[[int, Pair, sp.csr_matrix], sp.csr_matrix]
) -> sp.csr_matrix:
    """Cells, CSR (cells, genes), those of each pair changed together: `change(number, pair, cells)`.

    Pairs are numbered as in `cells_by_pair`.
    """
    groups = cells_by_pair(obs)
    blocks = [change(number, pair, counts[cells]) for number, (pair, cells) in enumerate(groups)]
    places = np.argsort(np.concatenate([cells for _, cells in groups]), kind="stable")
    return sp.csr_matrix(sp.vstack(blocks, format="csr")[places])


def cells_by_pair(obs: pd.DataFrame) -> list[tuple[Pair, np.ndarray]]:
    """The pairs of cell type and perturbation with their rows of `obs`, in the order in which they first stand."""
    groups = obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).indices
    return [((str(kind), str(name)), cells) for (kind, name), cells in groups.items()]


def whole_totals(parts: np.ndarray, n_molecules: float) -> np.ndarray:
    """As many molecules divided among the genes in proportion to `parts`, int64 (genes,) (largest remainders)."""
    exact = n_molecules * parts / max(parts.sum(), 1e-12)
    whole = np.floor(exact).astype(np.int64)
    left = round(n_molecules) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole


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


def mean_rates(counts: sp.csr_matrix) -> np.ndarray:
    """Mean counts per 10,000 of each gene, (genes,)."""
    totals = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
    return np.asarray((counts.T @ (PER / totals)) / counts.shape[0]).ravel()


def with_means(counts: sp.csr_matrix, obs: pd.DataFrame, means: Mapping[int, np.ndarray], seed: int) -> sp.csr_matrix:
    """Cells of each pair with the mean counts per 10,000 given, as nearly as shares that sum to 1 can.

    Args:
        counts: raw counts, (cells, genes).
        obs: `cell_type` and `perturbation` of the cells.
        means: number of a pair, as in `cells_by_pair`, -> (genes,). The cells of others stay as they are.
        seed: of the molecules that are taken and added.
    """

    def change(number: int, pair: Pair, cells: sp.csr_matrix) -> sp.csr_matrix:
        if number not in means:
            return cells
        difference = np.nan_to_num(np.maximum(means[number], 0) - mean_rates(cells))
        totals = np.asarray(cells.sum(axis=0), dtype=np.float64).ravel()
        aim = np.maximum(totals + totals.sum() / PER * difference, 0)
        return with_totals(cells, whole_totals(aim, totals.sum()), np.random.default_rng((seed, 1, number)))

    return by_pair(counts, obs, change)
