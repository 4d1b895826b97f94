"""Highly variable genes, Seurat v3 flavour (Stuart et al. 2019), streamed: two passes over the counts.

With mean m_g and variance v_g of the raw counts of gene g over N cells,

    log10 v ~ local regression of degree 2 on log10 m (tricube weights, span 0.3)  ->  sigma_g = 10^(fit / 2)
    c_cg = min(x_cg, m_g + sigma_g sqrt(N))                                            clip huge counts
    score_g = sum_c (c_cg - m_g)^2 / ((N - 1) sigma_g^2)                               variance of z-scores

and the N genes with the highest score are taken. This is the formula of scanpy's `flavor="seurat_v3"`;
only the local regression is our own (fitted at quantile points of log10 m and interpolated, as loess does).
"""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError

Sums = tuple[int, np.ndarray, np.ndarray]  # cells; per gene, the sum of counts and of their squares


def block_sums(block: sp.csr_matrix, limit: np.ndarray | None) -> Sums:
    """The sums over a block of cells (cells, genes), counts clipped at `limit` (genes,) if there is one."""
    n_genes = block.shape[1]
    values = block.data.astype(np.float64)
    if limit is not None:
        values = np.minimum(values, limit[block.indices])
    total = np.bincount(block.indices, weights=values, minlength=n_genes)
    return block.shape[0], total, np.bincount(block.indices, weights=values * values, minlength=n_genes)


def highly_variable_scores(blocks: Callable[[], Iterator[sp.csr_matrix]], n_genes: int) -> np.ndarray:
    """The variance of the clipped z-scores, (genes,) float64; 0 for genes that never vary.

    Args:
        blocks: called twice; each call yields the training cells' counts, CSR (block, genes).
        n_genes: number of genes.
    """
    nothing = 0, np.zeros(n_genes), np.zeros(n_genes)
    return scores_of_sums(lambda limit: chain([nothing], (block_sums(block, limit) for block in blocks())))


def scores_of_sums(sums: Callable[[np.ndarray | None], Iterator[Sums]]) -> np.ndarray:
    """`highly_variable_scores` from sums over blocks.

    Args:
        sums: called twice, with None and with the limits; yields `block_sums` of the training cells.
    """
    n_cells, total, squares = _added(sums(None))
    if n_cells < 2:
        raise EvaeError("highly variable genes need at least two training cells.")
    mean = total / n_cells
    variance = np.maximum(squares - n_cells * mean**2, 0.0) / (n_cells - 1)
    varies = variance > 0
    sigma = np.ones(len(mean))
    if varies.any():
        fit = local_regression(np.log10(mean[varies]), np.log10(variance[varies]))
        sigma[varies] = 10 ** (fit / 2)
    _, total, squares = _added(sums(mean + sigma * np.sqrt(n_cells)))
    score = (n_cells * mean**2 + squares - 2 * mean * total) / ((n_cells - 1) * sigma**2)
    return np.where(varies, score, 0.0)


def _added(sums: Iterator[Sums]) -> Sums:
    n_cells, total, squares = next(sums)
    for n, t, s in sums:
        n_cells, total, squares = n_cells + n, total + t, squares + s
    return n_cells, total, squares


def local_regression(x: np.ndarray, y: np.ndarray, span: float = 0.3, n_points: int = 200) -> np.ndarray:
    """Degree-2 local regression of y on x (n,) with tricube weights, evaluated at x.

    Args:
        x, y: the points.
        span: share of the points that take part in each local fit.
        n_points: where to fit; between these points the curve is interpolated with the local slopes.
    """
    order = np.argsort(x, kind="stable")
    xs, ys = x[order], y[order]
    n = len(xs)
    near = min(n, max(int(np.ceil(span * n)), 6))
    knots = np.unique(
        np.concatenate([np.quantile(xs, np.linspace(0, 1, n_points)), np.linspace(xs[0], xs[-1], n_points)])
    )
    value, slope = np.empty(len(knots)), np.empty(len(knots))
    for i, knot in enumerate(knots):
        distance = np.abs(xs - knot)
        reach = max(float(np.partition(distance, near - 1)[near - 1]), 1e-12) * (1 + 1e-9)
        inside = distance < reach
        weight = np.sqrt((1 - (distance[inside] / reach) ** 3) ** 3)
        t = (xs[inside] - knot) / reach
        design = np.stack([np.ones_like(t), t, t * t], axis=1) * weight[:, None]
        coefficients = np.linalg.lstsq(design, ys[inside] * weight, rcond=None)[0]
        value[i], slope[i] = coefficients[0], coefficients[1] / reach
    return _hermite(knots, value, slope, x)


def _hermite(knots: np.ndarray, value: np.ndarray, slope: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Cubic Hermite interpolation through values and slopes at the knots."""
    if len(knots) == 1:
        return np.full_like(x, value[0])
    left = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    width = knots[left + 1] - knots[left]
    t = (x - knots[left]) / width
    return (
        (1 + 2 * t) * (1 - t) ** 2 * value[left]
        + t * (1 - t) ** 2 * width * slope[left]
        + t**2 * (3 - 2 * t) * value[left + 1]
        + t**2 * (t - 1) * width * slope[left + 1]
    )
