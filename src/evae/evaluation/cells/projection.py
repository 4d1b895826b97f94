"""Principal components of cells, and cells drawn to be projected."""

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

Matrix: TypeAlias = np.ndarray | sp.csr_matrix
_SMALL = 1 << 22  # a sparse matrix of fewer values is quicker made dense


@dataclass(frozen=True)
class Projection:
    """Principal components fitted on a reference set of cells."""

    mean: np.ndarray  # (genes,)
    components: np.ndarray  # (components, genes)

    def __call__(self, matrix: Matrix) -> np.ndarray:
        """Project log1p expression (cells, genes) to (cells, components), float64; sparse cells stay sparse."""
        matrix = matrix.astype(np.float64)
        return np.asarray(matrix @ self.components.T) - self.mean @ self.components.T


def fit_projection(reference: Matrix, n_components: int = 30) -> Projection:
    """Exact principal components of `reference`, log1p expression of shape (cells, genes).

    Fewer components come back where cells or genes are fewer. Solvers that converge are used because the
    randomised one moves FD between runs by more than good models differ; sparse cells are never made dense,
    but for small matrices.
    """
    from sklearn.decomposition import PCA

    n_cells, n_genes = reference.shape
    n_components = min(n_components, n_genes, max(n_cells - 1, 1))
    if isinstance(reference, np.ndarray) or n_components >= min(n_cells, n_genes) - 1 or n_cells * n_genes < _SMALL:
        solver = "covariance_eigh" if n_cells > n_genes else "full"
        with np.errstate(invalid="ignore"):  # a single cell has no variance
            pca = PCA(n_components, svd_solver=solver).fit(dense(reference))
    else:
        pca = PCA(n_components, svd_solver="arpack", tol=0, random_state=0).fit(reference.astype(np.float64))
    return Projection(pca.mean_.astype(np.float64), pca.components_.astype(np.float64))


def neighbour_map(components: np.ndarray, seed: int = 0) -> np.ndarray:
    """UMAP of cells (extra `eval`).

    Args:
        components: principal components, (cells, components).
        seed: the same seed gives the same map.

    Returns:
        (cells, 2).
    """
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    distinct, places = np.unique(components, axis=0, return_inverse=True)  # one control may be read several times
    n = min(15, len(distinct) - 1)
    # exact neighbours in a second; those that UMAP would look for need half a minute of compiling
    distances, rows = NearestNeighbors(n_neighbors=n).fit(distinct).kneighbors(distinct)
    known = rows, distances.astype(np.float32)
    model = UMAP(n_neighbors=n, min_dist=0.3, random_state=seed, n_jobs=1, init="pca", precomputed_knn=known)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # no other cells are placed later
        return np.asarray(model.fit_transform(distinct))[places.ravel()]


def sample_rows(n: int, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of at most `limit` of `n` rows, drawn without replacement."""
    if limit is None or n <= limit:
        return np.arange(n)
    return np.sort(rng.choice(n, limit, replace=False))


def dense(matrix: Matrix) -> np.ndarray:
    """A dense float64 copy of a dense or sparse matrix."""
    if isinstance(matrix, np.ndarray):
        return np.array(matrix, dtype=np.float64)
    return np.array(matrix.toarray(), dtype=np.float64)
