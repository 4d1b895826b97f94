"""Converts a CSC matrix of an h5ad file to CSR on disk: count the entries of every row, then scatter them in blocks."""

from pathlib import Path
from typing import Any

import numpy as np

BLOCK_ENTRIES = 1 << 21  # stored values held at once
DONE = "done"


def csc_to_csr(matrix: Any, n_rows: int, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr (rows + 1,), indices and data (entries,) of the CSR matrix, memory-mapped from `folder`.

    Args:
        matrix: HDF5 group of a CSC matrix: `indptr`, `indices`, `data`.
        n_rows: number of cells.
        folder: where the files are written, unless an earlier call finished them there.
    """
    n_entries = int(matrix["indptr"][-1])
    kinds = {"indptr": np.int64, "indices": np.int32, "data": matrix["data"].dtype}
    sizes = {"indptr": n_rows + 1, "indices": max(1, n_entries), "data": max(1, n_entries)}

    def open_as(mode: Any) -> list[np.ndarray]:
        return [np.memmap(folder / name, dtype=kinds[name], mode=mode, shape=(sizes[name],)) for name in kinds]

    if not (folder / DONE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _scatter(matrix, n_rows, n_entries, *open_as("w+"))
        (folder / DONE).touch()
    indptr, indices, data = open_as("r")
    return indptr, indices, data


def _scatter(
    matrix: Any, n_rows: int, n_entries: int, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray
) -> None:
    rows, values = matrix["indices"], matrix["data"]
    column_ends = matrix["indptr"][:]
    per_row = np.zeros(n_rows, dtype=np.int64)
    for low in range(0, n_entries, BLOCK_ENTRIES):
        per_row += np.bincount(rows[low : low + BLOCK_ENTRIES], minlength=n_rows)
    indptr[0] = 0
    np.cumsum(per_row, out=indptr[1:])
    cursor = np.array(indptr[:-1])
    for low in range(0, n_entries, BLOCK_ENTRIES):
        high = min(n_entries, low + BLOCK_ENTRIES)
        row = rows[low:high]
        column = np.searchsorted(column_ends, np.arange(low, high), side="right") - 1
        order = np.argsort(row, kind="stable")
        row = row[order]
        first = np.concatenate([[True], row[1:] != row[:-1]])
        run_start = np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))
        target = cursor[row] + np.arange(len(row)) - run_start
        indices[target] = column[order]
        data[target] = values[low:high][order]
        cursor += np.bincount(row, minlength=n_rows)
