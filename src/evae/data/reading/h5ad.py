"""Raw counts out of an h5ad file in blocks of cells, without ever holding the file in memory.

CSR and dense matrices are sliced by rows; a CSC matrix is converted to CSR on disk first. Labels are read whole (as
small integer codes), cell names block by block.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from evae.data.reading.labels import label_codes
from evae.data.reading.other_formats import check_layout, open_hdf5
from evae.data.reading.stored_frame import StoredFrame
from evae.data.reading.stored_matrix import StoredMatrix
from evae.models.contract_evae import EvaeError, check_raw_counts, near_matches
from evae.models.genes_evae import GeneColumns, gene_columns


class H5adCounts:
    """One h5ad file as a source of raw counts.

    Args:
        path: the file.
        layer: None for `X`, "raw" for `raw/X`, else the name of a layer.
        scratch: folder where a CSC matrix is converted to CSR, of this file alone; in memory if None.

    Attributes: `name` (file and layer, for messages), `n_cells`, `n_genes`, `encoding` of the matrix, and, read when
    first asked for, `gene_columns` and `genes`, their names.

    Raises:
        EvaeError: no such file or layer, not an h5ad file or not a whole one, no cells or genes.
    """

    def __init__(self, path: str | Path, layer: str | None = None, scratch: Path | None = None):
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        try:
            check_layout(self._file, self.path)
            where, self._var = self._locate(layer)
            self.name = f"the counts in {where} of {self.path}"
            self._matrix = StoredMatrix(self._file[where], self.name, scratch)
            self.encoding = self._matrix.encoding
            self.n_cells, self.n_genes = self._matrix.shape
            if not self.n_cells or not self.n_genes:
                sizes = f"{self.n_cells} cells and {self.n_genes} genes"
                raise EvaeError(f"{self.name} hold {sizes}; give a file with cells.")
        except EvaeError:
            self._file.close()
            raise

    @property
    def obs(self) -> StoredFrame:
        """The columns of the cells; each is read when it is asked for."""
        return StoredFrame(self._file["obs"], f"obs of {self.path}", self._file.get("uns"))

    @property
    def var(self) -> StoredFrame:
        """The columns of the genes."""
        return StoredFrame(self._file[self._var], f"{self._var} of {self.path}", self._file.get("uns"))

    @cached_property
    def gene_columns(self) -> GeneColumns:
        """The genes; raises `EvaeError` where `var` does not tell them apart."""
        var = self.var
        return gene_columns(var.index(), var, str(self.path))

    @property
    def genes(self) -> list[str]:
        return self.gene_columns.names

    def close(self) -> None:
        self._matrix.close()
        self._file.close()

    def convert_to_csr(self) -> None:
        """Convert a CSC matrix on disk now. Otherwise the first reading does, and processes that share the scratch
        folder must not do that at the same time."""
        self._matrix.convert_to_csr()

    def labels(self, key: str) -> tuple[np.ndarray, list[str]]:
        """One obs column as codes (cells,) int32 and the names they stand for; missing labels raise."""
        obs = self.obs
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
        return self.obs.index(slice(start, stop))

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
            end = min(last, self._matrix.block_end(start, chunk_size))
            yield start, end
            start = end

    def block(self, start: int, stop: int) -> sp.csr_matrix:
        """The counts of the cells start..stop, (cells, genes) CSR int64, without stored zeros.

        Raises:
            EvaeError: the values are not raw counts, or cannot be read.
        """
        block = self.values(start, stop)
        check_raw_counts(block.data, self.name)
        block.data = block.data.astype(np.int64)
        block.eliminate_zeros()
        return block

    def values(self, start: int, stop: int) -> sp.csr_matrix:
        """The values of the cells start..stop as they are stored, (cells, genes) CSR; they may be no counts."""
        return self._matrix.rows(start, stop)

    def _locate(self, layer: str | None) -> tuple[str, str]:
        """Where the matrix and its genes are."""
        if layer in (None, "X"):
            if "X" not in self._file:
                raise EvaeError(f"{self.path} has no X matrix; name a layer with counts.")
            return "X", "var"
        if layer == "raw":
            for matrix, var in (("raw/X", "raw/var"), ("raw.X", "raw.var")):  # the latter before anndata 0.7
                if matrix in self._file and var in self._file:
                    return matrix, var
            raise EvaeError(f"{self.path} has no raw counts under adata.raw.")
        layers = list(self._file["layers"]) if "layers" in self._file else []
        if layer not in layers:
            known = near_matches(str(layer), layers) if layers else "The file has no layers."
            raise EvaeError(f"{self.path} has no layer '{layer}'. {known}")
        return f"layers/{layer}", "var"
