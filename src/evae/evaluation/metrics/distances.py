"""Distances between two clouds of cells: W2, MMD2 and FD on principal components.

All three compare real cells with generated ones as distributions, after projection onto the leading principal
components of log1p expression (30 in the published protocol).

W2      2-Wasserstein distance, exact optimal transport:  sqrt( min_T sum_ij T_ij |x_i - y_j|^2 )
MMD2    squared maximum mean discrepancy:  E k(x,x') + E k(y,y') - 2 E k(x,y), Gretton et al. 2012, with
        mix_biased       k = sum over sigma of exp(-d^2 / 2 sigma^2), sigma = 1, 2, 4, 8, 16; all pairs
                         (published)
        mix_unbiased     the same kernel without the pairs of a cell with itself: 0 in expectation for a
                         perfect model
        median_unbiased  one kernel, sigma = the median distance between cells, without the self pairs
FD      Frechet distance of two Gaussians:  |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr sqrt( sqrt(C1) C2 sqrt(C1) )

W2 and the biased MMD2 never reach 0 on finite samples, so a value means little without the value of two
halves of real cells of the same size: see `protocols`.
"""

import numpy as np
from scipy.spatial.distance import cdist

from evae.common.messages import number_of
from evae.evaluation.cells.projection import Matrix, Projection, fit_projection, sample_rows
from evae.models.contract_evae import EvaeError

SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0)
_BLOCK = 1_024  # rows of a kernel matrix held at a time


def wasserstein_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Exact 2-Wasserstein distance between two samples with uniform weights.

    Args:
        real: (cells, components).
        generated: (other cells, components).
    """
    real, generated = _pair(real, generated)
    if len(real) == 0 or len(generated) == 0:
        return float("nan")
    import ot  # it loads torch where that is installed

    cost = ot.dist(real, generated, metric="sqeuclidean")  # (cells, other cells)
    return float(np.sqrt(max(ot.emd2([], [], cost, numItermax=10_000_000), 0.0)))


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to two samples; NaN below two cells a side.

    The trace of sqrt(C1 C2) comes from the eigenvalues of the symmetric sqrt(C1) C2 sqrt(C1): unlike a
    general matrix square root that stays real and exact when a covariance has not full rank.
    """
    real, generated = _pair(real, generated)
    if len(real) < 2 or len(generated) < 2:
        return float("nan")
    shift = real.mean(axis=0) - generated.mean(axis=0)
    c1 = np.atleast_2d(np.cov(real, rowvar=False))  # (components, components)
    c2 = np.atleast_2d(np.cov(generated, rowvar=False))
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(min=0)).sum()
    return float(max(shift @ shift + np.trace(c1) + np.trace(c2) - 2 * cross, 0.0))


def mmd2(real: np.ndarray, generated: np.ndarray, kernel: str = "mix", unbiased: bool = False) -> float:
    """Squared maximum mean discrepancy of two samples.

    Args:
        real: (cells, components).
        generated: (other cells, components).
        kernel: "mix" (sum of five Gaussian kernels, as published) or "median" (median heuristic).
        unbiased: leave out the pairs of a cell with itself; then NaN below two cells a side.
    """
    real, generated = _pair(real, generated)
    sums = _kernel_sums(real, generated, median_sigma(real, generated) if kernel == "median" else None)
    return _mmd2_from_sums(sums, len(real), len(generated), len(SIGMAS) if kernel == "mix" else 1, unbiased)


def median_sigma(real: np.ndarray, generated: np.ndarray, max_cells: int = 1_000) -> float:
    """The median distance between cells of both samples taken together, on evenly spaced cells of each."""
    real = real[np.linspace(0, len(real) - 1, min(len(real), max_cells)).astype(int)]
    generated = generated[np.linspace(0, len(generated) - 1, min(len(generated), max_cells)).astype(int)]
    both = np.concatenate([real, generated])
    if len(both) < 2:
        return float("nan")
    distances = cdist(both, both)[np.triu_indices(len(both), k=1)]
    median = float(np.median(distances))
    return median if median > 0 else 1.0  # all cells alike: any width gives the same answer, 0


