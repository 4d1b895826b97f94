"""Diversity and memorisation: does a model give cells, or only means, and are they its own?

A mean-collapsed model keeps Pearson delta and MAE; a model that returns stored training cells keeps every
distribution metric. These checks tell both apart from a good model.

variance_ratio          median over genes of var(generated) / var(real); 1 is right, 0 is collapsed
zero_fraction_error     mean over genes of |zero fraction generated - real|
correlation_error       mean over gene pairs of |correlation generated - real|, on the most variable genes
classifier_auc          cross-validated AUC of a random forest, real against generated; 0.5 cannot tell
nearest_training_ratio  median distance to the nearest training cell, generated over real; far below 1 is
                        memorised
copied_fraction         share of generated cells that coincide with a training cell
"""

import numpy as np

from evae.evaluation.cells.projection import Projection

MAX_CORRELATION_GENES = 200
_COPIED = 1e-4  # distance on components below which two cells are one; rounding of float32 is far below


def diversity_metrics(
    real: np.ndarray,
    generated: np.ndarray,
    projection: Projection,
    training: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """All metrics of this module for one cloud of generated cells.

    Args:
        real: log1p expression of real cells, dense (cells, genes).
        generated: of generated cells, (other cells, genes).
        projection: components on which cells are classified and neighbours are looked for.
        training: projected training cells, (training cells, components); None leaves the last two at NaN.
        seed: of the classifier's folds.
    """
    projected_real, projected_generated = projection(real), projection(generated)
    found = {
        "variance_ratio": variance_ratio(real, generated),
        "zero_fraction_error": float(np.abs((real == 0).mean(axis=0) - (generated == 0).mean(axis=0)).mean()),
        "correlation_error": correlation_error(real, generated),
        "classifier_auc": classifier_auc(projected_real, projected_generated, seed),
        "nearest_training_ratio": float("nan"),
        "copied_fraction": float("nan"),
    }
    if training is not None and len(training):
        from sklearn.neighbors import NearestNeighbors

        neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training)
        to_real = neighbours.kneighbors(projected_real)[0].ravel()
        to_generated = neighbours.kneighbors(projected_generated)[0].ravel()
        median = float(np.median(to_real))
        found["nearest_training_ratio"] = float(np.median(to_generated)) / median if median > 0 else float("nan")
        found["copied_fraction"] = float((to_generated < _COPIED).mean())
    return found


def variance_ratio(real: np.ndarray, generated: np.ndarray) -> float:
    """Median over the genes that vary in the real cells of generated over real variance."""
    if len(real) < 2 or len(generated) < 2:
        return float("nan")
    v_real, v_generated = real.var(axis=0, ddof=1), generated.var(axis=0, ddof=1)
    varies = v_real > 0
    if not varies.any():
        return float("nan")
    ratio = float(np.median(v_generated[varies] / v_real[varies]))
    return ratio if ratio > 1e-12 else 0.0  # of cells that are all alike only rounding is left


def correlation_error(real: np.ndarray, generated: np.ndarray, max_genes: int = MAX_CORRELATION_GENES) -> float:
    """Mean absolute difference of gene-gene correlations over the most variable real genes.

    A gene that does not vary in the generated cells has no correlations there, and none of its pairs counts as
    right: they are wrong by 1. As uncorrelated, cells that are all alike would pass where real correlations are weak.
    """
    v_real = real.var(axis=0)
    genes = np.argsort(-v_real, kind="stable")[: min(max_genes, int((v_real > 0).sum()))]
    if len(genes) < 2 or min(len(real), len(generated)) < 3:
        return float("nan")
    upper = np.triu_indices(len(genes), k=1)
    difference = np.abs(_correlation(real[:, genes]) - _correlation(generated[:, genes]))[upper]
    return float(np.nan_to_num(difference, nan=1.0).mean())


def classifier_auc(real: np.ndarray, generated: np.ndarray, seed: int = 0, n_folds: int = 3) -> float:
    """Two-sample classifier AUC on projected cells, from held-out folds; NaN below ten cells a side."""
    if min(len(real), len(generated)) < 10:
        return float("nan")
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    cells = np.concatenate([real, generated])
    labels = np.repeat([0, 1], [len(real), len(generated)])
    scores = np.zeros(len(cells))
    for train, test in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, labels):
        model = ExtraTreesClassifier(50, min_samples_leaf=3, random_state=seed)
        scores[test] = model.fit(cells[train], labels[train]).predict_proba(cells[test])[:, 1]
    return float(roc_auc_score(labels, scores))


def _correlation(cells: np.ndarray) -> np.ndarray:
    centred = cells - cells.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    scaled = np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 1e-9)
    return scaled.T @ scaled
