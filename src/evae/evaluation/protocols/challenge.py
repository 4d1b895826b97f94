"""The suite `vcc2026`: the six metrics of the Virtual Cell Challenge 2026 and its scale, from the user's own cells.

A context is a cell type. In each, every system's counts stand against the real ones, with the real controls on both
sides. A score is  s = (u - b) / (r - b):  b is `mean of other contexts`, r the real split half, both halves with
controls of their own, mean over the seeds. Metrics that cannot be told on these cells are named in the notes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells import Comparison
from evae.evaluation.cells.inputs import Progress
from evae.evaluation.metrics.challenge import SCALES, Bulks, bulk_of, discrimination_cosine, expression_error, scaled
from evae.evaluation.metrics.challenge_changes import Changes, ControlCells, change_metrics, replicate_fold_error
from evae.evaluation.metrics.sorted_values import MOST_GROUPS
from evae.evaluation.protocols.distribution import split_halves
from evae.evaluation.protocols.record import Record
from evae.evaluation.systems.counted import CountSystem, count_systems, stored_counts
from evae.evaluation.systems.names import CONTEXT_MEAN, SPLIT_HALF

GROUP, SCORES = "vcc2026", "vcc2026 score"
EXPRESSION = "expr_mse_unbiased_capped_norm"
_BATCH_VALUES = 1 << 17  # stored counts that a core works on at a time
_NAMED = 10
_Bulk: TypeAlias = tuple[np.ndarray, float]  # a pseudobulk and its noise


@dataclass(frozen=True)
class _Side:
    """The cells of all perturbations of a context, summed up."""

    bulks: Bulks
    changes: Changes
    n_cells: list[int]


@dataclass(frozen=True)
class _Controls:
    """The controls that a side is compared with."""

    counts: sp.csr_matrix

    @cached_property
    def bulk(self) -> _Bulk:
        return bulk_of(self.counts)

    @cached_property
    def cells(self) -> ControlCells:
        return ControlCells(self.counts)

    def side(self, counts_of: Callable[[str], sp.csr_matrix], perturbations: list[str]) -> _Side:
        """Sum up the cells of a side, a few perturbations at a time."""
        bulks, noise, sizes = [], [], []

        def batches() -> Iterator[tuple[sp.csr_matrix, np.ndarray, int]]:
            held: list[sp.csr_matrix] = []
            for i, p in enumerate(perturbations):
                held.append(counts_of(p))
                bulk, variance = bulk_of(held[-1])
                bulks.append(bulk)
                noise.append(variance)
                sizes.append(held[-1].shape[0])
                full = sum(block.nnz for block in held) >= _BATCH_VALUES or len(held) == MOST_GROUPS
                if full or i == len(perturbations) - 1:
                    codes = np.repeat(np.arange(len(held)), [block.shape[0] for block in held])
                    yield sp.vstack(held, format="csr"), codes, len(held)
                    held.clear()

        changes = self.cells.changes(batches())
        return _Side(Bulks(np.array(bulks), np.array(noise)), changes, sizes)


def challenge_protocol(
    comparison: Comparison, seeds: Sequence[int], progress: Progress, with_baselines: bool = True
) -> list[Record]:
    """All metrics and scores of every system in every context.

    Raises:
        EvaeError: the real cells, the controls or the predictions came without raw counts.
    """
    records: list[Record] = []
    systems = count_systems(comparison, with_baselines)
    for context in comparison.cell_types:
        task = _Context(comparison, context, seeds)
        replicates = task.replicates()
        found = {SPLIT_HALF: _over_seeds(replicates, np.mean)}
        n_cells: dict[str, int] = {}
        for system in progress(systems, f"Virtual Cell Challenge, {context}"):
            names = [p for p in task.perturbations if (context, p) in system.pairs]
            if len(names) < len(task.perturbations):
                missing = [p for p in task.perturbations if p not in names]
                comparison.notes.append(f"{system.name} has no value in {context} for {_some(missing)}; left out there")
                continue
            values, more = task.score(system)
            records += more
            found[system.name] = values
            n_cells[system.name] = sum({record.perturbation: record.n_generated for record in more}.values())
        ends = _Ends(found.get(CONTEXT_MEAN, {}), found[SPLIT_HALF], _over_seeds(replicates, np.std))
        records += task.records(found, ends, n_cells)
        task.explain(ends)
    return records


@dataclass(frozen=True)
class _Ends:
    """What the scores of a context run between: every metric of the baseline, the replicates and their spread."""

    zero: dict[str, float]
    one: dict[str, float]
    spread: dict[str, float]

    def score(self, metric: str, value: float) -> float:
        unknown = float("nan")
        ends = self.zero.get(metric, unknown), self.one.get(metric, unknown)
        return scaled(metric, value, *ends, self.spread.get(metric, 0.0))

    @property
    def reachable(self) -> list[str]:
        return [metric for metric in SCALES if not np.isnan(self.score(metric, 0.0))]


@dataclass(frozen=True)
class _Context:
    comparison: Comparison
    context: str
    seeds: Sequence[int]

    @property
    def perturbations(self) -> list[str]:
        return self.comparison.perturbations(self.context)

    @cached_property
    def own(self) -> np.ndarray:
        """Column of each perturbation's target gene, -1 where it is not measured."""
        column = {str(gene): i for i, gene in enumerate(self.comparison.genes)}
        return np.array([column.get(p, -1) for p in self.perturbations])

    @cached_property
    def controls(self) -> _Controls:
        rows = self.comparison.control_rows[self.context]
        return _Controls(self.comparison.controls.take(rows).counts())

    @cached_property
    def real(self) -> _Side:
        real = stored_counts("real", self.comparison.real, self.comparison.real_rows, own=True)
        return self._side(real, self.controls)

    @cached_property
    def effect(self) -> np.ndarray:
        """Squared distance of every perturbation's pseudobulk from the controls', without noise, (perturbations,)."""
        return expression_error(self.real.bulks, self.real.bulks, *self.controls.bulk, self.own)[1]

    def _side(self, system: CountSystem, controls: _Controls, seed: int = 0) -> _Side:
        rng = np.random.default_rng([seed, 2026])
        sizes = self.comparison.n_real
        pairs = {p: (self.context, p) for p in self.perturbations}
        return controls.side(lambda p: system.draw(pairs[p], sizes[pairs[p]], rng), self.perturbations)

    def score(self, system: CountSystem) -> tuple[dict[str, float], list[Record]]:
        """The metrics of a system, and those of them that there are for every perturbation as records."""
        side = self._side(system, self.controls, self.seeds[0])
        per_pair = self._per_pair(side, self.real, self.controls.bulk, self.controls.bulk)
        n_real = self.real.n_cells
        records = [
            Record(GROUP, "pair", system.name, m, float(v), -1, n_real[i], side.n_cells[i], self.context, p)
            for m, values in per_pair.items()
            for i, (p, v) in enumerate(zip(self.perturbations, values, strict=True))
        ]
        return _totals(per_pair), records

    def replicates(self) -> list[dict[str, float]]:
        """Half B of the real cells as the prediction of half A, each with half of the controls, for every seed."""
        comparison, found = self.comparison, []
        for seed in self.seeds:
            halves = split_halves(comparison, seed)
            order = np.random.default_rng(seed).permutation(self.controls.counts.shape[0])
            n = len(order) // 2
            if n == 0 or not all(len(halves[0][(self.context, p)]) for p in self.perturbations):
                comparison.notes.append(f"no real split half in {self.context}, where a perturbation has a single cell")
                return []
            sides, bulks = [], []
            for half, rows in zip(halves, (order[:n], order[n : 2 * n]), strict=True):
                controls = _Controls(self.controls.counts[rows])
                sides.append(self._side(stored_counts(SPLIT_HALF, comparison.real, half, own=True), controls))
                bulks.append(controls.bulk)
                del controls  # they are large
            first, second = sides
            values = self._per_pair(second, first, bulks[1], bulks[0])
            folds = replicate_fold_error(first.changes, second.changes, self.real.changes, self.own)
            found.append(_totals({**values, "lfc_nmae": folds}))
        return found

    def _per_pair(self, side: _Side, real: _Side, own_controls: _Bulk, controls: _Bulk) -> dict[str, np.ndarray]:
        shifts = (side.bulks.log_expression - own_controls[0], real.bulks.log_expression - controls[0])
        error, effect = expression_error(side.bulks, real.bulks, *controls, self.own)
        return {
            "pds_cosine": discrimination_cosine(*shifts, self.own),
            "expr_mse_unbiased_capped": error,
            "expr_distance_unbiased": effect,
            **change_metrics(side.changes, real.changes, self.own),
        }

    def records(self, found: dict[str, dict[str, float]], ends: _Ends, n_cells: dict[str, int]) -> list[Record]:
        """Metrics and scores of all systems in this context; `n_cells` is how many cells each of them gave."""
        n, records = sum(self.real.n_cells), []
        for name, values in found.items():
            if not values:
                continue
            scores = {m: ends.score(m, values[m]) for m in SCALES}
            known = [scores[m] for m in ends.reachable]
            scores["vcc_score"] = float(np.mean(known)) if known else float("nan")
            for group, numbers in ((GROUP, values), (SCORES, {_score_name(m): s for m, s in scores.items()})):
                sizes = n, n_cells.get(name, n)
                records += [Record(group, "pooled", name, m, v, -1, *sizes, self.context) for m, v in numbers.items()]
        return records

    def explain(self, ends: _Ends) -> None:
        """Notes on what cannot be told on these cells, by name."""
        say, where = self.comparison.notes.append, self.context
        empty = [
            p for p, n in zip(self.perturbations, _truth_sizes(self.real.changes, self.own), strict=True) if n == 0
        ]
        n = len(self.perturbations)
        say(
            f"sig_jaccard in {where}: {n - len(empty)} of {n} truth sets are not empty"
            + (f"; empty for {_some(empty)}, where calling nothing scores 1" if empty else "")
        )
        weak = [p for p, value in zip(self.perturbations, self.effect, strict=True) if value <= 0]
        if self.effect.sum() <= 0:
            say(
                f"{EXPRESSION} in {where}: no measurable effect in the real cells as a whole at this number of cells, "
                "so it is not scored there; more cells would tell"
            )
        if weak:
            say(f"no measurable effect in the pseudobulks of {where}: {_some(weak)}")
        if not (self.own >= 0).any():
            say(f"no perturbation of {where} is named like a gene, so no target gene is left out of the metrics")
        flat = [metric for metric in SCALES if metric not in ends.reachable]
        if flat and ends.one:
            say(
                f"no score in {where} for {', '.join(flat)}: split halves of the real cells are not better than the "
                f"{CONTEXT_MEAN} by more than they differ among themselves, so there is no reachable range; the mean "
                f"score there is of the other {len(SCALES) - len(flat)}"
            )


