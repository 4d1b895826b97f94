"""Means of groups of cells and their errors, from sums alone."""

import numpy as np

BORROWED = 10.0  # cells whose variance a group borrows from all cells: small groups have too few for one of their own


def means_and_errors(n: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and their squared standard errors, (groups, values) each; NaN of a group without cells.

    Args:
        n: cells of every group, (groups,).
        sums, squares: of their values and of the squares, (groups, values).
    """
    n = n[:, None].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums / n
        within = np.where(n > 0, squares - n * mean**2, 0).clip(0)
        spread = within.sum(0) / n.sum()
        return mean, (within + BORROWED * spread) / (n + BORROWED) / n
