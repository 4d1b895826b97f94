"""Known effects of perturbations: the mean shift of the latents that a perturbation makes in other cell types.

In a cell type c the shift of perturbation p is mean(z | p, c) - mean(z | control, c). The variance of this difference
is v = s_p^2 / n_p + s_0^2 / n_0. The effect told to the prior about c is the mean of the other cell types' shifts,
weighted by 1 / v, and shrunk: multiplied by t / (t + v'), where v' is the variance of the weighted mean, and t
is the mean over all latents of effect^2 - v', at least 0. So a shift that is no larger than its error tells nothing
(empirical Bayes; James & Stein, 1961).
"""

import numpy as np

from evae.common.group_means import means_and_errors


def effect_table(
    latents: np.ndarray,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    n_perturbations: int,
    n_cell_types: int,
    control: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Effects of all perturbations as each cell type is told them, and their errors.

    Args:
        latents: of the training cells, (cells, values).
        perturbation, cell_type: ids, (cells,).
        n_perturbations, n_cell_types: sizes of the vocabularies.
        control: id of the control.

    Returns:
        two arrays, float32 (cell types + 1, perturbations, values): the effects, and their standard deviations given
        the cells. Row c leaves cell type c out; the last row has all. NaN where no other cell type has the
        perturbation; 0 for the control.
    """
    shifts, variances = _shifts(latents, perturbation, cell_type, n_perturbations, n_cell_types, control)
    known = np.isfinite(variances).all(2, keepdims=True)
    weights = np.where(known, 1 / np.maximum(np.where(known, variances, 1.0), 1e-9), 0.0)
    weighted = np.where(known, shifts, 0.0) * weights
    sums, totals = weighted.sum(0), weights.sum(0)
    table = np.full((n_cell_types + 1, n_perturbations, latents.shape[1]), np.nan, dtype=np.float32)
    errors = table.copy()
    for left_out in range(n_cell_types + 1):
        own = (weighted[left_out], weights[left_out]) if left_out < n_cell_types else (0.0, 0.0)
        total = totals - own[1]
        some = total.min(1) > 1e-6
        effect, variance = (sums - own[0])[some] / total[some], 1 / total[some]
        signal = np.maximum((effect**2 - variance).mean(1, keepdims=True), 0)
        share = signal / (signal + variance)
        table[left_out, some], errors[left_out, some] = effect * share, np.sqrt(variance * share)
    table[:, control] = errors[:, control] = 0
    return table, errors


def _shifts(
    latents: np.ndarray,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    n_perturbations: int,
    n_cell_types: int,
    control: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Shift from the controls and its variance, (cell types, perturbations, values); infinite variance if unknown."""
    size = (n_cell_types, n_perturbations)
    group = cell_type.astype(np.int64) * n_perturbations + perturbation
    n = np.bincount(group, minlength=size[0] * size[1])
    sums = np.zeros((size[0] * size[1], latents.shape[1]))
    squares = np.zeros_like(sums)
    np.add.at(sums, group, latents)
    np.add.at(squares, group, latents.astype(np.float64) ** 2)
    mean, error = (values.reshape(*size, -1) for values in means_and_errors(n, sums, squares))
    with np.errstate(invalid="ignore"):
        shifts, variances = mean - mean[:, [control]], error + error[:, [control]]
    variances[~np.isfinite(shifts)] = np.inf
    variances[:, control] = np.inf
    return shifts, variances
