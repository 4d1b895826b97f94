"""The expression metrics of the Virtual Cell Challenge 2026, and its scale.

A perturbation is compared by its pseudobulk  mu = log1p(50,000 * s / sum(s)),  with s the summed counts of its cells.
A squared distance of two pseudobulks is too large by their sampling noise, so an estimate of that noise is subtracted:
the delete-one jackknife  C = (n - 1)/n sum_g sum_i (v_ig - mean_i v_ig)^2,  with v_i the pseudobulk without cell i.

A perturbation's own target gene never counts: that it goes down is no prediction. Source: the definitions of the
preset `vcc2026` of cell-eval2 0.20 (Arc Institute); the tests compare the numbers with it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

BULK_TOTAL = 50_000.0
_BLOCK = 64  # cells made dense at once


@dataclass(frozen=True)
class Bulks:
    """Pseudobulks of some perturbations of one context.

    Attributes:
        log_expression: mu, (perturbations, genes).
        noise: C, the summed sampling variance of mu, (perturbations,).
    """

    log_expression: np.ndarray
    noise: np.ndarray


def bulk_of(counts: sp.csr_matrix) -> tuple[np.ndarray, float]:
    """Pseudobulk (genes,) and its noise, of the counts of some cells, (cells, genes)."""
    summed = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    total = summed.sum()
    if total <= 0:
        return np.zeros(len(summed)), 0.0
    bulk = np.log1p(BULK_TOTAL / total * summed)
    n = counts.shape[0]
    if n < 2:
        return bulk, 0.0  # nothing is known of its noise, so nothing is subtracted
    left = total - np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()  # counts without each cell
    first, second = np.zeros(len(summed)), np.zeros(len(summed))
    for start in range(0, n, _BLOCK):
        block = counts[start : start + _BLOCK].toarray().astype(np.float64)
        rest = left[start : start + _BLOCK, None]
        values = np.log1p(BULK_TOTAL * (summed - block) / np.where(rest > 0, rest, 1.0)) * (rest > 0)
        values -= bulk  # so that the difference of squares below is exact
        first += values.sum(axis=0)
        second += np.einsum("ij,ij->j", values, values)
    return bulk, max((n - 1) / n * float((second - first**2 / n).sum()), 0.0)


def discrimination_cosine(predicted: np.ndarray, real: np.ndarray, own: np.ndarray) -> np.ndarray:
    """`pds_cosine`: how near a predicted shift is to its own real one among all; 1 nearest, about 0.5 by chance.

    1 - rank / (perturbations - 1), by cosine distance, over the genes that no perturbation of the panel targets.
    Equal distances share their mean rank, so a prediction without any shift scores 0.5.

    Args:
        predicted: shifts from control, (perturbations, genes).
        real: the same of the real cells.
        own: column of each perturbation's target gene, -1 where it is not measured, (perturbations,).
    """
    n = len(real)
    if n < 2:
        return np.ones(n)
    keep = np.ones(real.shape[1], dtype=bool)
    keep[own[own >= 0]] = False
    predicted, real = predicted[:, keep], real[:, keep]
    lengths = np.linalg.norm(predicted, axis=1)[:, None] * np.linalg.norm(real, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(lengths > 0, (predicted @ real.T) / lengths, 0.0)
    distance = (1 - cosine).clip(0, 2)
    matching = np.diag(distance)[:, None]
    rank = (distance < matching).sum(axis=1) + ((distance == matching).sum(axis=1) - 1) / 2
    return 1 - rank / (n - 1)


def expression_error(
    predicted: Bulks, real: Bulks, control: np.ndarray, control_noise: float, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of `expr_mse_unbiased_capped_norm`, which is the ratio of their sums.

    Numerator: mean squared distance of the predicted and the real pseudobulk, less both noises. Denominator: the same
    of the real pseudobulk and the control. So 0 is exact and 1 is the control copy. The noise that a prediction may
    claim is bounded twice: by the real cells' for each perturbation, and in sum by the spread of its own pseudobulks.

    Args:
        predicted, real: pseudobulks of the same perturbations.
        control: pseudobulk of the real controls, (genes,).
        control_noise: its noise.
        own: column of each perturbation's target gene or -1, (perturbations,).
    """
    rows = np.flatnonzero(own >= 0)
    weight = 1.0 / (real.log_expression.shape[1] - (own >= 0))
    claimed = np.minimum(predicted.noise, real.noise)
    in_sum = float((claimed * weight).sum())
    if in_sum > 0:
        claimed = claimed * min(1.0, _spread(predicted.log_expression, weight, own) / in_sum)
    error = (predicted.log_expression - real.log_expression) ** 2
    effect = (real.log_expression - control) ** 2
    error[rows, own[rows]] = effect[rows, own[rows]] = 0.0
    return (
        (error.sum(axis=1) - claimed - real.noise) * weight,
        (effect.sum(axis=1) - real.noise - control_noise) * weight,
    )


def _spread(bulks: np.ndarray, weight: np.ndarray, own: np.ndarray) -> float:
    """Weighted squares of pseudobulks around their mean, in sum; a gene without the perturbations that target it."""
    deviation = bulks - bulks.mean(axis=0)
    weights = np.tile(weight[:, None], (1, bulks.shape[1]))
    rows = np.flatnonzero(own >= 0)
    weights[rows, own[rows]] = 0.0
    total = weights.sum(axis=0)
    usable = (weights > 0).sum(axis=0) >= 2
    first, second = (weights * deviation).sum(axis=0), (weights * deviation**2).sum(axis=0)
    return float((second[usable] - first[usable] ** 2 / total[usable]).clip(min=0).sum())


@dataclass(frozen=True)
class Scale:
    """How a metric becomes a score of the challenge.

    Attributes:
        better: which way.
        low, high: where the score is cut off; None nowhere.
    """

    better: Literal["low", "high"]
    low: float | None = None
    high: float | None = None


SCALES = {
    "pds_cosine": Scale("high"),
    "expr_mse_unbiased_capped_norm": Scale("low", 0.0, 1.0),
    "direction_fidelity_yield_raw": Scale("high"),
    "direction_reach_raw": Scale("high"),
    "sig_jaccard": Scale("high"),
    "lfc_nmae": Scale("low", -6.0),
}


def scaled(metric: str, value: float, baseline: float, replicate: float, spread: float = 0.0) -> float:
    """The score  s = (u - b) / (r - b):  0 is the baseline b, 1 a replicate r of the experiment.

    NaN where one of the three is not known, or where the replicate is not better than the baseline by more than the
    `spread` of replicates: there is no reachable range then.
    """
    scale = SCALES[metric]
    reachable = (replicate - baseline) * (1 if scale.better == "high" else -1)
    if not reachable > spread:  # so for NaN too
        return float("nan")
    return float(np.clip((value - baseline) / (replicate - baseline), scale.low, scale.high))
