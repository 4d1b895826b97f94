"""Model and real cells at one depth, so that depth and biology are told apart.

log1p of counts per 10,000 depends on how many molecules of a cell were counted: of shallow cells fewer genes are seen,
and each seen molecule counts for more. So a model whose cells are right but shallower is far from the real cells. Here
both sides are thinned first: the cells of a pair are ranked by their counts on each side, and at each rank both keep
as many as the shallower of the two has, every molecule with the same probability (binomial thinning). The halves of
the real cells are those of the protocol `robust`; half B is thinned likewise, and so are controls that are deep enough.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from evae.common.numbers import format_number
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.cells.normalised import Cells, log1p_cp10k, mean_of
from evae.evaluation.cells.projection import sample_rows
from evae.evaluation.cells.scale import RAW
from evae.evaluation.metrics.distances import frechet_distance
from evae.evaluation.protocols.distribution import ROBUST_CELLS, ROBUST_CELLS_PER_PAIR, split_halves
from evae.evaluation.protocols.record import Record
from evae.evaluation.systems.names import CONTROL_COPY, MODEL, SPLIT_HALF
from evae.models.contract_evae import EvaeError

NOTABLE = 1.5  # ratio of the median depths, or its inverse, from which on depth is told apart
DEEP_ENOUGH = 0.9  # of the common depth: controls below it would be compared at another
GROUP = "equal depth"


def depths_differ(comparison: Comparison) -> bool:
    """Whether real and predicted cells came as raw counts, and their median depths are far apart."""
    real, predicted = comparison.real.totals, comparison.predicted.totals
    if real is None or predicted is None:
        return False
    ratio = float(np.median(predicted)) / max(float(np.median(real)), 1e-12)
    return not 1 / NOTABLE <= ratio <= NOTABLE


def depth_protocol(
    comparison: Comparison, seeds: Sequence[int], progress: Progress, n_components: int = 30
) -> list[Record]:
    """FD, pooled, and the MSE of mean expression, mean over pairs, of model, control copy and split half at one depth.

    Raises:
        EvaeError: real or predicted cells did not come as raw counts.
    """
    for name, cells in (("real", comparison.real), ("predicted", comparison.predicted)):
        if cells.totals is None:
            raise EvaeError(f"the {name} cells came without raw counts, which depth_matched needs; give raw counts.")
    if max(comparison.n_real.values()) < 2:  # no halves
        return []
    projection = comparison.reference_projection(n_components)
    records: list[Record] = []
    medians = []
    for seed in progress(seeds, "equal depth"):
        rng = np.random.default_rng((seed, 2))
        half_a, half_b = split_halves(comparison, seed, ROBUST_CELLS_PER_PAIR)
        found: dict[str, list[sp.csr_matrix]] = {}
        for pair, rows in half_a.items():
            thinned, depth = _thinned_pair(comparison, pair, (rows, half_b[pair]), rng)
            medians.append(depth)
            for name, matrix in thinned.items():
                found.setdefault(name, []).append(matrix)
        real = found.pop("")
        cloud = _few(np.concatenate([projection(matrix) for matrix in real]), seed)
        for name, parts in found.items():
            if len(parts) < len(real):
                continue  # no controls deep enough of some pair
            own = _few(np.concatenate([projection(matrix) for matrix in parts]), seed)
            gaps = [np.square(mean_of(a) - mean_of(b)).mean() for a, b in zip(parts, real, strict=True) if a.shape[0]]
            sizes = len(cloud), len(own)
            values = {"fd_equal_depth": frechet_distance(cloud, own), "mse_equal_depth": float(np.mean(gaps))}
            records += [Record(GROUP, "pooled", name, metric, value, seed, *sizes) for metric, value in values.items()]
    comparison.notes.append(_said(comparison, float(np.nanmedian(medians)), records))
    return records


def _thinned_pair(
    comparison: Comparison, pair: Pair, halves: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[dict[str, sp.csr_matrix], float]:
    """log1p CP10K of every system's cells of a pair at one depth, the real half A as ""; and the median depth."""
    n = len(halves[0])
    rows = {"": halves[0], SPLIT_HALF: halves[1], MODEL: comparison.predicted_rows[pair]}
    cells = {"": comparison.real, SPLIT_HALF: comparison.real, MODEL: comparison.predicted}
    if comparison.controls.totals is not None:
        rows[CONTROL_COPY], cells[CONTROL_COPY] = comparison.control_rows[pair[0]], comparison.controls
    taken = {name: cells[name].take(rng.permutation(rows[name])[:n]) for name in rows}
    ranks = (np.arange(n) + 0.5) / max(n, 1)
    both = [_quantiles(taken[name], ranks) for name in ("", MODEL)]
    depth = np.minimum(*both)
    if CONTROL_COPY in taken and _shallow(taken[CONTROL_COPY], depth):
        del taken[CONTROL_COPY]
    thinned = {name: _thinned(own, depth, ranks, rng) for name, own in taken.items()}
    return thinned, float(np.median(depth)) if n else float("nan")


def _quantiles(cells: Cells, ranks: np.ndarray) -> np.ndarray:
    """Depths at the ranks 0 to 1; none where there are no cells."""
    assert cells.totals is not None
    return np.quantile(cells.totals, ranks) if len(cells) else np.full(len(ranks), np.inf)


def _shallow(cells: Cells, depth: np.ndarray) -> bool:
    assert cells.totals is not None
    return bool(np.median(cells.totals) < DEEP_ENOUGH * np.median(depth)) if len(depth) else False


def _thinned(cells: Cells, depth: np.ndarray, ranks: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """log1p CP10K of cells that keep the depth of their rank, or their own where that is smaller."""
    assert cells.totals is not None
    if not len(cells) or not len(depth):
        return sp.csr_matrix((0, len(cells.genes)), dtype=np.float32)
    rank = (np.argsort(np.argsort(cells.totals, kind="stable")) + 0.5) / len(cells)
    share = np.minimum(np.interp(rank, ranks, depth) / np.maximum(cells.totals, 1), 1)
    counts = cells.counts()
    kept = rng.binomial(counts.data.astype(np.int64), np.repeat(share, np.diff(counts.indptr)))
    return log1p_cp10k(sp.csr_matrix((kept, counts.indices, counts.indptr), counts.shape), RAW)


def _few(cloud: np.ndarray, seed: int) -> np.ndarray:
    return cloud[sample_rows(len(cloud), ROBUST_CELLS, np.random.default_rng(seed))]


def _said(comparison: Comparison, depth: float, records: list[Record]) -> str:
    """The note below the table, with the mean FD over seeds of every system at one depth."""
    medians = []
    for cells in (comparison.real, comparison.predicted):
        assert cells.totals is not None
        medians.append(float(np.median(cells.totals)))
    systems = list(dict.fromkeys(record.system for record in records))
    distances = {s: [r.value for r in records if r.system == s and r.metric == "fd_equal_depth"] for s in systems}
    fd = ", ".join(f"{system} {format_number(float(np.mean(values)))}" for system, values in distances.items())
    return (
        f"the real cells have a median of {medians[0]:,.0f} counts over the genes, the predicted {medians[1]:,.0f}; a "
        f"part of every distance is depth. Thinned to one depth, of a median of {depth:,.0f}, FD is: {fd}"
    )
