"""Mean expression of every (cell type, perturbation) pair of the training cells, with its error."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.common.group_means import means_and_errors
from evae.common.known_effects import PER
from evae.data.format import AnyDataset
from evae.data.streaming.split_anndata import DatasetSplit

PSEUDO = 0.1  # counts per 10,000 added before logarithms, so that unexpressed genes have no fold change
MOLECULES = 0.1  # molecules of the median cell, in its place
BLOCK = 8_192  # cells read at a time


@dataclass(frozen=True)
class Shifts:
    """Log2 fold changes from the controls of the same cell type.

    Attributes:
        cell_type, perturbation: ids of each pair, (pairs,).
        change: log2 fold changes, (pairs, genes).
        variance: their squared standard errors given the cells, (pairs, genes).
        controls: id of a cell type -> log2 of the mean counts per 10,000 of its controls, plus `pseudo`, (genes,).
        pseudo: counts per 10,000 that were added before logarithms.
    """

    cell_type: np.ndarray
    perturbation: np.ndarray
    change: np.ndarray
    variance: np.ndarray
    controls: dict[int, np.ndarray]
    pseudo: float


def read_shifts(dataset: AnyDataset, pseudo: float | None = PSEUDO) -> Shifts:
    """The shifts of all pairs of the training cells whose cell type has controls.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`.
        pseudo: counts per 10,000 added before logarithms; of cells of few molecules one molecule is many of these, so
            None takes what a tenth of a molecule is in the median cell.
    """
    cells = DatasetSplit(dataset, "train")
    info, labels = cells.info, cells.labels()
    n_genes, n_names = len(info.genes), len(info.perturbations)
    group = labels["cell_type"].cat.codes.to_numpy(np.int64) * n_names + labels["perturbation"].cat.codes.to_numpy()
    pairs, place, n = np.unique(group, return_inverse=True, return_counts=True)
    sums, squares = np.zeros((len(pairs), n_genes)), np.zeros((len(pairs), n_genes))
    depth = np.zeros(cells.n_cells)
    for start in range(0, cells.n_cells, BLOCK):
        stop = min(start + BLOCK, cells.n_cells)
        counts = cells.counts(start, stop).astype(np.float64)
        totals = depth[start:stop] = np.asarray(counts.sum(1)).ravel()
        scaled = sp.diags(PER / np.maximum(totals, 1)) @ counts
        rows = np.arange(stop - start)
        member = sp.csr_matrix((np.ones(len(rows)), (place[start:stop], rows)), shape=(len(pairs), len(rows)))
        for total, values in ((sums, scaled), (squares, scaled.power(2))):
            part = (member @ values).tocoo()
            total[part.row, part.col] += part.data
    mean, error = means_and_errors(n, sums, squares)
    pseudo = MOLECULES * PER / max(float(np.median(depth)), 1.0) if pseudo is None else pseudo
    log, relative = np.log2(mean + pseudo), error / ((mean + pseudo) * np.log(2)) ** 2  # the delta method
    cell_type, name = pairs // n_names, pairs % n_names
    control = info.perturbations.index(info.control)
    controls = {int(cell_type[row]): row for row in np.flatnonzero(name == control)}
    kept = [row for row in range(len(pairs)) if name[row] != control and int(cell_type[row]) in controls]
    base = [controls[int(cell_type[row])] for row in kept]
    profiles = {kind: log[row] for kind, row in controls.items()}
    return Shifts(cell_type[kept], name[kept], log[kept] - log[base], relative[kept] + relative[base], profiles, pseudo)
