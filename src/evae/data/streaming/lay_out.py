"""Cells as they are stored become the rows of a batch: one compiled pass over each cell.

numpy would make several passes over arrays of a window and of a batch. Numba compiles the functions when they are first
called and keeps the machine code beside this file, or in the user's cache.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., None]) -> Any:
    """The function as machine code, which lets other threads run."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep it in can be written to
        return numba.njit(nogil=True)(function)


@compiled
def lay_out(
    genes: np.ndarray, counts: np.ndarray, ends: np.ndarray, high: np.ndarray, high_ends: np.ndarray, steps: bool,
    chosen: np.ndarray, gene_ids: np.ndarray, filled: np.ndarray, totals: np.ndarray,
) -> None:  # fmt: skip
    """Write cells into the rows of a batch, 0 behind each.

    Args:
        genes, counts, ends, high, high_ends, steps: of `FlatCells`, checked: no bounds are looked at here.
        chosen: (rows,) which cells.
        gene_ids: (rows, width) int32, to be written: indices into the panel.
        filled: (rows, width) float32, to be written: counts.
        totals: (rows,) float32, to be written: sums of the counts.
    """
    for row, cell in enumerate(chosen):
        begin, end = ends[cell], ends[cell + 1]
        size = end - begin
        own_genes, own_counts = gene_ids[row], filled[row]  # rows of their own, else the loops are no vector code
        widen(counts[begin:end], own_counts)
        if steps:
            running_sums(genes[begin:end], own_genes)
        else:
            widen(genes[begin:end], own_genes)
        total = np.int64(0)
        for count in counts[begin:end]:
            total += np.int64(count)
        for i in range(high_ends[cell], high_ends[cell + 1]):
            place, more = np.int64(high[i, 0]), np.int64(high[i, 1]) << 8
            if place >= size:
                own_counts[place - size] += more
                total += more
            else:
                for j in range(place, size):  # a step is in all indices from there on
                    own_genes[j] += more
        totals[row] = total
        own_genes[size:] = 0
        own_counts[size:] = 0


@compiled
def widen(values: np.ndarray, out: np.ndarray) -> None:
    """Write values as wider ones."""
    for j in range(len(values)):
        out[j] = values[j]


@compiled
def running_sums(steps: np.ndarray, out: np.ndarray) -> None:
    """Write the sums of the steps up to each, four at a time: of five additions only one waits for the one before."""
    total = np.int32(0)
    fours = len(steps) // 4 * 4
    for j in range(0, fours, 4):
        one = np.int32(steps[j])
        two = one + np.int32(steps[j + 1])
        three = two + np.int32(steps[j + 2])
        out[j], out[j + 1], out[j + 2] = total + one, total + two, total + three
        total += three + np.int32(steps[j + 3])
        out[j + 3] = total
    for j in range(fours, len(steps)):
        total += np.int32(steps[j])
        out[j] = total
