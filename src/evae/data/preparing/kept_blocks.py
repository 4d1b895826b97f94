"""Blocks of cells of the files: read and checked once, and kept in the scratch folder for whatever reads them again.

What is kept are all genes of the file, in the narrowest types, as the three arrays of a CSR matrix in safetensors:
some 3 bytes a count, where a file holds 8 and its decompression takes longer than all the rest. It lies with what else
is kept of a file (see `evae.data.preparing.workers.open_sources`), so that a run with other settings finds it too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from evae.common.files import atomic_write
from evae.data.reading.file_counts import FileCounts


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


def kept_counts(sources: list[FileCounts], block: Block) -> sp.csr_matrix:
    """The counts of a block over the genes of its file, (cells, genes) CSR of unsigned integers.

    Raises:
        EvaeError: they are no raw counts, or cannot be read.
    """
    source, shape = sources[block.source], (block.stop - block.start, sources[block.source].n_genes)
    path = _file(source, block)
    if path is not None and path.is_file():
        kept = load_file(path)
        indices = kept["indices"].astype(np.int32)
        return sp.csr_matrix((kept["data"], indices, kept["indptr"].astype(np.int32)), shape=shape)
    counts = source.narrow_block(block.start, block.stop)
    if path is not None:
        places = np.uint16 if shape[1] <= 1 << 16 else np.uint32
        parts = {"indptr": counts.indptr.astype(np.int64), "indices": counts.indices.astype(places)}
        with atomic_write(path) as temporary:
            save_file({**parts, "data": np.ascontiguousarray(counts.data)}, temporary)
    return counts


def row_totals(counts: sp.csr_matrix) -> np.ndarray:
    """The sum of every row, (cells,) int64."""
    totals = np.zeros(counts.shape[0], dtype=np.int64)
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
