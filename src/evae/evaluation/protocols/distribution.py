"""The protocols: which cells of which system are compared, how often, and beside what.

Distribution metrics come in two protocols, never mixed in one column.

paper    as published: components fitted on the real evaluation cells, pooled over perturbations, at most
         1,000 cells a perturbation and 5,000 cells a side, one draw.
robust   components fitted on training cells (on the controls where there are none); pooled and per
         perturbation; several seeds. For each seed the real cells of every pair are split in two halves: half
         A is compared with as many cells of every system, and with half B. So the floor (A against B) and the
         model's value have the same number of cells, and the same finite-sample bias.

A PCA fitted on the compared cells penalises even a perfect generator, and W2 is dominated by its
finite-sample floor: that is why `robust` exists, and why both carry the split half of the real cells.

The perturbation metrics compare pseudobulks pair by pair, diversity and memorisation are of pooled cells; differential
expression is in `differential`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.cells.projection import Matrix, Projection, dense, fit_projection, sample_rows
from evae.evaluation.metrics.distances import distances_between
from evae.evaluation.metrics.diversity import diversity_metrics
from evae.evaluation.metrics.pseudobulk import discrimination_scores, pseudobulk_metrics
from evae.evaluation.protocols.record import Record
from evae.evaluation.protocols.stored import real_key, stored_records, stored_values
from evae.evaluation.systems.baselines import System, real_system, sampled
from evae.evaluation.systems.names import SPLIT_HALF

PAPER_CELLS = 5_000
PAPER_CELLS_PER_PERTURBATION = 1_000
ROBUST_CELLS = 2_000
ROBUST_CELLS_PER_PAIR = 500
DIVERSITY_CELLS = 2_000


def paper_protocol(
    comparison: Comparison, systems: list[System], seed: int, progress: Progress, n_components: int = 30
) -> list[Record]:
    """W2, MMD2 and FD as published, for every system that answers for all pairs."""
    rng = np.random.default_rng(seed)
    sizes = {pair: min(n, PAPER_CELLS_PER_PERTURBATION) for pair, n in comparison.n_real.items()}
    real = sp.vstack(list(_pooled(real_system(comparison), sizes, PAPER_CELLS, rng)), format="csr")
    projection = fit_projection(real, n_components)
    projected = projection(real)
    order = rng.permutation(len(projected))
    halves = projected[order[: len(order) // 2]], projected[order[len(order) // 2 :]]
    records = _records("paper", SPLIT_HALF, halves[0], halves[1], seed)
    for system in progress([s for s in systems if _complete(s, comparison)], "paper protocol"):
        parts = _pooled(system, sizes, PAPER_CELLS, np.random.default_rng(seed))
        generated = np.concatenate([projection(part) for part in parts])
        records += _records("paper", system.name, projected, generated, seed)
    return records


def robust_protocol(
    comparison: Comparison,
    systems: list[System],
    seeds: Iterable[int],
    progress: Progress,
    n_components: int = 30,
    max_cells: int = ROBUST_CELLS,
) -> list[Record]:
    """W2, MMD2 and FD with matched halves, pooled and per pair; see the module's docstring."""
    projection = comparison.reference_projection(n_components)
    records: list[Record] = []
    work = [(seed, name) for seed in seeds for name in [SPLIT_HALF, *[s.name for s in systems]]]
    by_name = {s.name: s for s in systems}
    half_a: dict[Pair, np.ndarray] = {}
    for seed, name in progress(work, "robust protocol"):
        if name == SPLIT_HALF:
            half_a, half_b = split_halves(comparison, seed, ROBUST_CELLS_PER_PAIR)
            clouds_a = {pair: projection(comparison.real.matrix[rows]) for pair, rows in half_a.items()}
            system = sampled(SPLIT_HALF, comparison.real, half_b, own=True)
        else:
            system = by_name[name]
        clouds = _clouds(system, {p: len(r) for p, r in half_a.items()}, projection, seed)
        for pair, cloud in clouds.items():
            records += _records("robust", name, clouds_a[pair], cloud, seed, pair)
        if _complete(system, comparison) or name == SPLIT_HALF:
            none = np.empty((0, len(projection.components)))  # where every pair has one real cell
            pooled = [_thin(np.concatenate([none, *c.values()]), max_cells, seed) for c in (clouds_a, clouds)]
            records += _records("robust", name, pooled[0], pooled[1], seed)
    return records


