"""Raw counts out of a file or folder of any format that `formats` knows, in blocks of cells, without ever holding it in
memory.

CSR and dense matrices are sliced by rows; a CSC matrix is converted to CSR on disk first. Labels are read whole (as
small integer codes), cell names block by block.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.messages import number_of
from evae.data.reading.formats import open_parts
from evae.data.reading.joined_frame import with_table
from evae.data.reading.labels import label_codes
from evae.data.reading.parts import Frame
from evae.data.reading.raw_counts import narrowest
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import GeneColumns, gene_columns


class FileCounts:
    """One file, or folder that is read as one, as a source of raw counts.

    Args:
        path: an h5ad file, or any other that `evae.data.reading.formats` knows.
        layer: None for `X`, "raw" for `raw/X`, "auto" for whichever holds raw counts, else the name of a layer.
        scratch: folder for what has to be converted or unpacked, of this file and layer alone; in memory, or in a
            temporary folder, if None.

    Attributes: `path`, `scratch`, `kind` (the format), `title` (what to call it), `name` (file and layer, for
    messages), `n_cells`, `n_genes`, `encoding` of the matrix, `obs` and `var`, of which each column is read when it is
    asked for, `notes` on what was left out, and, read when first asked for, `gene_columns` and `genes`, their names.

    Raises:
        EvaeError: no such file or layer, no known format or not a whole file, no cells or genes.
    """

    def __init__(self, path: str | Path, layer: str | None = None, scratch: Path | None = None):
        self.path, self.scratch = Path(path), scratch
        self._parts = open_parts(self.path, layer, scratch)
        self.title = self._parts.title or str(self.path)
        self.name = f"the counts in {self._parts.where} of {self.title}"
        self._matrix, self.kind, self.notes = self._parts.matrix, self._parts.kind, self._parts.notes
        self.obs: Frame = self._parts.obs
        self.var: Frame = self._parts.var
        self.encoding = self._matrix.encoding
        self._set: dict[str, tuple[np.ndarray, list[str]]] = {}  # labels in the place of those of a column
        self.n_cells, self.n_genes = self._matrix.shape
        if not self.n_cells or not self.n_genes:
            self.close()
            sizes = f"{number_of(self.n_cells, 'cell')} and {number_of(self.n_genes, 'gene')}"
            raise EvaeError(f"{self.name} hold {sizes}; give a file with cells.")

    @cached_property
    def gene_columns(self) -> GeneColumns:
        """The genes; raises `EvaeError` where `var` does not tell them apart."""
        return gene_columns(self.var.index(), self.var, self.title)

    @property
    def genes(self) -> list[str]:
        return self.gene_columns.names

    def close(self) -> None:
        self._matrix.close()
        self._parts.close()

    def convert_to_csr(self) -> None:
        """Convert a CSC matrix on disk now. Otherwise the first reading does, and processes that share the scratch
        folder must not do that at the same time."""
        self._matrix.convert_to_csr()

    def add_columns(self, table: pd.DataFrame, name: str) -> None:
        """Take columns of the cells from a table too, by the names of the cells; `name` stands in messages."""
        self.obs = with_table(self.obs, table, name, self.title)

    def set_labels(self, key: str, codes: np.ndarray, names: list[str]) -> None:
        """Take other labels in the place of an obs column: codes (cells,) int32, -1 where missing, and the names."""
        self._set[key] = codes, names

    def labels(self, key: str, gaps: bool = False, stored: bool = False) -> tuple[np.ndarray, list[str]]:
        """One obs column as codes (cells,) int32 and the names they stand for.

        Args:
            key: the column.
            gaps: give -1 for a missing label, in place of raising.
            stored: what the file holds, also where `set_labels` put others in its place.

        Raises:
            EvaeError: no such column, or missing labels.
        """
        obs = self.obs
        is_set = key in self._set and not stored
        if key not in obs and not is_set:
            raise EvaeError(f"{self.title} has no obs column '{key}'. {_mend(key, list(obs))}")
        codes, names = self._set[key] if is_set else label_codes(obs[key])
        missing = int((codes < 0).sum())
        if missing and not gaps:
            raise EvaeError(
                f"obs column '{key}' of {self.title} is missing (NaN) in {number_of(missing, 'cell')}; drop them first."
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
        block = self.narrow_block(start, stop)
        block.data = block.data.astype(np.int64)
        return block

    def narrow_block(self, start: int, stop: int) -> sp.csr_matrix:
        """`block` in the narrowest unsigned integers that hold its counts."""
        block = self.values(start, stop)
        try:
            block.data = narrowest(block.data, self.name)
        except EvaeError as error:
            others = [layer for layer in self._parts.counts_in() if layer != self._parts.layer]
            if not others:
                raise
            hint = f'Whole numbers stand in {", ".join(others)}: layer="{others[0]}".'
            raise EvaeError(f"{error} {hint}") from None
        if not block.data.all():
            block.eliminate_zeros()
        return block

    def values(self, start: int, stop: int) -> sp.csr_matrix:
        """The values of the cells start..stop as they are stored, (cells, genes) CSR; they may be no counts."""
        return self._matrix.rows(start, stop)


def _mend(key: str, known: list[str]) -> str:
    """What to do where the file has no column `key`."""
    if known:
        return near_matches(key, known)
    return "It has no labels of cells; evae prepare takes them from a table: --obs labels.csv."
