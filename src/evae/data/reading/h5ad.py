"""Raw counts out of an h5ad file in blocks of cells, without ever holding the file in memory.

CSR and dense matrices are sliced by rows; a CSC matrix is converted to CSR on disk first. Labels are read whole (as
small integer codes), cell names block by block.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from evae.data.reading.csc_to_csr import csc_to_csr
from evae.data.reading.labels import label_codes
from evae.data.reading.stored_frame import StoredFrame
from evae.models.contract_evae import EvaeError, check_raw_counts, near_matches
from evae.models.genes_evae import GeneColumns, gene_columns

MAX_BLOCK_ENTRIES = 1 << 21  # stored values held at once, whatever the chunk size says


class H5adCounts:
    """One h5ad file as a source of raw counts.

    Args:
        path: the file.
        layer: None for `X`, "raw" for `raw/X`, else the name of a layer.
        scratch: folder where a CSC matrix is converted to CSR, of this file alone.

    Attributes: `name` (file and layer, for messages), `n_cells`, `n_genes`, and, read when first asked for,
    `gene_columns` and `genes`, their names.

    Raises:
        EvaeError: no such file or layer, not an h5ad file, no cells or genes.
    """

    def __init__(self, path: str | Path, layer: str | None = None, scratch: Path | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise EvaeError(f"no such file: {self.path}")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise EvaeError(f"{self.path} is not a readable h5ad file ({error}).") from error
        self._scratch = scratch
        self._converted: tuple[Any, Any, Any] | None = None
        where, self._var = self._locate(layer)
        self.name = f"the counts in {where} of {self.path}"
        self._matrix: Any = self._file[where]
        self.encoding = _encoding(self._matrix)
        shape = self._matrix.attrs["shape"] if self.encoding != "dense" else self._matrix.shape
        self.n_cells, self.n_genes = int(shape[0]), int(shape[1])
        if not self.n_cells or not self.n_genes:
            raise EvaeError(f"{self.name} hold {self.n_cells} cells and {self.n_genes} genes; give a file with cells.")

    @cached_property
    def gene_columns(self) -> GeneColumns:
        """The genes; raises `EvaeError` where `var` does not tell them apart."""
        var = StoredFrame(self._file[self._var], f"{self._var} of {self.path}")
        return gene_columns(var.index(), var, str(self.path))

    @property
    def genes(self) -> list[str]:
        return self.gene_columns.names

    def close(self) -> None:
        self._converted = None
        self._file.close()

    def convert_to_csr(self) -> None:
        """Convert a CSC matrix on disk now. Otherwise the first reading does, and processes that share the scratch
        folder must not do that at the same time."""
        if self.encoding == "csc":
            self._csr_parts()

    def labels(self, key: str) -> tuple[np.ndarray, list[str]]:
        """One obs column as codes (cells,) int32 and the names they stand for; missing labels raise."""
        obs = self._obs()
        if key not in obs:
            raise EvaeError(f"{self.path} has no obs column '{key}'. {near_matches(key, list(obs))}")
        codes, names = label_codes(obs[key])
        missing = int((codes < 0).sum())
        if missing:
            raise EvaeError(
                f"obs column '{key}' of {self.path} is missing (NaN) in {missing:,} cells; drop them first."
            )
        return codes, names

    def cell_ids(self, start: int, stop: int) -> np.ndarray:
        """The obs names of the cells start..stop, as strings."""
        return self._obs().index(slice(start, stop))

    def blocks(self, chunk_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Pairs (index of the first cell, counts (block, genes) CSR int64) of the cells start..stop (all by default),
        in the file's order, checked.
        """
        for first, last in self.ranges(chunk_size, start, stop):
            yield first, self.block(first, last)

    def ranges(self, chunk_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """The cells start..stop in runs of at most `chunk_size`, and of a bounded number of stored values."""
        last = self.n_cells if stop is None else stop
        while start < last:
            end = min(last, self._block_end(start, chunk_size))
            yield start, end
            start = end

    def block(self, start: int, stop: int) -> sp.csr_matrix:
        """The counts of the cells start..stop, (cells, genes) CSR int64, without stored zeros.

        Raises:
            EvaeError: the values are not raw counts, or cannot be read.
        """
        try:
            block = self._rows(start, stop)
        except OSError as error:
            raise EvaeError(
                f"{self.name} cannot be read at the cells {start} to {stop} ({error}); fetch the file anew."
            ) from error
        block.sum_duplicates()
        check_raw_counts(block.data, self.name)
        block.data = block.data.astype(np.int64)
        block.eliminate_zeros()
        return block

    def _obs(self) -> StoredFrame:
        return StoredFrame(self._file["obs"], f"obs of {self.path}")

    def _locate(self, layer: str | None) -> tuple[str, str]:
        if layer in (None, "X"):
            if "X" not in self._file:
                raise EvaeError(f"{self.path} has no X matrix; name a layer with counts.")
            return "X", "var"
        if layer == "raw":
            if "raw" not in self._file:
                raise EvaeError(f"{self.path} has no raw counts under adata.raw.")
            return "raw/X", "raw/var"
        layers = list(self._file["layers"]) if "layers" in self._file else []
        if layer not in layers:
            known = near_matches(str(layer), layers) if layers else "The file has no layers."
            raise EvaeError(f"{self.path} has no layer '{layer}'. {known}")
        return f"layers/{layer}", "var"

    def _block_end(self, start: int, chunk_size: int) -> int:
        if self.encoding == "dense":
            return min(self.n_cells, start + max(1, min(chunk_size, MAX_BLOCK_ENTRIES // self.n_genes)))
        stop = min(self.n_cells, start + chunk_size)
        ends = self._csr_parts()[0][start : stop + 1]
        bound = start + int(np.searchsorted(ends, ends[0] + MAX_BLOCK_ENTRIES, side="right")) - 1
        return max(start + 1, min(stop, bound))

    def _rows(self, start: int, stop: int) -> sp.csr_matrix:
        if self.encoding == "dense":
            values = self._matrix[start:stop]
            return sp.csr_matrix(_wide(values))  # NaN counts as a stored value, so that the check sees it
        indptr, indices, data = self._csr_parts()
        ends = np.array(indptr[start : stop + 1])
        low, high = int(ends[0]), int(ends[-1])
        return sp.csr_matrix(
            (_wide(np.array(data[low:high])), np.array(indices[low:high]), ends - low),
            shape=(stop - start, self.n_genes),
        )

    def _csr_parts(self) -> tuple[Any, Any, Any]:
        """indptr, indices and data by row; in the file, or in memory-mapped files."""
        if self.encoding == "csr":
            return self._matrix["indptr"], self._matrix["indices"], self._matrix["data"]
        if self._converted is None:
            if self._scratch is None:
                raise EvaeError(f"{self.name} are stored by column (CSC); save them as CSR.")
            self._converted = csc_to_csr(self._matrix, self.n_cells, self._scratch)
        return self._converted


def _encoding(matrix: Any) -> str:
    """csr, csc or dense, from the attributes old and new anndata versions write."""
    if isinstance(matrix, h5py.Dataset):
        return "dense"
    kind = matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format", ""))
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)  # a string of fixed length comes as bytes
    if kind.startswith("csc"):
        return "csc"
    if kind.startswith("csr"):
        return "csr"
    raise EvaeError(f"a matrix stored as '{kind}' cannot be read; save it as CSR, CSC or dense.")


def _wide(values: np.ndarray) -> np.ndarray:
    """The values in a type that scipy's matrices have, which float16 is not."""
    return values.astype(np.float32) if values.dtype == np.float16 else values
