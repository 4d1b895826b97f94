"""Perturbation metrics on pseudobulks: does the mean shift in the right direction, by the right amount?

The pseudobulk of a pair is the mean log1p CP10K over its cells, its shift ("delta") the difference from the
mean of the real controls of the same cell type, which stand on both sides. The discrimination score
(cell-eval, Arc Institute 2025)
asks whether a prediction is nearer to its own perturbation than to the others: 1 - rank / perturbations, 1 is
best, about 0.5 is chance; the targeted gene itself is left out.
"""

import numpy as np
from scipy.spatial.distance import cdist

DISCRIMINATION = ("discrimination_l1", "discrimination_l2", "discrimination_cosine")


def pseudobulk_metrics(predicted: np.ndarray, real: np.ndarray, control: np.ndarray) -> dict[str, float]:
    """Pearson delta, MAE and MSE of one pair, and the same of the shifts.

    Args:
        predicted: mean log1p expression of the predicted cells, (genes,).
        real: the same of the real cells.
        control: the same of the controls.

    Returns:
        One value for each metric by its name. Pearson delta is NaN where a shift is the same for all genes.
    """
    shift_predicted, shift_real = predicted - control, real - control
    error, error_shift = predicted - real, shift_predicted - shift_real
    return {
        "pearson_delta": pearson(shift_predicted, shift_real),
        "mae": float(np.abs(error).mean()),
        "mse": float((error**2).mean()),
        "mae_delta": float(np.abs(error_shift).mean()),
        "mse_delta": float((error_shift**2).mean()),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two vectors; NaN if one is constant or they have fewer than two entries."""
    if len(x) < 2:
        return float("nan")
    norms = []
    for v in (x, y):
        norm = np.linalg.norm(v - v.mean())
        if norm <= 1e-13 * np.linalg.norm(v):  # nothing but rounding is left of a constant vector
            return float("nan")
        norms.append(norm)
    return float(np.clip((x - x.mean()) @ (y - y.mean()) / (norms[0] * norms[1]), -1, 1))


def discrimination_scores(
    predicted: np.ndarray, real: np.ndarray, perturbations: list[str], genes: np.ndarray
) -> dict[str, np.ndarray]:
    """How well each predicted shift singles out its own perturbation among the real shifts of a cell type.

    Args:
        predicted: mean shifts of the predictions, (perturbations, genes).
        real: mean shifts of the real cells, same order.
        perturbations: their names; one that is also a gene's name has that gene left out of its distances.
        genes: the panel, (genes,).

    Returns:
        For each of `DISCRIMINATION` the score per perturbation, (perturbations,); NaN with one perturbation
        only.
    """
    n = len(perturbations)
    if n < 2:
        return {name: np.full(n, np.nan) for name in DISCRIMINATION}
    column = {g: i for i, g in enumerate(genes.tolist())}
    l1 = cdist(real, predicted, "cityblock")  # (real perturbations, predicted perturbations)
    l2 = cdist(real, predicted, "sqeuclidean")  # of differences: products lose the digits of near-equal profiles
    dot = np.einsum("ig,jg->ij", real, predicted)  # BLAS would leave its threads turning for longer than this takes
    norm_real = np.repeat((real**2).sum(axis=1)[:, None], n, axis=1)
    norm_predicted = np.repeat((predicted**2).sum(axis=1)[None], n, axis=0)
    for j, name in enumerate(perturbations):
        g = column.get(name)
        if g is not None:
            r, p = real[:, g], predicted[j, g]
            l1[:, j] -= np.abs(r - p)
            l2[:, j] -= (r - p) ** 2
            dot[:, j] -= r * p
            norm_real[:, j] -= r**2
            norm_predicted[:, j] -= p**2
    norm = np.sqrt(norm_real.clip(min=0) * norm_predicted.clip(min=0))
    cosine = 1 - np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
    return {name: _own_rank(d) for name, d in zip(DISCRIMINATION, (l1, l2, cosine), strict=True)}


def _own_rank(distances: np.ndarray) -> np.ndarray:
    """1 - rank / n of the diagonal in each column; of equal distances the first perturbation comes first."""
    n = len(distances)
    order = np.argsort(distances, axis=0, kind="stable")
    rank = np.argmax(order == np.arange(n)[None], axis=0)
    return 1 - rank / n
