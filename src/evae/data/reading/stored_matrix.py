"""A matrix of cells by genes in an HDF5 file or a Zarr store, read by rows: CSR, CSC or dense, as old and new versions
of anndata and other writers store it."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from evae.data.reading.csc_to_csr import csc_to_csr
from evae.data.reading.stored_frame import as_text
from evae.data.reading.whole_chunks import read_run
from evae.models.contract_evae import EvaeError

MAX_BLOCK_ENTRIES = 1 << 21  # stored values held at once, whatever the chunk size says
PARTS = ("indptr", "indices", "data")


class StoredMatrix:
    """A matrix of which only the rows that are asked for are read.

    Args:
        stored: the group of a sparse matrix (or a mapping of its three parts), or a dense data set.
        name: what to call it in messages.
        scratch: folder where a CSC matrix is converted to CSR; in memory if None.
        csr_shape: the numbers of cells and genes of a CSR matrix whose group does not say what it is.
        columns: the genes to keep, (genes,); all if None.

    Attributes: `encoding` ("csr", "csc" or "dense"), `shape`, the numbers of cells and genes.

    Raises:
        EvaeError: another encoding, or a matrix without all its parts.
    """

    def __init__(
        self,
        stored: Any,
        name: str,
        scratch: Path | None = None,
        csr_shape: tuple[int, int] | None = None,
        columns: np.ndarray | None = None,
    ):
        self._stored, self._name, self._scratch, self._columns = stored, name, scratch, columns
        self.encoding = _encoding(stored, name) if csr_shape is None else "csr"
        self._stored_shape = _shape(stored, name) if csr_shape is None else csr_shape
        self.shape = (self._stored_shape[0], self._stored_shape[1] if columns is None else len(columns))
        self._converted: tuple[Any, Any, Any] | None = None

    def close(self) -> None:
        self._converted = None

    def convert_to_csr(self) -> None:
        """Convert a CSC matrix now. Otherwise the first reading does, and processes that share the scratch folder must
        not do that at the same time."""
        if self.encoding == "csc":
            self._csr_parts()

    def block_end(self, start: int, chunk_size: int) -> int:
        """Where a block ends that begins at `start`: at most `chunk_size` rows, and a bounded number of values."""
        n_cells = self._stored_shape[0]
        if self.encoding == "dense":
            return min(n_cells, start + self._dense_rows(chunk_size, start))
        stop = min(n_cells, start + chunk_size)
        ends = self._csr_parts()[0][start : stop + 1]
        bound = start + int(np.searchsorted(ends, ends[0] + MAX_BLOCK_ENTRIES, side="right")) - 1
        return max(start + 1, min(stop, bound))

    def _dense_rows(self, chunk_size: int, start: int) -> int:
        """Rows of a dense matrix that are read at once: whole chunks of the file where they are not too tall, since
        every one that is cut is read and decompressed twice."""
        rows = max(1, min(chunk_size, MAX_BLOCK_ENTRIES // self._stored_shape[1]))
        tall = (getattr(self._stored, "chunks", None) or (1,))[0]
        most = max(1, min(chunk_size, 8 * MAX_BLOCK_ENTRIES // self._stored_shape[1]))
        ends = (start + max(rows, min(tall, most))) // tall * tall
        return ends - start if ends > start else min(tall, most)

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """The values of the rows start..stop, (rows, genes) CSR without repeated entries.

        Raises:
            EvaeError: they cannot be read.
        """
        try:
            block = self._rows(start, stop)
        except OSError as error:
            raise EvaeError(
                f"{self._name} cannot be read at the cells {start} to {stop} ({error}); fetch the file anew."
            ) from error
        if self._columns is not None:
            block = block[:, self._columns]
        block.sum_duplicates()
        return block

    def sample(self, n: int) -> np.ndarray:
        """Some `n` of the values, from both ends, without converting anything; of a dense matrix whole rows."""
        if self.encoding == "dense":
            rows = max(1, n // (2 * max(1, self.shape[1])))
            return np.concatenate([np.ravel(self._stored[:rows]), np.ravel(self._stored[-rows:])])
        data = self._stored["data"]
        return np.concatenate([data[: n // 2], data[max(0, data.shape[0] - n // 2) :]])

    def _rows(self, start: int, stop: int) -> sp.csr_matrix:
        if self.encoding == "dense":
            values = self._stored[start:stop]
            return sp.csr_matrix(_wide(values))  # NaN counts as a stored value, so that a check sees it
        indptr, indices, data = self._csr_parts()
        ends = np.asarray(indptr[start : stop + 1])
        low, high = int(ends[0]), int(ends[-1])
        values, columns = read_run(data, low, high), read_run(indices, low, high)
        if isinstance(data, np.ndarray):  # of which these are views, and sorting them would change it
            values, columns = values.copy(), columns.copy()
        values, columns = (np.require(part, requirements="W") for part in (_wide(values), columns))
        return sp.csr_matrix((values, columns, ends - low), shape=(stop - start, self._stored_shape[1]))

    def _csr_parts(self) -> tuple[Any, Any, Any]:
        """indptr, indices and data by row; in the file, in memory-mapped files, or in memory."""
        if self.encoding == "csr":
            return self._stored["indptr"], self._stored["indices"], self._stored["data"]
        if self._converted is None:
            if self._scratch is None:
                parts = [self._stored[part][:] for part in ("data", "indices", "indptr")]
                whole = sp.csc_matrix((_wide(parts[0]), *parts[1:]), shape=self._stored_shape).tocsr()
                self._converted = whole.indptr, whole.indices, whole.data
            else:
                self._converted = csc_to_csr(self._stored, self.shape[0], self._scratch)
        return self._converted


def _encoding(stored: Any, name: str) -> str:
    """csr, csc or dense, from the attributes old and new anndata versions write."""
    if _is_array(stored):
        return "dense"
    kind = as_text(stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format", "")))
    if kind[:3] in ("csr", "csc"):
        return kind[:3]
    raise EvaeError(f"{name} are stored as '{kind}', which cannot be read; save them as CSR, CSC or dense.")


def _shape(stored: Any, name: str) -> tuple[int, int]:
    if _is_array(stored):
        shape = stored.shape if len(stored.shape) == 2 else None
    else:
        shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))  # the latter before anndata 0.7
    missing = [] if _is_array(stored) else [part for part in PARTS if part not in stored]
    if shape is None or missing:
        what = " and ".join(missing) or "a shape of cells by genes"
        raise EvaeError(f"{name} lack {what}: the file was not written to its end; write it anew.")
    return int(shape[0]), int(shape[1])


def _is_array(stored: Any) -> bool:
    """Whether it is an array of HDF5 or Zarr, not a group."""
    return hasattr(stored, "dtype")


def _wide(values: np.ndarray) -> np.ndarray:
    """The values in a type that scipy's matrices have, which float16 is not."""
    return values.astype(np.float32) if values.dtype == np.float16 else values
