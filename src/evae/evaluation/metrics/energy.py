"""E-distance of two sets of cells, and the permutation test on it.

e_distance  2 E|x - y| - E|x - x'| - E|y - y'|  with Euclidean distances; Szekely and Rizzo 2004, as in pertpy. Pairs of
            a cell with itself count, so it is above 0 for finite samples of one distribution: compare with the floor
E-test      how often cells with permuted labels are farther apart than the two sets; Peidli et al. 2024 (scPerturb)
"""

import numpy as np
from scipy.spatial.distance import cdist


def e_distance(x: np.ndarray, y: np.ndarray) -> float:
    """E-distance of (cells, components) and (other cells, components); NaN where one is empty."""
    if not len(x) or not len(y):
        return float("nan")
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def e_test(x: np.ndarray, y: np.ndarray, permutations: int = 200, seed: int = 0) -> float:
    """p-value of the two sets being one; NaN below two cells a side.

    The share of all labellings, the given one among them, with at least its E-distance: never 0, and valid whatever
    the number of permutations. pertpy counts only larger ones, and at least one.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return float("nan")
    cells = np.concatenate([x, y])
    distance = cdist(cells, cells)
    rng = np.random.default_rng(seed)
    first = np.zeros((n + m, permutations + 1))  # who is of the first set, one column a labelling
    first[:n, 0] = 1
    for column in range(1, permutations + 1):
        first[rng.permutation(n + m)[:n], column] = 1
    of_first = distance @ first  # sum of distances of each cell to the first set
    within = (first * of_first).sum(axis=0)
    across = of_first.sum(axis=0) - within
    rest = distance.sum() - within - 2 * across
    found = 2 * across / (n * m) - within / n**2 - rest / m**2
    return float((found >= found[0] - 1e-9 * abs(found[0])).mean())
