"""Predicted cells are moved towards the effects that the perturbation has in other cell types.

A prior draws whole cells and knows the state of the controls; arithmetic on the training cells knows a perturbation's
mean effect with less noise. Each errs in its own way, so that the mean of both is nearer to real cells than either. In
log2(mean counts per 10,000 + pseudo) the wanted mean of a gene lies between that of the drawn cells and that of the
controls plus the effect, by the weight of `evae.common.known_effects`. Molecules are then taken from genes and added
to others as in `matching`, so that counts stay whole and cells keep what is their own.
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.known_effects import PER, KnownEffects
from evae.data.format import Pair
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.panel import over_panel
from evae.inference.matching import whole_totals, with_totals
from evae.inference.sampling import READ_BATCH, ControlFacts

FEWEST_CELLS = 20  # of a pair: the mean of fewer is noise, and they would be drawn together


def move_to_known(
    counts: sp.csr_matrix,
    obs: pd.DataFrame,
    known: KnownEffects,
    profiles: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    weight: float,
    seed: int,
) -> tuple[sp.csr_matrix, list[Pair]]:
    """Drawn cells, moved towards known effects.

    Args:
        counts: raw counts, (cells, genes).
        obs: `cell_type` and `perturbation` of the cells.
        known: effects in the cell types of training.
        profiles: cell type -> mean counts per 10,000 of its controls, (genes,); NaN of a gene that they do not measure,
            which is left as it was drawn.
        names: perturbation -> its name in `known`; cells of others are left as they were drawn.
        weight: 0 leaves the cells as they are, 1 gives them the mean that is known.
        seed: of the molecules that are taken and added.

    Returns:
        the counts, CSR float32 (cells, genes), and the pairs that were moved: those of at least FEWEST_CELLS cells
        whose perturbation has been seen in some cell type.
    """
    groups = obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).indices
    blocks, order, moved = [], [], []
    for number, (pair, cells) in enumerate(groups.items()):
        drawn, kind, name = counts[cells], str(pair[0]), str(pair[1])
        log = np.log2(profiles[kind] + known.pseudo)
        effect = known.carried(names[name], log) if name in names and len(cells) >= FEWEST_CELLS else None
        if effect is not None:
            mean = mean_rates(drawn)
            drawn_log = np.log2(mean + known.pseudo)
            wanted = np.exp2(drawn_log + weight * (log + effect - drawn_log)) - known.pseudo
            change = np.nan_to_num(np.maximum(wanted, 0) - mean)
            totals = np.asarray(drawn.sum(axis=0), dtype=np.float64).ravel()
            aim = np.maximum(totals + totals.sum() / PER * change, 0)
            drawn = with_totals(drawn, whole_totals(aim, totals.sum()), np.random.default_rng((seed, 1, number)))
            moved.append((kind, name))
        blocks.append(drawn)
        order.append(cells)
    places = np.argsort(np.concatenate(order), kind="stable")
    return sp.csr_matrix(sp.vstack(blocks, format="csr")[places]), moved


def known_names(
    processor: Any, known: KnownEffects, perturbations: Iterable[str], told: Container[str]
) -> dict[str, str]:
    """Perturbation -> its name among the known effects: `B+A` is `A+B`, and `A+control` is `A`.

    Args:
        processor: of the prior.
        known: effects in the cell types of training.
        perturbations: that are asked for.
        told: those whose effects the user gave; they are left out.
    """
    asked = {name: parts for name, parts in processor.parts_of_all(perturbations).items() if name not in told}
    by_parts = {frozenset(parts): name for name, parts in processor.parts_of_all(known.pairs_of).items()}
    return {name: by_parts[frozenset(parts)] for name, parts in asked.items() if frozenset(parts) in by_parts}


def mean_rates(counts: sp.csr_matrix) -> np.ndarray:
    """Mean counts per 10,000 of each gene, (genes,)."""
    totals = np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
    return np.asarray((counts.T @ (PER / totals)) / counts.shape[0]).ravel()


def profiles_of(processor: Any, controls: ad.AnnData, found: ControlFacts) -> dict[str, np.ndarray]:
    """Mean counts per 10,000 of the controls of each cell type, (genes,); NaN of genes that they do not measure."""
    source, n_genes = AnnDataCounts(controls), len(processor.genes)
    columns = processor.panel_index(source.gene_columns)
    missing = ~np.isin(np.arange(n_genes), columns)
    kind = np.empty(controls.n_obs, dtype=np.int64)
    for number, rows in enumerate(found.rows.values()):
        kind[rows] = number
    sums, start = np.zeros((len(found.rows), n_genes)), 0
    for _, block in source.blocks(READ_BATCH):
        counts = over_panel(block, columns, n_genes)
        cells = np.arange(counts.shape[0])
        rates = PER / np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
        member = sp.csr_matrix((rates, (kind[start + cells], cells)), shape=(len(sums), len(cells)))
        sums += (member @ counts).toarray()
        start += len(cells)
    means = sums / np.array([[len(rows)] for rows in found.rows.values()])
    return {name: np.where(missing, np.nan, mean) for name, mean in zip(found.rows, means, strict=True)}
