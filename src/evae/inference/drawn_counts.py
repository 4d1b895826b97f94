"""Counts that are drawn block by block; those of many cells lie in temporary files, so that memory does not grow."""

import tempfile
from contextlib import ExitStack
from typing import Any

import numpy as np
import scipy.sparse as sp

IN_MEMORY = 1 << 25  # stored counts, 256 MiB of values and columns, from which on they go to files


class DrawnCounts:
    """Rows of counts that grow.

    Args:
        in_memory: stored counts that are kept in memory.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self.in_memory = in_memory
        self._blocks: list[sp.csr_matrix] = []
        self._files: list[Any] = []  # of values and of columns, once there are many
        self._ends = [np.zeros(1, dtype=np.int64)]
        self._held, self._stored = 0, 0  # stored counts in memory, and in all
        self._types: tuple[np.dtype, np.dtype] | None = None
        self._n_genes = 0

    def append(self, block: sp.csr_matrix) -> None:
        """Add rows (cells, genes)."""
        self._types, self._n_genes = (block.data.dtype, block.indices.dtype), block.shape[1]
        self._ends.append(self._stored + block.indptr[1:].astype(np.int64))
        self._blocks.append(block)
        self._held += block.nnz
        self._stored += block.nnz
        if self._held > self.in_memory:
            self._spill()

    def matrix(self) -> sp.csr_matrix:
        """All rows, CSR; where they are in files, its values are read from these as they are needed.

        The files have no name, and are gone with the matrix.
        """
        if not self._files:
            return sp.vstack(self._blocks, format="csr")
        self._spill()
        assert self._types is not None
        ends = np.concatenate(self._ends)
        parts = [
            np.memmap(file, dtype, mode="r+", shape=(int(ends[-1]),))
            for file, dtype in zip(self._files, self._types, strict=True)
        ]
        for file in self._files:
            file.close()
        return sp.csr_matrix((*parts, ends), shape=(len(ends) - 1, self._n_genes), copy=False)

    def _spill(self) -> None:
        """Write what is in memory to the files."""
        if not self._files:
            with ExitStack() as stack:  # both or none
                self._files = [stack.enter_context(tempfile.TemporaryFile(prefix="evae-")) for _ in range(2)]
                stack.pop_all()
        for block in self._blocks:
            for file, values in zip(self._files, (block.data, block.indices), strict=True):
                file.write(np.ascontiguousarray(values).data)
        for file in self._files:
            file.flush()
        self._blocks, self._held = [], 0