def perturbation_protocol(
    comparison: Comparison,
    systems: list[System],
    seeds: Iterable[int],
    progress: Progress,
    cache: Path | None = None,
) -> list[Record]:
    """Pearson delta, MAE, MSE and discrimination of every pair.

    The ceiling is the split half: half B stands for the prediction of half A, with the same controls on both
    sides, as the model has. It and the real means are kept in the folder `cache`.
    """
    sizes, whole = comparison.n_real, real_system(comparison)
    key = "" if cache is None else real_key(comparison)
    rest = stored_values(cache, f"{key}-controls", lambda: np.array(list(comparison.control_means.values())))
    controls = dict(zip(comparison.cell_types, rest, strict=True))
    means = stored_values(
        cache, f"{key}-means", lambda: np.array([whole.mean(pair) for pair in comparison.pairs])
    )  # (pairs, genes)
    truth = dict(zip(comparison.pairs, means, strict=True))
    records: list[Record] = []
    for system in progress(systems, "perturbation metrics"):
        answered = set(system.pairs)
        predicted = {pair: system.mean(pair) for pair in comparison.pairs if pair in answered}
        n = {pair: (system.available or sizes)[pair] for pair in predicted}
        records += pseudobulk_records(comparison, system.name, predicted, truth, controls, -1, sizes, n)
    for seed in seeds:
        records += stored_records(cache, f"{key}-pseudobulks-seed{seed}", partial(_half_pseudobulks, comparison, seed))
    return records


def _half_pseudobulks(comparison: Comparison, seed: int) -> list[Record]:
    halves = split_halves(comparison, seed)
    first, second = (sampled("", comparison.real, half) for half in halves)
    answered = set(first.pairs)
    pairs = [pair for pair in comparison.pairs if pair in answered]
    n = {pair: len(halves[0][pair]) for pair in pairs}
    means = [{pair: half.mean(pair) for pair in pairs} for half in (second, first)]
    return pseudobulk_records(comparison, SPLIT_HALF, means[0], means[1], comparison.control_means, seed, n, n)


def diversity_protocol(comparison: Comparison, systems: list[System], seed: int, progress: Progress) -> list[Record]:
    """Diversity and memorisation of every system that answers for all pairs, and of the split half."""
    projection = comparison.reference_projection()
    training = None if comparison.training is None else projection(comparison.training.reference.matrix[:])
    first, second = split_halves(comparison, seed)
    sizes = {pair: len(rows) for pair, rows in first.items()}
    half_a, half_b = (sampled(SPLIT_HALF, comparison.real, half, own=True) for half in (first, second))
    real = _pooled_dense(half_a, sizes, DIVERSITY_CELLS, seed)
    if not len(real):  # every pair has one real cell
        return []
    complete = [s for s in systems if _complete(s, comparison)]
    records: list[Record] = []
    for system in progress([half_b, *complete], "diversity and memorisation"):
        generated = _pooled_dense(system, sizes, DIVERSITY_CELLS, seed)
        values = diversity_metrics(real, generated, projection, training, seed)
        records += [
            Record("diversity", "pooled", system.name, metric, value, seed, len(real), len(generated))
            for metric, value in values.items()
        ]
    return records


def split_halves(
    comparison: Comparison, seed: int, limit: int | None = None
) -> tuple[dict[Pair, np.ndarray], dict[Pair, np.ndarray]]:
    """Two disjoint halves of equal size of every pair's real cells; a pair of one cell has two empty halves.

    Args:
        comparison: the real cells.
        seed: of the split.
        limit: most cells in a half.
    """
    rng = np.random.default_rng(seed)
    first, second = {}, {}
    for pair, rows in comparison.real_rows.items():
        order = rng.permutation(rows)
        half = len(rows) // 2 if limit is None else min(len(rows) // 2, limit)
        first[pair], second[pair] = order[:half], order[half : 2 * half]
    return first, second


