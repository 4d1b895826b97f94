"""Ranks: does a prediction point at its own perturbation, and not at another one?

centroid_accuracy     share of the other perturbations whose real mean is farther from the prediction than the own one,
                      Euclidean; Systema (Vinas Torne et al., Nature Biotechnology 2025). 1 is best, 0.5 chance
rank_rmse             for a real perturbation, the share of all predictions that are nearer to it than its own, by the
                      root mean squared error of mean expression; PerturBench (Wu et al. 2024). 0 is best, 0.5 chance
rank_cosine           the same by cosine of log2 fold changes,  log2(mean + 0.1) - log2(control mean + 0.1)
normalised_retrieval  the share of all real perturbations, training ones of the cell type among them, whose shift
                      correlates less with the predicted shift than the own one's; TxPert (Wenkel et al. 2025). 1 best

Equal values: PerturBench shuffles them, here they share their mean rank, which is what shuffling gives on average. So
a prediction that is the same for all perturbations has the rank of chance, not the rank of its place in a list.
"""

import numpy as np
from scipy.spatial.distance import cdist

PSEUDOCOUNT = 0.1


def centroid_accuracy(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Of every perturbation, (perturbations,); NaN with one only.

    Args:
        predicted: mean expression of the predictions, (perturbations, genes).
        real: the same of the real cells, in the same order.
    """
    n = len(real)
    if n < 2:
        return np.full(n, np.nan)
    distance = cdist(predicted, real)
    own = np.diag(distance)[:, None]
    return (distance > own).sum(axis=1) / (n - 1)


def perturbench_ranks(predicted: np.ndarray, real: np.ndarray, control: np.ndarray) -> dict[str, np.ndarray]:
    """`rank_rmse` and `rank_cosine` of every perturbation, (perturbations,); NaN with one only.

    Args:
        predicted: mean expression of the predictions, (perturbations, genes).
        real: the same of the real cells, in the same order.
        control: of the controls, (genes,).
    """
    n = len(real)
    if n < 2:
        return {name: np.full(n, np.nan) for name in ("rank_rmse", "rank_cosine")}
    folds = [np.log2(side + PSEUDOCOUNT) - np.log2(control + PSEUDOCOUNT) for side in (predicted, real)]
    return {"rank_rmse": _share_nearer(cdist(predicted, real)), "rank_cosine": _share_nearer(-_cosine(*folds))}


def normalised_retrieval(predicted: np.ndarray, real: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Of every perturbation, (perturbations,); NaN with one candidate only.

    Args:
        predicted: shifts of the predictions from control, (perturbations, genes).
        real: the same of the real cells, in the same order.
        more: shifts of other real perturbations of the cell type, (others, genes), such as those of training.
    """
    candidates = np.concatenate([real, more])
    if len(candidates) < 2:
        return np.full(len(real), np.nan)
    similar = _cosine(*(side - side.mean(axis=1, keepdims=True) for side in (predicted, candidates)))
    own = np.diag(similar[:, : len(real)])[:, None]
    ties = ((similar == own).sum(axis=1) - 1) / 2
    return ((similar < own).sum(axis=1) + ties) / len(candidates)


def _share_nearer(distance: np.ndarray) -> np.ndarray:
    """Of a (predictions, real) matrix: the share of predictions that are nearer to each real one than its own."""
    own = np.diag(distance)
    ties = ((distance == own).sum(axis=0) - 1) / 2
    return ((distance < own).sum(axis=0) + ties) / len(distance)


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of all pairs of rows; 0 where one is zero."""
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    return np.divide(x @ y.T, lengths, out=np.zeros_like(lengths), where=lengths > 1e-12)
