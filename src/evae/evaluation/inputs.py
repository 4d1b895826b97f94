"""Reading cells for evaluation: any AnnData or h5ad file becomes log1p CP10K over one gene panel.

The scale of the input is recognised and stated: raw counts are scaled to 10,000 a cell over the panel and
log1p'd; log1p values are first taken back by expm1, so that everything is compared in one space, whoever
predicted it. Files are read in chunks of rows; what is kept is a sparse float32 matrix.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError, check_unique, near_matches

TARGET_TOTAL = 10_000.0
LOG1P_CEILING = 20.0  # log1p(5e8); a larger fractional value cannot be a log1p of counts
CHUNK_ROWS = 8_192


@dataclass(frozen=True)
class Cells:
    """Cells ready to compare.

    Attributes:
        matrix: log1p CP10K, sparse float32, (cells, genes).
        perturbation: label of each cell, (cells,).
        cell_type: label of each cell, (cells,).
        genes: the panel, (genes,).
        scale: what the input was: "raw counts" or "log1p".
        n_empty: cells without any count over the panel.
    """

    matrix: sp.csr_matrix
    perturbation: np.ndarray
    cell_type: np.ndarray
    genes: np.ndarray
    scale: str
    n_empty: int = 0

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def take(self, rows: np.ndarray) -> "Cells":
        """The cells of `rows` (indices or mask)."""
        return replace(
            self,
            matrix=self.matrix[rows],
            perturbation=self.perturbation[rows],
            cell_type=self.cell_type[rows],
        )

    def digest(self) -> str:
        """A sha256 over values, labels and genes; equal cells in equal order give equal digests."""
        sha = hashlib.sha256()
        for part in (
            self.matrix.indptr.astype(np.int64),
            self.matrix.indices.astype(np.int32),
            self.matrix.data,
        ):
            sha.update(np.ascontiguousarray(part).data)
        for labels in (self.perturbation, self.cell_type, self.genes):
            sha.update("\x1f".join(labels.tolist()).encode())
        return sha.hexdigest()


@dataclass(frozen=True)
class Source:
    """An AnnData, in memory or backed by a file, with its labels read and its scale recognised."""

    adata: ad.AnnData
    name: str
    perturbation: np.ndarray  # (cells,)
    cell_type: np.ndarray  # (cells,)
    genes: np.ndarray  # (genes of the file,)
    scale: str

    def chunks(self, rows: np.ndarray, genes: np.ndarray) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """Yield (row indices, log1p CP10K over `genes`) for consecutive chunks of the sorted `rows`."""
        columns = self.columns(genes)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            yield part, log1p_cp10k(_rows(self.adata, part), self.scale, columns)

    def columns(self, genes: np.ndarray) -> np.ndarray | None:
        """Where the panel's genes stand in this file; None when it is the panel already."""
        if np.array_equal(self.genes, genes):
            return None
        position = {g: i for i, g in enumerate(self.genes.tolist())}
        missing = [g for g in genes.tolist() if g not in position]
        if missing:
            raise EvaeError(
                f"{self.name} lacks {len(missing)} of the {len(genes)} genes of the real cells (first: "
                f"{', '.join(missing[:3])}); subset the real cells to the genes of both before evaluating."
            )
        return np.array([position[g] for g in genes.tolist()])

    def cells(self, genes: np.ndarray, rows: np.ndarray | None = None) -> Cells:
        """Read `rows` (all by default) over the panel `genes`."""
        rows = np.arange(len(self.perturbation)) if rows is None else rows
        parts = [matrix for _, matrix in self.chunks(rows, genes)]
        parts = parts or [sp.csr_matrix(np.zeros((0, len(genes)), dtype=np.float32))]
        matrix = sp.vstack(parts, format="csr")
        empty = int((np.diff(matrix.indptr) == 0).sum())
        return Cells(matrix, self.perturbation[rows], self.cell_type[rows], genes, self.scale, empty)


def open_source(data: ad.AnnData | str | Path, name: str, perturbation_key: str, cell_type_key: str | None) -> Source:
    """Open an AnnData or an h5ad file and check it.

    Args:
        data: an AnnData (never changed) or the path of an h5ad file, which is read in chunks.
        name: what to call it in messages ("the predicted cells").
        perturbation_key: obs column of the perturbation.
        cell_type_key: obs column of the cell type; None treats all cells as one type.

    Raises:
        EvaeError: a file, column or matrix is missing, a label is missing, genes stand twice, or the values
            are neither raw counts nor log1p.
    """
    if isinstance(data, (str, Path)):
        name = f"{name} ({data})"
        if not Path(data).exists():
            raise EvaeError(f"{name}: no such file; check the path.")
        try:
            data = ad.read_h5ad(data, backed="r")
        except (OSError, KeyError) as error:
            raise EvaeError(f"{name} cannot be read as h5ad ({error}); write it with AnnData.write_h5ad.") from error
    if data.X is None or data.n_obs == 0:
        raise EvaeError(f"{name}: no cells in X; put raw counts or log1p values there.")
    check_unique(data.var_names, "gene")
    perturbation = _labels(data, perturbation_key, name, "perturbation_key")
    if cell_type_key is None:
        cell_type = np.full(data.n_obs, "all", dtype=object)
    else:
        cell_type = _labels(data, cell_type_key, name, "cell_type_key")
    genes = np.asarray(data.var_names.astype(str), dtype=object)
    return Source(data, name, perturbation, cell_type, genes, _scale(data, name))