def _clouds(system: System, sizes: dict[Pair, int], projection: Projection, seed: int) -> dict[Pair, np.ndarray]:
    rng = np.random.default_rng(seed + 1)  # another stream than the split's
    answered = set(system.pairs)
    return {p: projection(system.draw(p, possible_cells(system, p, n), rng)) for p, n in sizes.items() if p in answered}


def possible_cells(system: System, pair: Pair, n: int) -> int:
    """How many of n wanted cells of a pair a system can give."""
    return n if system.available is None else min(n, system.available.get(pair, 0))


def _pooled(system: System, sizes: dict[Pair, int], limit: int, rng: np.random.Generator) -> Iterator[Matrix]:
    """Cells of all pairs, pair by pair, at most `limit` in all: which ones is drawn before they are read."""
    takes = {pair: possible_cells(system, pair, n) for pair, n in sizes.items()}
    owner = np.repeat(np.arange(len(takes)), list(takes.values()))
    owner = owner[sample_rows(len(owner), limit, rng)]
    counts = np.bincount(owner, minlength=len(takes))
    return (system.draw(p, n, rng) for p, n in zip(takes, counts.tolist(), strict=True) if n)


def _pooled_dense(system: System, sizes: dict[Pair, int], limit: int, seed: int) -> np.ndarray:
    parts = [dense(part) for part in _pooled(system, sizes, limit, np.random.default_rng(seed))]
    return np.concatenate(parts) if parts else np.empty((0, 0))


def _thin(cloud: np.ndarray, limit: int, seed: int) -> np.ndarray:
    return cloud[sample_rows(len(cloud), limit, np.random.default_rng(seed))]


def _complete(system: System, comparison: Comparison) -> bool:
    return set(system.pairs) >= set(comparison.pairs)


def _records(
    group: str, system: str, real: np.ndarray, generated: np.ndarray, seed: int, pair: Pair | None = None
) -> list[Record]:
    level = "pooled" if pair is None else "pair"
    cell_type, perturbation = pair or ("", "")
    values = distances_between(real, generated)
    return [
        Record(group, level, system, m, v, seed, len(real), len(generated), cell_type, perturbation)
        for m, v in values.items()
    ]


def pseudobulk_records(
    comparison: Comparison,
    name: str,
    predicted: dict[Pair, np.ndarray],
    real: dict[Pair, np.ndarray],
    controls: dict[str, np.ndarray],
    seed: int,
    n_real: dict[Pair, int],
    n_generated: dict[Pair, int],
    level: str = "pair",
) -> list[Record]:
    """Metrics of pseudobulks of one system.

    Args:
        comparison: the panel, the pairs and their order.
        name: of the system.
        predicted: mean log1p expression of its pairs, (genes,) each.
        real: the same of the real cells.
        controls: the same of the controls, by cell type.
        seed: of the records.
        n_real, n_generated: cells of every pair on either side.
        level: of the records.
    """
    records = []

    def add(pair: Pair, values: dict[str, float]) -> None:
        for metric, value in values.items():
            n, m = n_real[pair], n_generated[pair]
            records.append(Record("perturbation", level, name, metric, float(value), seed, n, m, *pair))

    for pair in predicted:
        add(pair, pseudobulk_metrics(predicted[pair], real[pair], controls[pair[0]]))
    for cell_type in comparison.cell_types:
        names = [p for p in comparison.perturbations(cell_type) if (cell_type, p) in predicted]
        if not names:
            continue
        shifts = [np.array([s[(cell_type, p)] - controls[cell_type] for p in names]) for s in (predicted, real)]
        scores = discrimination_scores(shifts[0], shifts[1], names, comparison.genes)
        for i, p in enumerate(names):
            add((cell_type, p), {metric: values[i] for metric, values in scores.items()})
    return records
