"""Centroids and separation of an embedding, accumulated over a stream of cells.

Every cell is scaled to length one, then added to the sums of its (arm, target) group, in float64. The
Calinski-Harabasz score needs no more than these sums and the sum of squares,

    CH = (B / (k - 1)) / (W / (n - k)),   B = sum_g |s_g|^2 / n_g - |s|^2 / n,   W = sum |x|^2 - sum_g |s_g|^2 / n_g

so the sums are kept for the true labels and for all shuffles of them side by side, and one pass serves all.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError
from evae.reversion.screen import TREATED, UNTREATED, Screen

N_SHUFFLES = 30


@dataclass(frozen=True)
class Place:
    """Where the groups of a screen lie in one embedding.

    Attributes:
        name: of the embedding.
        centroids: of every (arm, target), (2, targets, width); NaN where there is no cell.
        sizes: cells that they are of, int64 (2, targets).
        null_distances: cosine distances to the anchor of every (arm, target) of the shuffled screens, (shuffles, 2,
            targets); empty where there are no single cells.
        separation: Calinski-Harabasz ratios, see `ScreenSums.separation`; NaN where there are no single cells.
        width: numbers of a cell.
        n_skipped: cells of the two arms that have no embedding, or were left out of a sample.
        about: where it comes from, in words.
        seconds: that it took.
    """

    name: str
    centroids: np.ndarray
    sizes: np.ndarray
    null_distances: np.ndarray
    separation: dict[str, float]
    width: int
    n_skipped: int
    about: str
    seconds: float


class ScreenSums:
    """Sums of an embedding over the groups of a screen, and over shuffled groups.

    Args:
        screen: the labels.
        width: numbers of an embedded cell.
        n_shuffles: shuffles of the labels: targets among the cells of an arm, conditions among the control cells.
        seed: of the shuffles.
    """

    def __init__(self, screen: Screen, width: int, n_shuffles: int = N_SHUFFLES, seed: int = 0):
        self.screen = screen
        self._codes = _shuffled(screen, n_shuffles, seed)  # (1 + shuffles, cells), row 0 is the truth
        self._arms = _shuffled_arms(screen, n_shuffles, seed)  # likewise, -1 for cells that are no controls
        self._sums = np.zeros((n_shuffles + 1, screen.n_groups, width))
        self._counts = np.zeros((n_shuffles + 1, screen.n_groups), dtype=np.int64)
        self._arm_sums = np.zeros((n_shuffles + 1, 2, width))
        self._arm_counts = np.zeros((n_shuffles + 1, 2), dtype=np.int64)
        self._squares = np.zeros(screen.n_groups)  # squared lengths: one a cell, but for vectors of zeros

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add cells.

        Args:
            rows: indices of the cells in the screen, (cells,).
            vectors: their embeddings, (cells, width); rows that are not finite are skipped.
        """
        vectors = np.asarray(vectors, dtype=np.float64)
        used = self.screen.codes[rows] >= 0
        finite = np.isfinite(vectors).all(axis=1)
        rows, vectors = rows[used & finite], unit(vectors[used & finite])
        lengths = (vectors**2).sum(axis=1)
        self._squares += np.bincount(self.screen.codes[rows], lengths, minlength=self.screen.n_groups)
        for labels, sums, counts in (
            (self._codes, self._sums, self._counts),
            (self._arms, self._arm_sums, self._arm_counts),
        ):
            n_groups = sums.shape[1]
            for i in range(len(labels)):
                own = labels[i, rows].astype(np.int64)
                inside = np.flatnonzero(own >= 0)
                sums[i] += _indicator(own[inside], n_groups, inside, len(rows)) @ vectors
                counts[i] += np.bincount(own[inside], minlength=n_groups)

    @property
    def sizes(self) -> np.ndarray:
        """Cells that were added, int64 (2, targets)."""
        return self._counts[0].reshape(2, -1)

    def centroids(self) -> np.ndarray:
        """Mean of every group, (2, targets, width); NaN where a group has no cell."""
        with np.errstate(invalid="ignore"):
            means = self._sums[0] / self._counts[0][:, None]
        return means.reshape(2, -1, means.shape[1])

    def null_distances(self) -> np.ndarray:
        """Cosine distances of every group to the anchor's untreated one in each screen whose targets were shuffled.

        Returns:
            (shuffles, 2, targets); NaN where a group has no cell.
        """
        anchor = self.screen.group(UNTREATED, self.screen.names.anchor)
        found = np.full((len(self._sums) - 1, self.screen.n_groups), np.nan)
        for row, (sums, counts) in zip(found, zip(self._sums[1:], self._counts[1:], strict=True), strict=True):
            if counts[anchor]:
                row[:] = np.where(counts > 0, cosine_distances(sums, sums[anchor]), np.nan)  # as those of the means
        return found.reshape(len(found), 2, len(self.screen.targets))

    def separation(self) -> dict[str, float]:
        """Calinski-Harabasz score of the labels over the mean of that of the shuffles; 1 is chance.

        Of the condition among control cells, and of the target among the cells of each arm. NaN where there are
        fewer than two groups, or no more cells than groups.
        """
        n = len(self.screen.targets)
        of_controls = float(self._squares.reshape(2, -1)[:, self.screen.is_control()].sum())
        ratios = {"ch_condition": _ratio(self._arm_sums, self._arm_counts, of_controls)}
        for name, arm in (("ch_target_treated", TREATED), ("ch_target_untreated", UNTREATED)):
            part = slice(arm * n, (arm + 1) * n)
            ratios[name] = _ratio(self._sums[:, part], self._counts[:, part], float(self._squares[part].sum()))
        return ratios


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def cosine_distances(vectors: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """1 - cosine of the vectors on the last axis with the anchor (width,); 1 for a vector of zeros, NaN for NaN."""
    return 1 - unit(vectors) @ unit(anchor)


def calinski_harabasz(sums: np.ndarray, counts: np.ndarray, squares: float) -> np.ndarray:
    """The score of several labellings of the same cells at once.

    Args:
        sums: of the groups' vectors, (labellings, groups, width).
        counts: of their cells, (labellings, groups).
        squares: sum over the cells of the squared length.

    Returns:
        (labellings,); NaN where there are fewer than two groups, or no more cells than groups.
    """
    n, k = counts.sum(axis=1), (counts > 0).sum(axis=1)
    explained = ((sums**2).sum(axis=2) / np.maximum(counts, 1)).sum(axis=1)
    total = (sums.sum(axis=1) ** 2).sum(axis=1) / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (explained - total) / (k - 1) / ((squares - explained) / (n - k))
    return np.where((k >= 2) & (n > k), score, np.nan)


def _ratio(sums: np.ndarray, counts: np.ndarray, squares: float) -> float:
    scores = calinski_harabasz(sums, counts, squares)
    return float(scores[0] / scores[1:].mean()) if len(scores) > 1 else float("nan")


def _indicator(codes: np.ndarray, n_groups: int, columns: np.ndarray, n_cells: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(codes)), (codes, columns)), shape=(n_groups, n_cells))


