"""How well a predicted table of differential expression recovers the real one.

Definitions follow cell-eval (Arc Institute 2025) number by number, so that values can be compared across
papers: a gene is significant below a false discovery rate of 0.05, genes are ranked by absolute fold change,
tables are compared in float32. Where cell-eval leaves a perturbation out, the value is NaN here.

overlap_at_k         share of the k top real genes among the k top predicted ones; k is at most the number of
                     significant real genes ("N": exactly that); 0 where there are none
precision_at_k       the same with k at most the number of significant predicted genes
pr_auc, roc_auc      of -log10 predicted FDR against real significance; NaN where no or every gene is
                     significant
de_spearman_lfc_sig  Spearman correlation of fold changes over the significant real genes; NaN without any
de_direction_match   share of the significant real genes whose fold change has the predicted sign; NaN without
                     any
de_sig_genes_recall  share of the significant real genes that are predicted significant; NaN without any
de_nsig_counts       number of significant genes, real and predicted
de_spearman_sig      Spearman correlation of those numbers over perturbations; 1 where no real gene is
                     significant
"""

import numpy as np

from evae.evaluation.metrics.differential import DETable
from evae.evaluation.metrics.pseudobulk import pearson
from evae.models.contract_evae import EvaeError

TOP = (None, 50, 100, 200, 500)  # None is "N"
THRESHOLD = np.float32(0.05)


def de_metrics(predicted: DETable, real: DETable) -> dict[str, np.ndarray]:
    """Every metric of the module, one value per perturbation, (perturbations,).

    `de_spearman_sig` is one number and is repeated.

    Raises:
        EvaeError: the tables are of different perturbations or genes.
    """
    if predicted.perturbations.tolist() != real.perturbations.tolist():
        raise EvaeError("the two tables of differential expression hold different perturbations; compute both anew.")
    if predicted.genes.tolist() != real.genes.tolist():
        raise EvaeError("the two tables of differential expression hold different genes; compute both anew.")
    rows = [_one(predicted, real, i) for i in range(len(real.perturbations))]
    values = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
    counts = values["de_nsig_counts_real"], values["de_nsig_counts_pred"]
    values["de_spearman_sig"] = np.full(len(rows), spearman_of_counts(*counts))
    return values


def spearman_of_counts(real: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman correlation of the numbers of significant genes, over perturbations with at least one real."""
    some = real > 0
    return spearman(real[some], predicted[some]) if some.any() else 1.0


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, average ranks for ties; NaN if one side is constant or shorter than two."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on; equal values share their mean rank. As scipy.stats.rankdata less 1, which takes longer here."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(values)])
    size = np.diff(first, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first + (size - 1) / 2, size)
    return ranks


def _one(predicted: DETable, real: DETable, i: int) -> dict[str, float]:
    q_real, q_predicted = real.fdr[i].astype(np.float32), predicted.fdr[i].astype(np.float32)
    fold_real = real.log2_fold_change[i].astype(np.float32)
    fold_predicted = predicted.log2_fold_change[i].astype(np.float32)
    significant, called = q_real < THRESHOLD, q_predicted < THRESHOLD
    found = _overlaps(_ranked(fold_real, significant), _ranked(fold_predicted, called))
    score = -(np.log(q_predicted.clip(1e-10, 1.0)) / np.log(np.float32(10)))  # in float32, like the tables
    found |= dict(zip(("pr_auc", "roc_auc"), areas(significant, score), strict=True))
    n = int(significant.sum())
    found["de_spearman_lfc_sig"] = spearman(fold_real[significant], fold_predicted[significant])
    same = np.sign(fold_real[significant]) == np.sign(fold_predicted[significant])
    found["de_direction_match"] = float(same.mean()) if n else float("nan")
    found["de_sig_genes_recall"] = int((significant & called).sum()) / n if n else float("nan")
    found["de_nsig_counts_real"] = n
    found["de_nsig_counts_pred"] = int(called.sum())
    return found


def _ranked(fold: np.ndarray, significant: np.ndarray) -> np.ndarray:
    """Place of each gene, (genes,), among the significant ones by falling absolute fold change, the first gene first on
    ties; behind all places where it is not significant."""
    genes = np.flatnonzero(significant)
    places = np.full(len(fold), len(fold))
    places[genes[np.argsort(-np.abs(fold[genes]), kind="stable")]] = np.arange(len(genes))
    return places


def _overlaps(real: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    both = np.maximum(real, predicted)  # a gene is among the first n of both where this is below n
    both = np.sort(both[both < len(both)])
    found = {}
    for name, own in (("overlap", real), ("precision", predicted)):
        n_own = int((own < len(own)).sum())
        for k in TOP:
            n = n_own if k is None else min(k, n_own)
            found[f"{name}_at_{k or 'N'}"] = int(np.searchsorted(both, n)) / n if n else 0.0
    return found


def areas(positive: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Average precision and area under the ROC curve; NaN where all or none are positive.

    As sklearn's average_precision_score and roc_auc_score give them, whose import takes 30 MB.
    """
    n_positive = int(positive.sum())
    if not 0 < n_positive < len(positive):
        return float("nan"), float("nan")
    order = np.argsort(-score)
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last gene of each run of equal scores
    hits, called = hits[last], last + 1
    recall, precision = hits / n_positive, hits / called
    average_precision = float((np.diff(recall, prepend=0) * precision).sum())
    tied = np.diff(called, prepend=0)
    ranks = (np.diff(hits, prepend=0) * (called - (tied - 1) / 2)).sum()  # of the positives, 1 for the top score
    lost = ranks - n_positive * (n_positive + 1) / 2
    return average_precision, float(1 - lost / (n_positive * (len(positive) - n_positive)))
