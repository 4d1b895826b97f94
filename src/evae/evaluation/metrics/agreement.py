"""Agreement of two tables of differential expression at fixed numbers of genes, and of the perturbations that act.

top_de_overlap_k    share of the k genes that change most surely (smallest p-value) that the prediction has among its
                    own k; the "common DEGs" of scPerturBench (Wei et al. 2025), which has k = 100. By chance k / genes
top_de_agreement_k  the same, counting only genes that change in the right direction
top_fold_overlap_k  share of the k largest absolute fold changes; a gene that does not change at all counts nowhere
hit_average_precision, hit_roc_auc
                    of all perturbations of a cell type, whether those that act (at least 10 genes change, as strong
                    perturbations were chosen by Replogle et al. 2022) are predicted to change more genes than those
                    that do not: one number, repeated for each. NaN where all or none act

Unlike `recovery.overlap_at_k`, k does not depend on how many genes are significant, so that perturbations are averaged
over equal sizes, and every perturbation has a value.
"""

import numpy as np

from evae.evaluation.metrics.differential import DETable
from evae.evaluation.metrics.recovery import areas

SIZES = (20, 50, 100)
SIGNIFICANT = 0.05
HIT_GENES = 10
_ROWS = 16  # perturbations compared at once


def agreement_metrics(predicted: DETable, real: DETable) -> dict[str, np.ndarray]:
    """Every metric of the module, one value per perturbation, (perturbations,).

    Args:
        predicted, real: of the same perturbations and genes.
    """
    by_name = np.argsort(np.argsort(predicted.genes.astype(str)))  # so the order of the panel does not matter
    parts = [slice(start, start + _ROWS) for start in range(0, max(1, len(real.p_value)), _ROWS)]
    found = [_overlaps(predicted, real, by_name, part) for part in parts]
    return {name: np.concatenate([values[name] for values in found]) for name in found[0]} | _hits(predicted, real)


def _overlaps(predicted: DETable, real: DETable, by_name: np.ndarray, rows: slice) -> dict[str, np.ndarray]:
    """The overlaps of some perturbations; `by_name` is the place of each gene's name, (genes,)."""
    found: dict[str, np.ndarray] = {}
    changes = [table.log2_fold_change[rows] for table in (predicted, real)]
    folds = [np.abs(change) for change in changes]
    p_values = [table.p_value[rows] for table in (predicted, real)]
    sure = [_leading(-p, fold, by_name) for p, fold in zip(p_values, folds, strict=True)]
    large = [_leading(fold, fold, by_name) for fold in folds]
    signs = np.sign(changes[0]) * np.sign(changes[1])
    changed, same = signs != 0, signs > 0
    for i, k in enumerate(SIZES):
        n = min(k, same.shape[1])
        shared = sure[0][i] & sure[1][i] & changed
        found[f"top_de_overlap_{k}"] = shared.sum(axis=1) / n
        found[f"top_de_agreement_{k}"] = (shared & same).sum(axis=1) / n
        found[f"top_fold_overlap_{k}"] = (large[0][i] & large[1][i] & changed).sum(axis=1) / n
    return found


def _leading(key: np.ndarray, fold: np.ndarray, by_name: np.ndarray) -> list[np.ndarray]:
    """Masks (perturbations, genes) of the first genes of each perturbation, one mask for each of `SIZES`.

    Args:
        key: genes come by falling key, (perturbations, genes).
        fold: of equal keys by falling absolute fold change, (perturbations, genes).
        by_name: then by the place of their names, (genes,).
    """
    n_genes = key.shape[1]
    sizes = [min(k, n_genes) for k in SIZES]
    least = np.partition(key, [n_genes - n for n in sizes], axis=1)  # far cheaper than a sort of all genes
    found = []
    for n in sizes:
        last = least[:, n_genes - n, None]
        mask = key >= last
        for row in np.flatnonzero(mask.sum(axis=1) > n):  # more genes are tied at the last place than it holds
            tied = np.flatnonzero(key[row] == last[row])
            order = tied[np.lexsort((by_name[tied], -fold[row, tied]))]
            mask[row, order[n - int((key[row] > last[row]).sum()) :]] = False
        found.append(mask)
    return found


def _hits(predicted: DETable, real: DETable) -> dict[str, np.ndarray]:
    acts = (real.fdr < SIGNIFICANT).sum(axis=1) >= HIT_GENES
    average_precision, roc_auc = areas(acts, (predicted.fdr < SIGNIFICANT).sum(axis=1))
    return {
        "hit_average_precision": np.full(len(acts), average_precision),
        "hit_roc_auc": np.full(len(acts), roc_auc),
    }