def _over_seeds(replicates: list[dict[str, float]], what: Callable[[list[float]], np.floating]) -> dict[str, float]:
    if not replicates:
        return {}
    return {metric: float(what([values[metric] for values in replicates])) for metric in replicates[0]}


def _totals(per_pair: dict[str, np.ndarray]) -> dict[str, float]:
    """Of values per perturbation those of the context: means over the defined ones, and the ratio of sums."""
    values = dict(per_pair)
    error, effect = values.pop("expr_mse_unbiased_capped").sum(), values.pop("expr_distance_unbiased").sum()
    found = {"pds_cosine": 0.0, EXPRESSION: float(error / effect) if effect > 0 else float("nan")}
    for metric, numbers in values.items():
        defined = numbers[~np.isnan(numbers)]
        found[metric] = float(defined.mean()) if len(defined) else float("nan")
    truth = per_pair["truth_sets"] > 0
    jaccard = per_pair["sig_jaccard"][truth]
    return {
        **found,
        "truth_sets": float(truth.sum()),
        "sig_jaccard_changed": float(jaccard.mean()) if truth.any() else float("nan"),
    }


def _truth_sizes(real: Changes, own: np.ndarray) -> np.ndarray:
    return change_metrics(real, real, own)["truth_sets"]


def _score_name(metric: str) -> str:
    return metric if metric == "vcc_score" else f"score_{metric}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