def distances_between(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """All metrics of this module between two clouds of shape (cells, components); NaN where one is empty."""
    real, generated = _pair(real, generated)
    mix = _kernel_sums(real, generated, None)
    median = _kernel_sums(real, generated, median_sigma(real, generated))
    n, m = len(real), len(generated)
    return {
        "w2": wasserstein_distance(real, generated),
        "mmd2_mix_biased": _mmd2_from_sums(mix, n, m, len(SIGMAS), unbiased=False),
        "mmd2_mix_unbiased": _mmd2_from_sums(mix, n, m, len(SIGMAS), unbiased=True),
        "mmd2_median_unbiased": _mmd2_from_sums(median, n, m, 1, unbiased=True),
        "fd": frechet_distance(real, generated),
    }


def distribution_metrics(
    real_matrix: Matrix,
    generated_matrix: Matrix,
    reference: Matrix | Projection | None = None,
    n_components: int = 30,
    max_cells: int | None = 5_000,
    seed: int = 0,
) -> dict[str, float]:
    """W2, MMD2 and FD between two expression matrices, on principal components of a third.

    Args:
        real_matrix: log1p expression of real cells, (cells, genes), dense or sparse.
        generated_matrix: the same for generated cells, (other cells, genes).
        reference: the cells that the components are fitted on, (cells, genes), or a fitted `Projection`; None
            fits them on the real cells, as published.
        n_components: number of principal components.
        max_cells: cells drawn at random a side; None takes all.
        seed: of that draw.

    Returns:
        One value for each metric of this module, by its name in `facts`.

    Raises:
        EvaeError: the matrices have different numbers of genes.
    """
    if real_matrix.shape[1] != generated_matrix.shape[1]:
        raise EvaeError(
            f"real cells have {number_of(real_matrix.shape[1], 'gene')}, generated cells {generated_matrix.shape[1]}; "
            "subset both to the same genes in the same order."
        )
    if not isinstance(reference, Projection):
        reference = fit_projection(real_matrix if reference is None else reference, n_components)
    rng = np.random.default_rng(seed)
    real = reference(real_matrix[sample_rows(real_matrix.shape[0], max_cells, rng)])
    generated = reference(generated_matrix[sample_rows(generated_matrix.shape[0], max_cells, rng)])
    return distances_between(real, generated)


def _pair(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise EvaeError(f"expected two (cells, components) arrays, got {real.shape} and {generated.shape}.")
    return real, generated


def _kernel_sums(real: np.ndarray, generated: np.ndarray, sigma: float | None) -> np.ndarray:
    """Sums of the kernel over real x real, generated x generated and real x generated pairs."""
    pairs = ((real, real), (generated, generated), (real, generated))
    return np.array([_kernel_sum(x, y, sigma) for x, y in pairs])


def _kernel_sum(x: np.ndarray, y: np.ndarray, sigma: float | None) -> float:
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        squared = cdist(x[start : start + _BLOCK], y, "sqeuclidean")
        if sigma is not None:
            total += np.exp(squared / (-2 * sigma**2)).sum()
            continue
        # each sigma is twice the one before, so its kernel is the next one to the fourth power: one
        # exponential in all
        kernel = np.exp(squared / (-2 * SIGMAS[-1] ** 2))
        for _ in SIGMAS[:-1]:
            total += kernel.sum()
            kernel *= kernel
            kernel *= kernel
        total += kernel.sum()
    return total


def _mmd2_from_sums(sums: np.ndarray, n: int, m: int, k_self: float, unbiased: bool) -> float:
    """MMD2 from the three kernel sums; `k_self` is the kernel of a cell with itself."""
    if min(n, m) < (2 if unbiased else 1):
        return float("nan")
    within_real, within_generated, across = sums
    if unbiased:
        within_real = (within_real - n * k_self) / (n * (n - 1))
        within_generated = (within_generated - m * k_self) / (m * (m - 1))
    else:
        within_real, within_generated = within_real / n**2, within_generated / m**2
    return float(within_real + within_generated - 2 * across / (n * m))
