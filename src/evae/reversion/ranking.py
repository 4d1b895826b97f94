"""Rankings of targets: how near do treated cells with a knock-down come to resting cells without one?"""

import numpy as np
import pandas as pd

from evae.models.contract_evae import EvaeError
from evae.reversion.enrichment import enrichment_auc, ranks_of
from evae.reversion.screen import TREATED, UNTREATED, Screen
from evae.reversion.sums import cosine_distances


def rank_targets(screen: Screen, centroids: np.ndarray, sizes: np.ndarray, min_cells: int = 1) -> pd.DataFrame:
    """Rank the targets by the cosine distance of their treated centroid to the anchor's untreated one.

    Args:
        screen: the labels.
        centroids: of every (arm, target), (2, targets, width); NaN where there is no cell.
        sizes: cells that the centroids are of, (2, targets).
        min_cells: groups with fewer cells have no distance.

    Returns:
        One row a target that is no control, best first, indexed by `target`: `rank` (1 is nearest; equal distances
        share it), `distance` (treated arm), `distance_untreated`, `selectivity` (how much nearer the treated arm
        is), `selectivity_rank`, `n_treated`, `n_untreated`, `positive`. What a missing group decides is NaN.

    Raises:
        EvaeError: the anchor has no cell or no direction.
    """
    anchor = centroids[UNTREATED, screen.targets.index(screen.names.anchor)]
    if not np.isfinite(anchor).all() or not np.any(anchor):
        raise EvaeError(
            f"the untreated cells of the anchor '{screen.names.anchor}' have no embedding to compare with; check that "
            "the embedding covers them."
        )
    distances = cosine_distances(centroids, anchor)
    distances[sizes < max(1, min_cells)] = np.nan
    frame = pd.DataFrame(
        {
            "rank": np.nan,
            "distance": distances[TREATED],
            "distance_untreated": distances[UNTREATED],
            "selectivity": distances[UNTREATED] - distances[TREATED],
            "selectivity_rank": np.nan,
            "n_treated": sizes[TREATED],
            "n_untreated": sizes[UNTREATED],
            "positive": np.isin(screen.targets, screen.names.positives),
        },
        index=pd.Index(screen.targets, name="target"),
    )[~screen.is_control()]
    frame["rank"] = ranks_of(frame["distance"].to_numpy())
    frame["selectivity_rank"] = ranks_of(-frame["selectivity"].to_numpy())
    return frame.sort_values("rank", kind="stable")


def control_distances(screen: Screen, centroids: np.ndarray) -> dict[str, float]:
    """Distance to the anchor of the treated cells of every control: where unreverted cells stand."""
    anchor = centroids[UNTREATED, screen.targets.index(screen.names.anchor)]
    treated = cosine_distances(centroids[TREATED], anchor)
    return {t: float(d) for t, d, c in zip(screen.targets, treated, screen.is_control(), strict=True) if c}


def null_aucs(screen: Screen, distances: np.ndarray, sizes: np.ndarray, min_cells: int = 1) -> dict[str, np.ndarray]:
    """Enrichment AUCs of screens whose targets were shuffled among the cells of an arm: what is left by chance.

    Args:
        screen: the labels.
        distances: to the anchor, (shuffles, 2, targets).
        sizes: cells of the groups, (2, targets).
        min_cells: as in `rank_targets`.

    Returns:
        `auc`, of the positives by distance, and `selectivity_auc`, (shuffles,) each; NaN where no positive is ranked.
    """
    kept = ~screen.is_control()
    distances = np.where(sizes < max(1, min_cells), np.nan, distances)[..., kept]
    positive = np.isin(screen.targets, screen.names.positives)[kept]
    scores = {"auc": distances[:, TREATED], "selectivity_auc": distances[:, TREATED] - distances[:, UNTREATED]}
    return {name: np.array([_auc(row, positive) for row in rows]) for name, rows in scores.items()}


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    ranks = ranks_of(scores)
    own = ranks[positive & np.isfinite(ranks)]
    return float(enrichment_auc(own, int(np.isfinite(ranks).sum()))) if len(own) else float("nan")
