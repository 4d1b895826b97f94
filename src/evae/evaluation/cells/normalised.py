"""Cells ready to compare: log1p CP10K over one gene panel, in memory or in a temporary file."""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError

TARGET_TOTAL = 10_000.0
_HASH_ROWS = 4_096
_DENSE = 4  # rows are read with those between them where at least one of so many is wanted


class ContentDigest:
    """A digest of rows of a sparse matrix that come in parts, whatever the parts are."""

    def __init__(self, n_genes: int) -> None:
        self._sizes, self._genes, self._values = (hashlib.sha256() for _ in range(3))
        self._kind = np.uint16 if n_genes <= 1 << 16 else np.int32

    def update(self, matrix: sp.csr_matrix) -> None:
        """Add rows, float32 CSR."""
        self._sizes.update(np.diff(matrix.indptr).astype(np.int64).data)
        self._genes.update(matrix.indices.astype(self._kind).data)
        self._values.update(np.ascontiguousarray(matrix.data).data)

    def digest(self) -> bytes:
        return b"".join(part.digest() for part in (self._sizes, self._genes, self._values))


class StoredRows:
    """A sparse matrix whose rows lie in an unnamed temporary file: only the rows asked for are in memory.

    `matrix[rows]` gives those rows as a CSR matrix, as it does of a CSR matrix. The file goes with the object.
    """

    def __init__(self, n_genes: int) -> None:
        # closed, and so deleted, when the matrix goes
        self._genes, self._values = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._ends = [np.zeros(1, dtype=np.int64)]  # where each row ends, in values
        self._lock = threading.Lock()
        self.n_genes, self._content = n_genes, ContentDigest(n_genes)

    def append(self, matrix: sp.csr_matrix) -> None:
        """Add rows, float32 CSR."""
        self._genes.write(matrix.indices.astype(np.int32).tobytes())
        self._values.write(matrix.data.astype(np.float32).tobytes())
        self._ends.append(self._ends[-1][-1] + matrix.indptr[1:].astype(np.int64))
        self._content.update(matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""
        return len(self._row_ends()) - 1, self.n_genes

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """The rows of an index array, mask or slice."""
        ends = self._row_ends()
        rows = np.arange(len(ends) - 1)[rows]
        if not len(rows):
            return sp.csr_matrix((0, self.n_genes), dtype=np.float32)
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low > _DENSE * len(rows):
            return self._scattered(rows)
        span = self._span(low, high)
        return span if np.array_equal(rows, np.arange(low, high)) else span[rows - low]

    def _span(self, start: int, stop: int) -> sp.csr_matrix:
        """The rows start..stop. Threads may read at the same time."""
        ends = self._row_ends()[start : stop + 1]
        with self._lock:
            values, genes = (
                _read(file, ends[0], ends[-1], dtype)
                for file, dtype in ((self._values, np.float32), (self._genes, np.int32))
            )
        return sp.csr_matrix((values, genes, ends - ends[0]), shape=(stop - start, self.n_genes))

    def _scattered(self, rows: np.ndarray) -> sp.csr_matrix:
        """Rows that are far apart: runs of consecutive ones are read at once."""
        ends = self._row_ends()
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        first, last = rows[np.append(0, cuts)], rows[np.append(cuts - 1, len(rows) - 1)]
        own = np.concatenate([[0], np.cumsum(ends[rows + 1] - ends[rows])])
        places = own[np.append(0, cuts)].tolist()
        runs = list(zip(places, ends[first].tolist(), ends[last + 1].tolist(), strict=True))
        values, genes = np.empty(own[-1], np.float32), np.empty(own[-1], np.int32)
        with self._lock:
            for file, array in ((self._values, values), (self._genes, genes)):
                for place, start, stop in runs:
                    _read_into(file, array[place : place + stop - start], start)
        return sp.csr_matrix((values, genes, own), shape=(len(rows), self.n_genes))

    def content(self) -> bytes:
        """The digest of all rows."""
        return self._content.digest()

    def _row_ends(self) -> np.ndarray:
        if len(self._ends) > 1:
            self._ends = [np.concatenate(self._ends)]
        return self._ends[0]


class LateRows:
    """A sparse matrix that is read when rows of it are first asked for.

    Args:
        shape: (cells, genes).
        content: the digest of all rows, as `StoredRows.content` gives it.
        read: gives the matrix.
    """

    def __init__(self, shape: tuple[int, int], content: bytes, read: Callable[[], "Rows"]) -> None:
        self.shape, self._content, self._read = shape, content, read
        self._rows: Rows | None = None
        self._lock = threading.Lock()

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """The rows of an index array, mask or slice."""
        with self._lock:
            if self._rows is None:
                self._rows = self._read()
        return self._rows[rows]

    def content(self) -> bytes:
        """The digest of all rows."""
        return self._content


Rows: TypeAlias = sp.csr_matrix | StoredRows | LateRows


@dataclass(frozen=True)
class Cells:
    """Cells ready to compare.

    Attributes:
        matrix: log1p CP10K, sparse float32, (cells, genes); take what you need of it by `matrix[rows]`.
        perturbation: label of each cell, (cells,).
        cell_type: label of each cell, (cells,).
        genes: the panel, (genes,).
        n_empty: cells without any count over the panel.
        totals: counts of each cell over the panel, (cells,); None where the values came as
            log1p or expected counts.
    """

    matrix: Rows
    perturbation: np.ndarray
    cell_type: np.ndarray
    genes: np.ndarray
    n_empty: int = 0
    totals: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def take(self, rows: np.ndarray) -> "Cells":
        """The cells of `rows` (indices or mask), in memory."""
        labels = {name: getattr(self, name)[rows] for name in ("perturbation", "cell_type")}
        totals = None if self.totals is None else self.totals[rows]
        return replace(self, matrix=self.matrix[rows], totals=totals, **labels)

    def counts(self) -> sp.csr_matrix:
        """The raw counts of all cells, (cells, genes), got back from their log1p CP10K.

        Raises:
            EvaeError: the cells came as log1p or as expected counts.
        """
        if self.totals is None:
            raise EvaeError("cells that came as log1p or expected counts have no raw counts; give raw counts in X.")
        matrix = self.matrix[:].astype(np.float32)  # a copy
        for start in range(0, len(self), _HASH_ROWS // 8):
            ends = matrix.indptr[start : start + _HASH_ROWS // 8 + 1]
            scale = np.repeat(self.totals[start : start + len(ends) - 1] / TARGET_TOTAL, np.diff(ends))
            values = matrix.data[ends[0] : ends[-1]]
            values[:] = np.rint(np.expm1(values, dtype=np.float64) * scale)  # exact below about 1e6 counts of a gene
        return matrix

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """(row indices, their values) of all cells, or of `rows`, a few thousand at a time."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _HASH_ROWS):
            part = rows[start : start + _HASH_ROWS]
            yield part, self.matrix[part]

    def digest(self) -> str:
        """A sha256 over values, labels and genes; equal cells in equal order give equal digests."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256("\x1f".join(self.genes.tolist()).encode())
        sha.update(self.content())
        for start in range(0, len(self), _HASH_ROWS):
            part = slice(start, start + _HASH_ROWS)
            for labels in (self.perturbation[part], self.cell_type[part]):
                sha.update("\x1f".join(labels.tolist()).encode())
        return sha.hexdigest()

    def content(self) -> bytes:
        """A digest of the values."""
        if not sp.issparse(self.matrix):
            return self.matrix.content()
        content = ContentDigest(len(self.genes))
        for _, matrix in self.blocks():
            content.update(matrix)
        return content.digest()


def log1p_cp10k(matrix: Any, scale: str, columns: np.ndarray | None = None) -> sp.csr_matrix:
    """Bring counts or log1p values to log1p of counts per 10,000 over the panel; see `log1p_and_totals`."""
    return log1p_and_totals(matrix, scale, columns)[0]


def log1p_and_totals(matrix: Any, scale: str, columns: np.ndarray | None = None) -> tuple[sp.csr_matrix, np.ndarray]:
    """Bring counts or log1p values to log1p of counts per 10,000 over the panel.

    The total of log1p values is rounded to six digits, for float32 values do not give it more exactly: cells
    that were scaled to one total keep one factor, so that equal values stay equal, on which ranks depend.

    Args:
        matrix: (cells, genes of the file), dense or sparse; it is not changed.
        scale: "raw counts", "expected counts" or "log1p".
        columns: the panel's columns; None takes all. The total is over the panel.

    Returns:
        Sparse float32 of shape (cells, panel), in which a cell without counts stays empty, and the totals that
        were divided by, (cells,).
    """
    matrix = sp.csr_matrix(matrix)
    if columns is not None:
        matrix = sp.csr_matrix(matrix[:, columns])
    values = matrix.data.astype(np.float64)  # a copy
    if scale == "log1p":
        with np.errstate(over="ignore"):  # such totals are refused
            np.expm1(values, out=values)
    totals = sp.csr_matrix((values, matrix.indices, matrix.indptr), matrix.shape) @ np.ones(matrix.shape[1])  # (cells,)
    if scale == "log1p":
        totals = _six_digits(totals)
    if scale == "log1p" and np.isin(totals, (0.0, TARGET_TOTAL)).all():
        values = matrix.data  # already so: in float64 log1p takes expm1 of a float32 back exactly
    else:
        values *= np.repeat(TARGET_TOTAL / np.where(totals > 0, totals, 1.0), np.diff(matrix.indptr))
        np.log1p(values, out=values)
    parts = values.astype(np.float32), matrix.indices, matrix.indptr
    matrix = sp.csr_matrix(parts, matrix.shape, copy=True)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix, totals


def mean_of(matrix: sp.csr_matrix) -> np.ndarray:
    """Mean of each gene, (genes,). Summed in float64, which scipy's own mean of a float32 matrix is not."""
    n_cells, n_genes = matrix.shape
    return np.bincount(matrix.indices, weights=matrix.data, minlength=n_genes) / n_cells


def _six_digits(values: np.ndarray) -> np.ndarray:
    """Non-negative values rounded to six significant digits."""
    unit = 10.0 ** (np.floor(np.log10(np.where(values > 0, values, 1.0))) - 5)
    return np.round(values / unit) * unit


def _read(file: Any, start: int, stop: int, dtype: Any) -> np.ndarray:
    values = np.empty(int(stop - start), dtype)
    _read_into(file, values, int(start))
    return values


def _read_into(file: Any, values: np.ndarray, start: int) -> None:
    file.seek(start * values.itemsize)
    file.readinto(values)
