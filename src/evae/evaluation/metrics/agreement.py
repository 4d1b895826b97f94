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

SIZES = (20, 50, 100)
SIGNIFICANT = 0.05
HIT_GENES = 10


def agreement_metrics(predicted: DETable, real: DETable) -> dict[str, np.ndarray]:
    """Every metric of the module, one value per perturbation, (perturbations,).

    Args:
        predicted, real: of the same perturbations and genes.
    """
    found: dict[str, np.ndarray] = {}
    sure = [_order(-table.p_value, table) for table in (predicted, real)]
    large = [_order(np.abs(table.log2_fold_change), table) for table in (predicted, real)]
    signs = np.sign(predicted.log2_fold_change), np.sign(real.log2_fold_change)
    changed, same = signs[0] * signs[1] != 0, signs[0] * signs[1] > 0
    for k in SIZES:
        n = min(k, same.shape[1])
        shared = _top(sure[0], n) & _top(sure[1], n) & changed
        found[f"top_de_overlap_{k}"] = shared.sum(axis=1) / n
        found[f"top_de_agreement_{k}"] = (shared & same).sum(axis=1) / n
        found[f"top_fold_overlap_{k}"] = (_top(large[0], n) & _top(large[1], n) & changed).sum(axis=1) / n
    return found | _hits(predicted, real)


def _order(key: np.ndarray, table: DETable) -> np.ndarray:
    """Genes by falling key, of equal ones by falling absolute fold change, then by name, (perturbations, genes)."""
    by_name = np.argsort(np.argsort(table.genes.astype(str)))  # so the order of the panel does not matter
    return np.lexsort((np.broadcast_to(by_name, key.shape), -np.abs(table.log2_fold_change), -key), axis=1)


def _top(order: np.ndarray, n: int) -> np.ndarray:
    """Mask of the first n genes of each row."""
    mask = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return mask


def _hits(predicted: DETable, real: DETable) -> dict[str, np.ndarray]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    acts = (real.fdr < SIGNIFICANT).sum(axis=1) >= HIT_GENES
    strength = (predicted.fdr < SIGNIFICANT).sum(axis=1)
    both = 0 < acts.sum() < len(acts)
    values = {
        "hit_average_precision": average_precision_score(acts, strength) if both else np.nan,
        "hit_roc_auc": roc_auc_score(acts, strength) if both else np.nan,
    }
    return {name: np.full(len(acts), float(value)) for name, value in values.items()}
