"""Mean, variance and number of cells: what statistics of a gene need of a set of cells."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells.normalised import mean_of
from evae.evaluation.cells.projection import Matrix


@dataclass(frozen=True)
class Moments:
    """Of the cells of one set.

    Attributes:
        mean: of every gene, (genes,).
        variance: sample variance of every gene, (genes,); 0 where there are fewer than two cells.
        n: number of cells.
    """

    mean: np.ndarray
    variance: np.ndarray
    n: int

    @property
    def noise(self) -> np.ndarray:
        """Sampling variance of the mean, (genes,)."""
        return self.variance / max(self.n, 1)


def moments_of(cells: Matrix) -> Moments:
    """Moments of cells of shape (cells, genes), sparse or dense."""
    matrix = sp.csr_matrix(cells)
    n = matrix.shape[0]
    mean = mean_of(matrix)
    square = np.bincount(matrix.indices, weights=matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[1])
    spread = square - n * mean**2
    spread[spread <= 1e-12 * square] = 0.0  # of equal values only rounding is left
    return Moments(mean, spread / (n - 1) if n > 1 else np.zeros_like(mean), n)


def merged(parts: Iterable[Moments]) -> Moments:
    """Moments of several sets of cells taken together."""
    parts = list(parts)
    n = sum(part.n for part in parts)
    mean = np.sum([part.n * part.mean for part in parts], axis=0) / n
    within = np.sum([(part.n - 1) * part.variance for part in parts], axis=0)
    between = np.sum([part.n * (part.mean - mean) ** 2 for part in parts], axis=0)
    return Moments(mean, (within + between) / (n - 1) if n > 1 else np.zeros_like(mean), n)


def without(whole: Moments, part: Moments) -> Moments:
    """Moments of the cells of `whole` that are not those of `part`, one of the sets it was merged from."""
    n = whole.n - part.n
    mean = (whole.n * whole.mean - part.n * part.mean) / n
    between = part.n * (part.mean - whole.mean) ** 2 + n * (mean - whole.mean) ** 2
    within = (whole.n - 1) * whole.variance - (part.n - 1) * part.variance - between
    return Moments(mean, within.clip(min=0) / (n - 1) if n > 1 else np.zeros_like(mean), n)
