"""Counts of a gene as a Poisson-Gamma mixture: x ~ Poisson(r), where r is Gamma with the gene's mean and dispersion."""

import numpy as np
import scipy.sparse as sp


def dispersions(counts: sp.csr_matrix) -> np.ndarray:
    """Dispersion of each gene by moments, of variance = m + dispersion m^2 at one library size, (genes,).

    Args:
        counts: raw counts, (cells, genes).
    """
    counts = counts.astype(np.float64)
    size = relative_sizes(counts)
    scaled = sp.diags(1 / np.where(size > 0, size, 1.0)) @ counts
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    square = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel()
    noise = mean * float((1 / np.where(size > 0, size, 1.0)).mean())  # of counting, after division by the size
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((square - mean**2 - noise) / mean**2, nan=0.01, posinf=10.0).clip(0.01, 10.0)


def relative_sizes(counts: sp.csr_matrix) -> np.ndarray:
    """Library size of each cell by the mean of all, (cells,)."""
    size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    relative: np.ndarray = size / max(size.mean(), 1e-12)
    return relative


def draw_rates(
    seen: np.ndarray, expected: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
) -> np.ndarray:
    """Rates r of counts, drawn given the counts.

    Args:
        seen: the counts x.
        expected: mean of each, the gene's times the relative size of the cell; of the same shape.
        dispersion: of the gene or genes, broadcast to that shape.
        rng: of the draws.
    """
    shape = 1 / np.asarray(dispersion)
    with np.errstate(divide="ignore"):
        scale = 1 / (shape / np.maximum(expected, 1e-12) + 1)
    return rng.gamma(shape + seen, scale)