def _shuffled(screen: Screen, n_shuffles: int, seed: int) -> np.ndarray:
    """The group codes, and shuffles of the targets within each arm."""
    if n_shuffles < 0:
        raise EvaeError(f"n_shuffles is {n_shuffles}; give 0 or more.")
    rng = np.random.default_rng(seed)
    dtype = np.int16 if screen.n_groups < 1 << 15 else np.int32
    codes = np.repeat(screen.codes[None].astype(dtype), n_shuffles + 1, axis=0)
    n = len(screen.targets)
    for arm in (UNTREATED, TREATED):
        cells = np.flatnonzero((screen.codes >= arm * n) & (screen.codes < (arm + 1) * n))
        for row in codes[1:]:
            row[cells] = rng.permutation(row[cells])
    return codes


def _shuffled_arms(screen: Screen, n_shuffles: int, seed: int) -> np.ndarray:
    """The arm of every control cell, and shuffles of it."""
    rng = np.random.default_rng(seed + 1)
    n = len(screen.targets)
    control = np.flatnonzero((screen.codes >= 0) & screen.is_control()[screen.codes % n])
    arms = np.full((n_shuffles + 1, screen.n_cells), -1, dtype=np.int8)
    arms[:, control] = screen.codes[control] // n
    for row in arms[1:]:
        row[control] = rng.permutation(row[control])
    return arms
