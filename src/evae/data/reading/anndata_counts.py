"""Raw counts of an AnnData in blocks of cells, with the face of `FileCounts`; a backed one is read in chunks."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from evae.common.messages import number_of
from evae.data.reading.anndata_file import as_anndata, check_names
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.labels import label_codes
from evae.models.contract_evae import EvaeError, check_raw_counts, near_matches
from evae.models.genes_evae import GeneColumns, gene_columns

if TYPE_CHECKING:
    import anndata as ad  # 26 MB, which files do without


class AnnDataCounts:
    """An AnnData as a source of raw counts.

    Args:
        adata: the cells; not changed.
        layer: None for `X`, "raw", or the name of a layer.

    Attributes: `adata` as it was given, `name` (for messages), `n_cells`, `n_genes`, and, read when first asked for,
    `gene_columns` and `genes`, their names.

    Raises:
        EvaeError: no such layer, no cells.
    """

    def __init__(self, adata: "ad.AnnData", layer: str | None = None):
        cells = as_anndata(adata, "the cells", layer)
        if cells.n_obs == 0:
            raise EvaeError("there are no cells in the AnnData; give at least one.")
        if cells.X is None:
            raise EvaeError("the AnnData has no X; name the layer that holds the raw counts.")
        self.name = f"layer '{layer}'" if layer else "the counts"
        self.adata, self._cells = adata, cells
        self.n_cells, self.n_genes = cells.shape

    @cached_property
    def gene_columns(self) -> GeneColumns:
        """The genes; raises `EvaeError` where `var` does not tell them apart."""
        return gene_columns(self._cells.var_names, self._cells.var, "the AnnData")

    @property
    def genes(self) -> list[str]:
        return self.gene_columns.names

    def close(self) -> None:
        """Nothing is held open."""

    def labels(self, key: str) -> tuple[np.ndarray, list[str]]:
        """One obs column as codes (cells,) int32 and the names they stand for; missing labels raise."""
        if key not in self.adata.obs:
            known = [str(c) for c in self.adata.obs.columns]
            raise EvaeError(f"the AnnData has no obs column '{key}'. {near_matches(key, known)}")
        check_names(self.adata, key)
        codes, names = label_codes(self.adata.obs[key])
        missing = int((codes < 0).sum())
        if missing:
            raise EvaeError(f"obs column '{key}' is missing (NaN) in {number_of(missing, 'cell')}; drop them first.")
        return codes, names

    def cell_ids(self, start: int, stop: int) -> np.ndarray:
        """The obs names of the cells start..stop, as strings."""
        return self.adata.obs_names[start:stop].to_numpy().astype(str)

    def blocks(self, chunk_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Pairs (index of the first cell, counts (block, genes) CSR int64) of the cells start..stop, checked.

        Raises:
            EvaeError: the values are not raw counts.
        """
        for low in range(start, self.n_cells if stop is None else stop, chunk_size):
            cells = self._cells[low : min(low + chunk_size, self.n_cells if stop is None else stop)]
            matrix: Any = cells.X
            if hasattr(matrix, "to_memory"):  # a backed matrix
                matrix = matrix.to_memory()
            block = sp.csr_matrix(matrix, copy=True)  # NaN counts as a stored value, so that the check sees it
            block.sum_duplicates()
            check_raw_counts(block.data, self.name)
            block.data = block.data.astype(np.int64)
            block.eliminate_zeros()
            yield low, block


Counts = FileCounts | AnnDataCounts


def open_counts(data: "ad.AnnData | str | Path", layer: str | None = None, scratch: Path | None = None) -> Counts:
    """An AnnData or an h5ad file as a source of raw counts."""
    if isinstance(data, str | Path):
        return FileCounts(data, layer, scratch)
    return AnnDataCounts(data, layer)
