"""The suite `extended`: metrics that tell models apart, and what calibrates them.

Means are compared as in the perturbation metrics: a system against all real cells of a pair. For the scores every
system is compared once more with half A of the real cells (level "matched"), for that is what half B and the
interpolated duplicate stand against. Cells are compared with half A at the same number of cells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evae.evaluation.cells import Comparison, Pair, Projection
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.cells.moments import Moments, merged, moments_of, without
from evae.evaluation.cells.projection import dense
from evae.evaluation.metrics.calibration import MATCHED
from evae.evaluation.metrics.centred import centred_metrics, gene_weights, mse_unbiased, t_statistics
from evae.evaluation.metrics.energy import e_distance, e_test
from evae.evaluation.metrics.retrieval import centroid_accuracy, normalised_retrieval, perturbench_ranks
from evae.evaluation.metrics.structure import collapse_metrics, correlation_recovered, variance_recovered
from evae.evaluation.protocols.distribution import possible_cells, pseudobulk_records, split_halves
from evae.evaluation.protocols.record import Record
from evae.evaluation.systems.baselines import System, sampled
from evae.evaluation.systems.duplicate import interpolated, mean_response
from evae.evaluation.systems.names import INTERPOLATED, SPLIT_HALF

GROUP = "extended"
CELLS = 200  # a side, of the comparisons of cells
REJECTED = 0.05


@dataclass(frozen=True)
class _Side:
    """Mean expression of every pair of a system, its sampling variance where that is known, and the number of cells."""

    name: str
    means: dict[Pair, np.ndarray]
    noise: dict[Pair, np.ndarray]
    n_cells: dict[Pair, int]


def extended_protocol(
    comparison: Comparison, systems: Sequence[System], seeds: Sequence[int], progress: Progress
) -> list[Record]:
    """All extended metrics of every system, of half of the real cells, and of the interpolated duplicate."""
    whole = _Truth(comparison, _moments(comparison, comparison.real_rows), _control_moments(comparison))
    halves = {seed: split_halves(comparison, seed) for seed in seeds}
    firsts = {seed: whole.half(first) for seed, (first, _) in halves.items()}
    records: list[Record] = []
    for system in progress(systems, "extended metrics"):
        side = _side(system, comparison)
        records += whole.records(side, -1)
        for seed, truth in firsts.items():
            records += truth.records(side, seed, MATCHED) + truth.pseudobulks(side, seed, MATCHED)
            records += _cell_records(comparison, system, halves[seed][0], seed, seed == seeds[0])
    for seed, truth in firsts.items():
        replicate = sampled(SPLIT_HALF, comparison.real, halves[seed][1], own=True)
        records += truth.records(_side(replicate, comparison), seed)
        records += _cell_records(comparison, replicate, halves[seed][0], seed, seed == seeds[0])
        duplicate = _duplicate(whole.half(halves[seed][1]), whole)
        records += truth.records(duplicate, seed) + truth.pseudobulks(duplicate, seed)
    _explain(comparison)
    return records


def _moments(comparison: Comparison, rows: dict[Pair, np.ndarray]) -> dict[Pair, Moments]:
    return {pair: moments_of(comparison.real.matrix[part]) for pair, part in rows.items() if len(part)}


def _control_moments(comparison: Comparison) -> dict[str, Moments]:
    return {c: moments_of(comparison.controls.matrix[rows]) for c, rows in comparison.control_rows.items()}


def _side(system: System, comparison: Comparison) -> _Side:
    sizes = system.available or comparison.n_real
    noise = {} if system.noise is None else {pair: system.noise(pair) for pair in system.pairs}
    return _Side(system.name, {pair: system.mean(pair) for pair in system.pairs}, noise, sizes)


def _duplicate(half: "_Truth", whole: "_Truth") -> _Side:
    found = {
        pair: interpolated(half.real[pair], half.others(pair), reference)
        for pair in half.real
        if (reference := whole.references[pair[0]]) is not None
    }
    means = {pair: mean for pair, (mean, _) in found.items()}
    noise = {pair: variance for pair, (_, variance) in found.items()}
    return _Side(INTERPOLATED, means, noise, {pair: moments.n for pair, moments in half.real.items()})


@dataclass(frozen=True)
class _Truth:
    """Real cells to compare with: all of them, or one half."""

    comparison: Comparison
    real: dict[Pair, Moments]
    controls: dict[str, Moments]

    def half(self, rows: dict[Pair, np.ndarray]) -> "_Truth":
        """Some of the real cells, with the same controls."""
        return _Truth(self.comparison, _moments(self.comparison, rows), self.controls)

    def names(self, cell_type: str) -> list[str]:
        return [p for p in self.comparison.perturbations(cell_type) if (cell_type, p) in self.real]

    @cached_property
    def _whole(self) -> dict[str, Moments]:
        types = [c for c in self.comparison.cell_types if self.names(c)]
        return {c: merged(self.real[(c, p)] for p in self.names(c)) for c in types}

    def others(self, pair: Pair) -> Moments:
        """The cells of the other perturbations of the cell type; the controls where there is no other."""
        whole, own = self._whole[pair[0]], self.real[pair]
        return self.controls[pair[0]] if whole.n == own.n else without(whole, own)

    @cached_property
    def references(self) -> dict[str, np.ndarray | None]:
        """The mean of all perturbations of every cell type, see `_reference`."""
        return {c: self._reference(c) for c in self.comparison.cell_types}

    def _reference(self, cell_type: str) -> np.ndarray | None:
        """The mean of all perturbations; without training cells that of the real ones, None of a single one."""
        known = mean_response(self.comparison, cell_type)
        if known is not None:
            return known
        means = [self.real[(cell_type, p)].mean for p in self.names(cell_type)]
        return np.mean(means, axis=0) if len(means) > 1 else None

    def records(self, side: _Side, seed: int, level: str = "pair") -> list[Record]:
        """The metrics of means of one system."""
        records: list[Record] = []
        for cell_type in self.comparison.cell_types:
            names = [p for p in self.names(cell_type) if (cell_type, p) in side.means]
            for metric, values in self._values(side, cell_type, names).items() if names else ():
                for p, value in zip(names, values, strict=True):
                    pair = (cell_type, p)
                    n = self.real[pair].n, side.n_cells[pair]
                    records.append(Record(GROUP, level, side.name, metric, float(value), seed, *n, *pair))
        return records

    def pseudobulks(self, side: _Side, seed: int, level: str = "pair") -> list[Record]:
        """The perturbation metrics of one system against these cells."""
        real = {pair: moments.mean for pair, moments in self.real.items()}
        means = {pair: mean for pair, mean in side.means.items() if pair in real}
        sizes = {pair: moments.n for pair, moments in self.real.items()}
        controls = self.comparison.control_means
        return pseudobulk_records(self.comparison, side.name, means, real, controls, seed, sizes, side.n_cells, level)

    def _values(self, side: _Side, cell_type: str, names: list[str]) -> dict[str, np.ndarray]:
        pairs = [(cell_type, p) for p in names]
        predicted, real = (np.array(m) for m in ([side.means[p] for p in pairs], [self.real[p].mean for p in pairs]))
        control = self.controls[cell_type].mean
        found = {"centroid_accuracy": centroid_accuracy(predicted, real)}
        found |= perturbench_ranks(predicted, real, control)
        found["normalised_retrieval"] = normalised_retrieval(
            predicted - control, real - control, self._trained(cell_type, names) - control
        )
        noise = np.array([side.noise[p].sum() if p in side.noise else 0.0 for p in pairs])
        collapse = collapse_metrics(predicted, noise, real, np.array([self.real[p].noise.sum() for p in pairs]))
        found |= {metric: np.full(len(pairs), value) for metric, value in collapse.items()}
        single = [self._one(side, pair) for pair in pairs]
        return found | {metric: np.array([values[metric] for values in single]) for metric in single[0]}

    def _one(self, side: _Side, pair: Pair) -> dict[str, float]:
        real = self.real[pair]
        unbiased = mse_unbiased(side.means[pair], side.noise.get(pair), side.n_cells[pair], real)
        reference = self.references[pair[0]]
        if reference is None:
            reference = np.full(len(real.mean), np.nan)
        weights = gene_weights(t_statistics(real, self.others(pair)))
        certainty = t_statistics(real, self.controls[pair[0]])
        return {
            **centred_metrics(side.means[pair], real.mean, reference, certainty, weights),
            "mse_unbiased": unbiased,
        }

    def _trained(self, cell_type: str, names: list[str]) -> np.ndarray:
        """Means of the other perturbations of the cell type that training holds, (others, genes)."""
        training = self.comparison.training
        held = {} if training is None else training.means
        skip = {*names, self.comparison.control}
        found = [mean for (c, p), mean in held.items() if c == cell_type and p not in skip]
        return np.array(found).reshape(-1, len(self.comparison.genes))


def _cell_records(
    comparison: Comparison, system: System, half: dict[Pair, np.ndarray], seed: int, with_test: bool
) -> list[Record]:
    """The metrics of cells: a system against half A, with as many cells."""
    projection, rng = comparison.reference_projection(), np.random.default_rng([seed, 2])
    records = []
    for pair in system.pairs:
        rows = half[pair][:CELLS]
        n = possible_cells(system, pair, len(rows))
        if not len(rows) or not n:
            continue
        real, cells = dense(comparison.real.matrix[rows]), dense(system.draw(pair, n, rng))
        for metric, value in _compare_cells(real, cells, projection, seed, with_test).items():
            records.append(Record(GROUP, "pair", system.name, metric, value, seed, len(rows), n, *pair))
    return records


def _compare_cells(
    real: np.ndarray, cells: np.ndarray, projection: Projection, seed: int, with_test: bool
) -> dict[str, float]:
    clouds = projection(real), projection(cells)
    variances = moments_of(real).variance, moments_of(cells).variance
    found = {
        "e_distance": e_distance(*clouds),
        "variance_recovered": variance_recovered(*variances),
        "correlation_recovered": correlation_recovered(real, cells),
    }
    if with_test:
        p = e_test(*clouds, seed=seed)
        found |= {"e_test_p": p, "e_test_rejected": float("nan") if np.isnan(p) else float(p <= REJECTED)}
    return found


def _explain(comparison: Comparison) -> None:
    """Notes on what the mean of all perturbations is."""
    for cell_type in _untrained(comparison):
        where = "the controls with the mean shift of other cell types" if comparison.training else "the real cells"
        comparison.notes.append(
            f"training has no perturbed cells of {cell_type}, so the mean of all perturbations is that of {where}"
        )


def _untrained(comparison: Comparison) -> Iterable[str]:
    training = comparison.training
    means = {} if training is None else training.means
    seen = {c for c, p in means if p != comparison.control}
    return [c for c in comparison.cell_types if c not in seen]
