"""Fold changes of several cell types combined, and shrunk by what noise alone would show."""

import numpy as np

SCALES = 12  # normal distributions in the mixture, each with half the variance of the one before
ROUNDS = 60  # of expectation maximisation


def combine(
    change: np.ndarray, variance: np.ndarray, closeness: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over cell types and its variance, (genes,) each; of `change` and `variance`, (cell types, genes).

    Weights are 1 / (variance + h), where h, one number for all genes, is how much cell types differ beyond their
    errors (DerSimonian & Laird, 1986); times `closeness`, (cell types,), where some tell more than others.
    """
    weights = 1 / variance
    fixed = (weights * change).sum(0) / weights.sum(0)
    excess = (weights * (change - fixed) ** 2).sum() - (len(change) - 1) * change.shape[1]
    scale = (weights.sum(0) - (weights**2).sum(0) / weights.sum(0)).sum()
    total = variance + (max(excess / scale, 0.0) if scale > 0 else 0.0)
    weights = (1.0 if closeness is None else closeness[:, None]) / total
    return (weights * change).sum(0) / weights.sum(0), (weights**2 * total).sum(0) / weights.sum(0) ** 2


def shrink(change: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Posterior means of the changes, (genes,): small where they may be noise, nearly unchanged where they are large.

    The prior is a mixture of normal distributions around 0, from no width to that of the largest change, whose weights
    are those most likely of all genes together (adaptive shrinkage; Stephens, Biostatistics 18, 2017).
    """
    widest = max(float((change**2 - variance).max(initial=0)), 1e-12)
    widths = np.concatenate([[0.0], widest * 2.0 ** -np.arange(SCALES)])[:, None]  # variances of the mixture
    total = widths + variance
    log_density = -0.5 * (np.log(total) + change**2 / total)
    density = np.exp(log_density - log_density.max(0))
    share = np.full((len(widths), 1), 1 / len(widths))
    for _ in range(ROUNDS):
        member = share * density
        member /= member.sum(0)
        share = member.mean(1, keepdims=True)
    return (member * widths / total).sum(0) * change
