"""Metrics of mean effects that a prediction of the mean effect does not win.

Most perturbations of a screen share a part of their effect, so a prediction that is the same for all of them already
correlates with every one. Here effects are taken from the mean of all perturbations, genes are weighted by how surely
they change, and errors are freed of sampling noise.

pearson_delta_centred     Pearson correlation of the shifts from the mean of all perturbations, over all genes; Systema
                          (Vinas Torne et al., Nature Biotechnology 2025)
pearson_delta_centred_20  the same over the 20 genes that differ most surely from control (absolute t-statistic)
weighted_mse              sum_g w_g (predicted_g - real_g)^2,  w_g ~ ((|t_g| - min |t|) / (max |t| - min |t|))^2 with
                          sum 1, t of the perturbation against the other perturbations; Mejia et al. 2025, "Diversity
                          by design"
weighted_r2_delta         1 - sum_g w_g (d_g - p_g)^2 / sum_g w_g (d_g - mean_w d)^2,  d and p the real and predicted
                          shifts from the mean of all perturbations; the same source
mse_unbiased              mean_g of (predicted_g - real_g)^2 - noise of both means: 0 in expectation where the cells
                          have one distribution, so it may be below 0. The noise of a mean is its variance over cells
                          by their number; in sum over genes a prediction may claim no more than real cells of its
                          number have
"""

import numpy as np

from evae.evaluation.cells.moments import Moments
from evae.evaluation.metrics.pseudobulk import pearson

TOP = 20


def t_statistics(cells: Moments, others: Moments) -> np.ndarray:
    """t of every gene with the variance of the others over the number of `cells`, (genes,); 0 without variance.

    That is `t-test_overestim_var` of scanpy's `rank_genes_groups`, which the weights of Mejia et al. come from.
    """
    error = np.sqrt((cells.variance + others.variance) / max(cells.n, 1))
    return np.divide(cells.mean - others.mean, error, out=np.zeros_like(error), where=error > 0)


def gene_weights(t: np.ndarray) -> np.ndarray:
    """Weights of genes from their t-statistics, with sum 1, (genes,); equal where all are alike."""
    size = np.abs(t)
    span = size.max() - size.min()
    weight = ((size - size.min()) / span) ** 2 if span > 0 else np.ones_like(size)
    return weight / weight.sum()


def centred_metrics(
    predicted: np.ndarray, real: np.ndarray, reference: np.ndarray, t_control: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """The metrics of the module but the last, of one perturbation.

    Args:
        predicted: mean log1p expression of the predicted cells, (genes,).
        real: the same of the real cells.
        reference: the mean of all perturbations, (genes,).
        t_control: t-statistics of the real cells against control, (genes,).
        weights: of the genes, see `gene_weights`.

    Returns:
        One value for each metric by its name; NaN where a shift is constant.
    """
    shift, truth = predicted - reference, real - reference
    top = np.argsort(-np.abs(t_control), kind="stable")[:TOP]
    error = float(weights @ (predicted - real) ** 2)
    spread = float(weights @ (truth - weights @ truth) ** 2)
    return {
        "pearson_delta_centred": pearson(shift, truth),
        "pearson_delta_centred_20": pearson(shift[top], truth[top]),
        "weighted_mse": error,
        "weighted_r2_delta": 1 - error / spread if spread > 0 else float("nan"),
    }


def mse_unbiased(predicted: np.ndarray, noise: np.ndarray | None, n: int, real: Moments) -> float:
    """Mean squared error of mean expression, less the sampling noise of both sides.

    Args:
        predicted: mean log1p expression of the predicted cells, (genes,).
        noise: sampling variance of that mean, (genes,); None where the mean is known exactly.
        n: number of predicted cells.
        real: moments of the real cells.
    """
    # the sums over genes are compared, for the smaller of two noisy variances of every gene is too small
    claimed = 0.0 if noise is None else min(float(noise.sum()), float(real.variance.sum()) / max(n, 1))
    return float(((predicted - real.mean) ** 2 - real.noise).mean() - claimed / len(predicted))