def log1p_cp10k(matrix: Any, scale: str, columns: np.ndarray | None = None) -> sp.csr_matrix:
    """Bring raw counts or log1p values to log1p of counts per 10,000 over the panel.

    The total of log1p values is rounded to six digits, for float32 values do not give it more exactly: cells
    that were scaled to one total keep one factor, so that equal values stay equal, on which ranks depend.

    Args:
        matrix: (cells, genes of the file), dense or sparse; it is not changed.
        scale: "raw counts" or "log1p".
        columns: the panel's columns; None takes all. The total is over the panel.

    Returns:
        Sparse float32 of shape (cells, panel); a cell without counts stays empty.
    """
    matrix = sp.csr_matrix(matrix, dtype=np.float64, copy=True)
    if columns is not None:
        matrix = sp.csr_matrix(matrix[:, columns])
    if scale == "log1p":
        matrix.data = np.expm1(matrix.data)
    totals = np.asarray(matrix.sum(axis=1)).ravel()  # (cells,)
    if scale == "log1p":
        totals = _six_digits(totals)
    factor = TARGET_TOTAL / np.where(totals > 0, totals, 1.0)
    matrix.data = np.log1p(matrix.data * np.repeat(factor, np.diff(matrix.indptr))).astype(np.float32)
    matrix = sp.csr_matrix(matrix, dtype=np.float32)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def _six_digits(values: np.ndarray) -> np.ndarray:
    """Non-negative values rounded to six significant digits."""
    unit = 10.0 ** (np.floor(np.log10(np.where(values > 0, values, 1.0))) - 5)
    return np.round(values / unit) * unit


def mean_of(matrix: sp.csr_matrix) -> np.ndarray:
    """Mean of each gene, (genes,). Summed in float64, which scipy's own mean of a float32 matrix is not."""
    n_cells, n_genes = matrix.shape
    return np.bincount(matrix.indices, weights=matrix.data, minlength=n_genes) / n_cells


def _labels(data: ad.AnnData, key: str, name: str, argument: str) -> np.ndarray:
    if key not in data.obs:
        raise EvaeError(
            f"{name}: no column '{key}' in obs; name it with {argument}. {near_matches(key, list(data.obs.columns))}"
        )
    column = data.obs[key]
    if column.isna().any():
        raise EvaeError(f"{name}: {int(column.isna().sum())} cells have no '{key}'; drop them or fill the label in.")
    return np.asarray(column.astype(str), dtype=object)


def _rows(data: ad.AnnData, rows: np.ndarray) -> Any:
    """Rows of X, in memory; consecutive rows are read as a slice, which is far faster on a file."""
    consecutive = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    chosen = slice(rows[0], rows[-1] + 1) if consecutive else rows
    # X of a view or of a backed file is materialised anew at each access, so those are sliced first
    part: Any = data[chosen].X if data.is_view or data.isbacked else data.X[chosen]
    return part if sp.issparse(part) else np.asarray(part)


def _scale(data: ad.AnnData, name: str) -> str:
    """ "raw counts" if every value is an integer, "log1p" if all lie below `LOG1P_CEILING`, else an error."""
    whole, largest = True, 0.0
    for start in range(0, data.n_obs, CHUNK_ROWS):
        part = _rows(data, np.arange(start, min(start + CHUNK_ROWS, data.n_obs)))
        values: Any = getattr(part, "data", part) if sp.issparse(part) else part
        if values.size == 0:
            continue
        bad = ~np.isfinite(values)
        if bad.any():
            n_bad = int((~np.isfinite(part.toarray() if hasattr(part, "toarray") else part)).any(axis=1).sum())
            raise EvaeError(f"{name}: {n_bad} cells hold NaN or infinite values; drop those cells first.")
        if values.min() < 0:
            raise EvaeError(f"{name}: negative values, so X looks scaled or centred; give raw counts or log1p values.")
        whole = whole and bool((values == np.floor(values)).all())
        largest = max(largest, float(values.max()))
    if whole:
        return "raw counts"
    if largest < LOG1P_CEILING:
        return "log1p"
    raise EvaeError(
        f"{name}: fractional values up to {largest:.4g} are neither raw counts nor log1p; "
        "give integer counts or log1p of normalised counts in X."
    )
