"""Blocks of cells of the files: read and checked once, and kept in the scratch folder for whatever reads them again.

What is kept are all genes of the file, in the narrowest types, as the arrays of a CSR matrix in safetensors:
some 3 bytes a count, where a file holds 8 and its decompression takes longer than all the rest. It lies with what else
is kept of a file (see `evae.data.preparing.workers.open_sources`), so that a run with other settings finds it too.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from evae.common.files import atomic_write
from evae.data.reading.file_counts import FileCounts
from evae.data.reading.panel import over_panel


@dataclass(frozen=True)
class Block:
    """A run of cells of one file: start..stop there, first.. over all files."""

    number: int
    source: int
    start: int
    stop: int
    first: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.stop - self.start)

    def file(self, folder: Path) -> Path:
        """Where this block's result of a step lies."""
        return folder / f"{self.number:06d}"


def all_blocks(sources: list[FileCounts], chunk_size: int) -> list[Block]:
    blocks: list[Block] = []
    first = 0
    for i, source in enumerate(sources):
        blocks += [
            Block(len(blocks) + n, i, *ends, first + ends[0]) for n, ends in enumerate(source.ranges(chunk_size))
        ]
        first += source.n_cells
    return blocks


@dataclass(frozen=True)
class KeptCounts:
    """The counts of a block of cells over the genes of its file, or of a panel, as the arrays of a CSR matrix.

    Attributes:
        indptr: where each cell begins, int64 (cells + 1,).
        indices: rising places of the genes, unsigned integers.
        data: their counts, unsigned integers, none of them 0.
        full: totals over all genes of the file, int64 (cells,).
        n_genes: of the file, or of the panel.
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    full: np.ndarray
    n_genes: int

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """As a matrix, (cells, genes)."""
        parts = self.data, self.indices.astype(np.int32), self.indptr.astype(np.int32)
        matrix = sp.csr_matrix(parts, shape=(len(self.full), self.n_genes))
        matrix.has_canonical_format = True  # which scipy would look for in every step
        return matrix

    def over(self, position: np.ndarray) -> "KeptCounts":
        """The counts over a panel, whose genes stand at these places in the file, (panel,)."""
        if np.array_equal(position, np.arange(self.n_genes)):
            return self
        column = np.full(self.n_genes, -1, dtype=np.int64)
        column[position] = np.arange(len(position))
        panel = over_panel(self.matrix, column, len(position))
        return KeptCounts(panel.indptr, panel.indices, panel.data, self.full, len(position))


def kept_counts(sources: list[FileCounts], block: Block) -> KeptCounts:
    """The counts of a block over the genes of its file.

    Raises:
        EvaeError: they are no raw counts, or cannot be read.
    """
    source = sources[block.source]
    path = _file(source, block)
    if path is not None and path.is_file():
        return KeptCounts(**load_file(path), n_genes=source.n_genes)
    counts = source.narrow_block(block.start, block.stop)
    places = np.uint16 if source.n_genes <= 1 << 16 else np.uint32
    parts = {
        "indptr": counts.indptr.astype(np.int64),
        "indices": counts.indices.astype(places),
        "data": np.ascontiguousarray(counts.data),
        "full": row_totals(counts),
    }
    if path is not None:
        with atomic_write(path) as temporary:
            save_file(parts, temporary)
    return KeptCounts(**parts, n_genes=source.n_genes)


def row_totals(counts: sp.csr_matrix | KeptCounts) -> np.ndarray:
    """The sum of every row, (cells,) int64."""
    totals = np.zeros(len(counts.indptr) - 1, dtype=np.int64)
    filled = np.flatnonzero(np.diff(counts.indptr))
    if len(filled):
        totals[filled] = np.add.reduceat(counts.data, counts.indptr[filled], dtype=np.int64)
    return totals


def let_go(sources: list[FileCounts], block: Block) -> None:
    """Remove what is kept of a block that is not read again."""
    path = _file(sources[block.source], block)
    if path is not None:
        path.unlink(missing_ok=True)


def _file(source: FileCounts, block: Block) -> Path | None:
    return None if source.scratch is None else source.scratch / "blocks" / f"{block.start}-{block.stop}"
