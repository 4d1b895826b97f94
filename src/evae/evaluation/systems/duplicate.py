"""The interpolated duplicate: the best that a noisy replicate of the experiment can say about mean expression.

mean = a * other half of the real cells + (1 - a) * mean of all perturbations,  a = 1 - false discovery rate of each
gene, by Welch's t-test of the other half against the other perturbations, over the genes (Benjamini-Hochberg). So it
is the replicate where the replicate shows a change, and the mean where it shows noise. Source: Miller et al. 2025,
"Deep learning-based genetic perturbation models do outperform uninformative baselines on well-calibrated metrics".
"""

import numpy as np

from evae.evaluation.cells import Comparison
from evae.evaluation.cells.moments import Moments


def mean_response(comparison: Comparison, cell_type: str) -> np.ndarray | None:
    """The mean of all perturbations of a cell type, as training knows it, (genes,); None without training cells.

    The mean over the perturbations that training holds of the cell type, each of the same weight (Systema's centroid
    reference); where it holds none, the controls with the mean shift of all perturbations in other cell types.
    """
    training = comparison.training
    if training is None:
        return None
    own = [mean for (c, p), mean in training.means.items() if c == cell_type and p != training.control]
    if own:
        return np.mean(own, axis=0)
    shift = training.mean_shift(cell_type)
    return None if shift is None else (comparison.control_means[cell_type] + shift).clip(min=0)


def interpolated(half: Moments, others: Moments, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression of the duplicate and its sampling variance, (genes,) each.

    Args:
        half: the other half of the real cells.
        others: the real cells of the other perturbations.
        reference: the mean of all perturbations, (genes,).
    """
    from scipy.stats import false_discovery_control, ttest_ind_from_stats

    with np.errstate(divide="ignore", invalid="ignore"):
        deviations = np.sqrt(half.variance), np.sqrt(others.variance)
        p = ttest_ind_from_stats(
            half.mean, deviations[0], half.n, others.mean, deviations[1], others.n, equal_var=False
        ).pvalue
    weight = 1 - false_discovery_control(np.where(np.isfinite(p), p, 1.0))
    return weight * half.mean + (1 - weight) * reference, weight**2 * half.noise
