"""Do the positive controls stand at the top of a ranking, and could that be chance?

The enrichment AUC is the area under the share of positives recovered against the share of the ranking read (both 0 to
1, trapezoids). With r_i the rank of the i-th of P positives among N targets it is

    AUC = 1 - (mean r_i - 1/2) / N

so 0.5 is chance for any N and P, and the null standard deviation is about 0.289 / sqrt(P): 0.118 for six positives.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, rankdata

from evae.models.contract_evae import EvaeError

_BLOCK_ENTRIES = 1 << 22  # random numbers held at once


@dataclass(frozen=True)
class Enrichment:
    """How far up the positive controls stand.

    Attributes:
        auc: area under recovered positives against rank; 0.5 is chance, NaN without ranked positives.
        p_value: share of random sets of as many targets that reach this AUC, one-sided.
        low, high: 95 % interval of the AUC over bootstrap draws of the positives.
        n_positives: positives that are ranked.
        n_targets: targets that are ranked.
    """

    auc: float
    p_value: float
    low: float
    high: float
    n_positives: int
    n_targets: int


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """Ranks of scores, lowest first, from 1; equal scores share their mean rank; NaN stays NaN. (targets,)."""
    ranks = np.full(len(scores), np.nan)
    known = np.isfinite(scores)
    ranks[known] = rankdata(scores[known])
    return ranks


def enrichment_auc(ranks: np.ndarray, n_targets: int) -> np.ndarray:
    """Area under the recovery curve from the ranks of the positives on the last axis."""
    return np.asarray(1 - (ranks.mean(axis=-1) - 0.5) / n_targets)


def enrichment(
    scores: np.ndarray, positive: np.ndarray, *, n_permutations: int = 10_000, n_bootstrap: int = 2_000, seed: int = 0
) -> Enrichment:
    """Enrichment of positives among the lowest scores.

    Args:
        scores: (targets,), best is lowest; NaN is not ranked.
        positive: bool (targets,).
        n_permutations: random sets of targets; the least p-value is 1 / (n_permutations + 1).
        n_bootstrap: draws for the interval.
        seed: of both.
    """
    if min(n_permutations, n_bootstrap) < 1:
        raise EvaeError("n_permutations and n_bootstrap must be at least 1.")
    ranks = ranks_of(scores)
    ranked = ranks[np.isfinite(ranks)]
    own = ranks[positive & np.isfinite(ranks)]
    n, p = len(ranked), len(own)
    if not p:
        nan = float("nan")
        return Enrichment(nan, nan, nan, nan, 0, n)
    rng = np.random.default_rng(seed)
    auc = float(enrichment_auc(own, n))
    null = enrichment_auc(random_sets(ranked, p, n_permutations, rng), n)
    drawn = enrichment_auc(own[rng.integers(p, size=(n_bootstrap, p))], n)
    low, high = np.quantile(drawn, [0.025, 0.975])
    p_value = (1 + int((null >= auc - 1e-12).sum())) / (n_permutations + 1)
    return Enrichment(auc, p_value, float(low), float(high), p, n)


def random_sets(values: np.ndarray, size: int, n_sets: int, rng: np.random.Generator) -> np.ndarray:
    """Random subsets without repetition, (n_sets, size)."""
    rows = max(1, _BLOCK_ENTRIES // len(values))
    parts = []
    for low in range(0, n_sets, rows):
        keys = rng.random((min(rows, n_sets - low), len(values)))
        chosen = np.argpartition(keys, size - 1, axis=1)[:, :size] if size < len(values) else np.argsort(keys, axis=1)
        parts.append(values[chosen])
    return np.concatenate(parts)


def recovery_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the ranking read and share of positives recovered, (ranked targets + 1,) each.

    Of equal scores the positives are counted at the middle of the tie, as the AUC does.
    """
    ranks = ranks_of(scores)
    known = np.isfinite(ranks)
    n = int(known.sum())
    steps = np.arange(n + 1)
    own = np.sort(ranks[known & positive])
    recovered = np.searchsorted(own, steps, side="right") / max(len(own), 1)
    return steps / max(n, 1), recovered


def null_band(n_targets: int, n_positives: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Between which shares of recovered positives a random ranking lies at every rank, (n_targets + 1,) each."""
    steps = np.arange(n_targets + 1)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = (hypergeom.ppf(q, n_targets, n_positives, steps) / n_positives for q in tails)
    return np.nan_to_num(low), np.nan_to_num(high)


def agreement(order: list[str], reference: list[str], tops: tuple[int, ...] = (10, 25)) -> dict[str, float]:
    """How well two rankings agree, over the targets that both hold.

    Args:
        order, reference: names, best first.
        tops: overlap is the share of the first so many of one among the first so many of the other.

    Returns:
        `spearman`, `overlap_10`, `overlap_25`, `n_shared`. Spearman is NaN with fewer than two shared targets, an
        overlap with fewer shared targets than it asks for.
    """
    shared = set(order) & set(reference)
    own = [t for t in order if t in shared]
    other = {t: i for i, t in enumerate(t for t in reference if t in shared)}
    n = len(shared)
    result = {"spearman": float("nan")}
    if n >= 2:
        result["spearman"] = float(np.corrcoef(np.arange(n), [other[t] for t in own])[0, 1])
    for top in tops:
        both = sum(other[t] < top for t in own[:top])
        result[f"overlap_{top}"] = both / top if n >= top else float("nan")
    return {**result, "n_shared": float(n)}
