"""Pseudobulk metrics pair by pair and honesty checks, for every system and for split halves of real cells."""

from collections.abc import Iterable

import numpy as np

from .baselines import SPLIT_HALF, System, sampled
from .comparison import Comparison, Pair, rows_by_pair
from .honesty import honesty_checks
from .inputs import mean_of
from .protocols import Progress, Record, _pooled, reference_projection, split_halves
from .pseudobulk import discrimination_scores, pseudobulk_metrics

HONESTY_CELLS = 2_000


def perturbation_protocol(
    comparison: Comparison, systems: list[System], seeds: Iterable[int], progress: Progress
) -> list[Record]:
    """Pearson delta, MAE, MSE and discrimination of every pair.

    The ceiling is the split half: half B stands for the prediction of half A, with the same controls on both
    sides, as the model has.
    """
    base = comparison.controls
    controls = {c: mean_of(base.matrix[base.cell_type == c]) for c in comparison.cell_types}
    whole = sampled("real", comparison.real, rows_by_pair(comparison.real))
    truth = {pair: whole.mean(pair) for pair in comparison.pairs}
    sizes = {pair: len(rows) for pair, rows in rows_by_pair(comparison.real).items()}
    records: list[Record] = []
    for system in progress(systems, "perturbation metrics"):
        predicted = {pair: system.mean(pair) for pair in comparison.pairs if pair in set(system.pairs)}
        n = {pair: (system.available or sizes)[pair] for pair in predicted}
        records += _all_metrics(comparison, system.name, predicted, truth, controls, -1, sizes, n)
    for seed in seeds:
        halves = split_halves(comparison, seed)
        first, second = (sampled("", comparison.real, half) for half in halves)
        pairs = [pair for pair in comparison.pairs if pair in set(first.pairs)]
        n = {pair: len(halves[0][pair]) for pair in pairs}
        means = [{pair: half.mean(pair) for pair in pairs} for half in (second, first)]
        records += _all_metrics(comparison, SPLIT_HALF, means[0], means[1], controls, seed, n, n)
    return records


def honesty_protocol(comparison: Comparison, systems: list[System], seed: int, progress: Progress) -> list[Record]:
    """Diversity and memorisation of every system that answers for all pairs, and of the split half."""
    projection = reference_projection(comparison)
    training = None if comparison.training is None else projection(comparison.training.reference.matrix)
    first, second = split_halves(comparison, seed)
    sizes = {pair: len(rows) for pair, rows in first.items()}
    half_a, half_b = (sampled(SPLIT_HALF, comparison.real, half, own=True) for half in (first, second))
    real = _pooled(half_a, sizes, HONESTY_CELLS, np.random.default_rng(seed))
    complete = [s for s in systems if set(s.pairs) >= set(comparison.pairs)]
    records: list[Record] = []
    for system in progress([half_b, *complete], "honesty checks"):
        generated = _pooled(system, sizes, HONESTY_CELLS, np.random.default_rng(seed))
        values = honesty_checks(real, generated, projection, training, seed)
        records += [
            Record("honesty", "pooled", system.name, metric, value, seed, len(real), len(generated))
            for metric, value in values.items()
        ]
    return records


def _all_metrics(
    comparison: Comparison,
    name: str,
    predicted: dict[Pair, np.ndarray],
    real: dict[Pair, np.ndarray],
    controls: dict[str, np.ndarray],
    seed: int,
    n_real: dict[Pair, int],
    n_generated: dict[Pair, int],
) -> list[Record]:
    records = []

    def add(pair: Pair, values: dict[str, float]) -> None:
        for metric, value in values.items():
            n, m = n_real[pair], n_generated[pair]
            records.append(Record("perturbation", "pair", name, metric, float(value), seed, n, m, *pair))

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
