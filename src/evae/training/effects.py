"""Known effects of perturbations: the mean shift of the latents that a perturbation makes in other cell types.

In a cell type c the shift of perturbation p is mean(z | p, c) - mean(z | control, c). The variance of this difference
is v = s_p^2 / n_p + s_0^2 / n_0. How much the shifts of cell types differ beyond these errors is h, one number for a
perturbation (DerSimonian & Laird, 1986). The effect told to the prior about c is the mean of the other cell types'
shifts, weighted by 1 / (v + h), and shrunk: multiplied by t / (t + v'), where v' = 1 / sum(1 / (v + h)) + h is its
variance as a guess for one more cell type, and t is the mean over all latents of effect^2 - v', at least 0. So a shift
that is no larger than its error, or that differs from cell type to cell type, tells nothing (empirical Bayes; James &
Stein, 1961).
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
        two arrays, float32 (cell types + 1, perturbations, values): the effects, and their standard deviations as
        guesses for a cell type that was not read. Row c leaves cell type c out; the last row has all. NaN where no
        other cell type has the perturbation; 0 for the control.
    """
    shifts, variances = _shifts(latents, perturbation, cell_type, n_perturbations, n_cell_types, control)
    known = np.isfinite(variances).all(2)
    shifts, variances = np.where(known[..., None], shifts, 0.0), np.maximum(variances, 1e-9)
    table = np.full((n_cell_types + 1, n_perturbations, latents.shape[1]), np.nan, dtype=np.float32)
    errors = table.copy()
    for left_out in range(n_cell_types + 1):
        used = known.copy()
        used[left_out : left_out + 1] = False
        some = used.any(0)
        effect, variance = _combined(shifts[:, some], variances[:, some], used[:, some])
        signal = np.maximum((effect**2 - variance).mean(1, keepdims=True), 0)
        share = signal / (signal + variance)
        table[left_out, some], errors[left_out, some] = effect * share, np.sqrt(variance * share)
    table[:, control] = errors[:, control] = 0
    return table, errors


def _combined(shifts: np.ndarray, variances: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the cell types that are used, and its variance as a guess for another, (perturbations, values) each.

    Args:
        shifts, variances: (cell types, perturbations, values).
        used: (cell types, perturbations), at least one cell type each.
    """
    weights = used[..., None] / variances
    total = weights.sum(0)
    several = used.sum(0)[:, None] > 1
    excess = (weights * shifts**2).sum(0) - (weights * shifts).sum(0) ** 2 / total - used.sum(0)[:, None] + 1
    scale = np.where(several, total - (weights**2).sum(0) / total, 1.0)
    between = np.maximum(np.where(several, excess / scale, 0.0).mean(1, keepdims=True), 0)
    weights = used[..., None] / (variances + between)
    total = weights.sum(0)
    return (weights * shifts).sum(0) / total, 1 / total + between


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
