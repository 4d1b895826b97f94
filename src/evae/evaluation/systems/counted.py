"""Systems that give raw counts, as the Virtual Cell Challenge wants them.

model                   the predictions themselves
control copy            real controls of the context, unchanged
mean of other contexts  the same response for every perturbation: real controls whose genes are scaled by the mean
                        response of the other contexts. It is the challenge's zero
other contexts          the perturbation's real cells in the other contexts
shrunken transfer       real controls, shifted by the perturbation's effect in the other contexts, see `transfer`
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.common.mixed_poisson import dispersions
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.normalised import Cells
from evae.evaluation.systems.names import CONTEXT_MEAN, CONTROL_COPY, MODEL, OTHER_CONTEXTS, SHRUNKEN_TRANSFER
from evae.evaluation.systems.transfer import Effects, effects_of, shifted_counts, shrunken_folds

CountDraw = Callable[[Pair, int, np.random.Generator], sp.csr_matrix]


@dataclass(frozen=True)
class CountSystem:
    """Something that gives raw counts for a pair.

    Attributes:
        name: as it stands in tables.
        draw: (pair, n, generator) -> counts, (cells, genes). Its own cells, all of them, where it has some.
        pairs: the pairs that it has an answer for.
    """

    name: str
    draw: CountDraw
    pairs: set[Pair]


def stored_counts(name: str, cells: Cells, rows: dict[Pair, np.ndarray], own: bool = False) -> CountSystem:
    """A system that draws from given cells, without replacement while they last; all where they are its `own`."""

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        pool = rows[pair]
        return cells.take(pool if own else rng.choice(pool, n, replace=n > len(pool))).counts()

    return CountSystem(name, draw, {pair for pair, found in rows.items() if len(found)})


def count_systems(comparison: Comparison, with_baselines: bool) -> list[CountSystem]:
    """The model and, if wanted, all baselines that the given cells allow; the challenge's zero is always there."""
    found = [stored_counts(MODEL, comparison.predicted, comparison.predicted_rows, own=True), _context_mean(comparison)]
    if not with_baselines:
        return found
    rows, training = {pair: comparison.control_rows[pair[0]] for pair in comparison.pairs}, comparison.training
    found.append(stored_counts(CONTROL_COPY, comparison.controls, rows))
    if training is None or training.elsewhere.totals is None:
        return found
    cells = training.elsewhere
    elsewhere = {
        (c, p): np.flatnonzero((cells.perturbation == p) & (cells.cell_type != c)) for c, p in comparison.pairs
    }
    found.append(stored_counts(OTHER_CONTEXTS, cells, elsewhere))
    transfer = _shrunken_transfer(comparison)
    return [*found, *([] if transfer is None else [transfer])]


def _context_mean(comparison: Comparison) -> CountSystem:
    folds = {}
    for context in comparison.cell_types:
        others = other_contexts(comparison, context)
        if not others:
            comparison.notes.append(
                f"{CONTEXT_MEAN}: the training cells have no perturbed cells of another context than {context}, so it "
                "is the mean response of the real held-out cells themselves, as in cell-eval2"
            )
            others = {context: _own_effects(comparison, context)}
        response = np.mean([e.response(leave_out_own=True) for e in others.values()], axis=0)
        control = np.mean([e.control for e in others.values()], axis=0)
        folds[context] = np.where(control > 0, response / np.where(control > 0, control, 1.0), 1.0)

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        counts = _controls(comparison, pair[0], n, rng).astype(np.float64)
        counts.data *= folds[pair[0]][counts.indices]
        counts.eliminate_zeros()
        return counts

    return CountSystem(CONTEXT_MEAN, draw, set(comparison.pairs))


def _shrunken_transfer(comparison: Comparison) -> CountSystem | None:
    folds: dict[Pair, np.ndarray] = {}
    spread: dict[str, np.ndarray] = {}
    for context in comparison.cell_types:
        others = other_contexts(comparison, context)
        if not others:
            continue
        found, said = shrunken_folds(
            others, comparison.perturbations(context), _own_effects(comparison, context).control
        )
        comparison.notes.append(f"{SHRUNKEN_TRANSFER} to {context}: {said}")
        folds |= {(context, p): fold for p, fold in found.items()}
        rows = comparison.control_rows[context]
        spread[context] = dispersions(comparison.controls.take(rows).counts())

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        return shifted_counts(_controls(comparison, pair[0], n, rng), folds[pair], spread[pair[0]], rng)

    return CountSystem(SHRUNKEN_TRANSFER, draw, set(folds)) if folds else None


def other_contexts(comparison: Comparison, context: str) -> dict[str, Effects]:
    """What training knows of every other context that has controls and perturbed cells."""
    training = comparison.training
    if training is None:
        return {}
    found = {}
    for other in sorted(training.cell_types - {context}):
        rates = {p: rate for (c, p), rate in training.rates.items() if c == other}
        control = rates.pop(training.control, None)
        if control is not None and rates:
            cells = {p: training.counts[(other, p)] for p in rates}
            found[other] = effects_of(control, rates, cells, comparison.genes)
    return found


def _own_effects(comparison: Comparison, context: str) -> Effects:
    """The same of the evaluated cells themselves."""

    def rate(cells: Cells, rows: np.ndarray) -> np.ndarray:
        return np.asarray(cells.matrix[rows].astype(np.float64).expm1().mean(axis=0)).ravel()

    rows = {p: comparison.real_rows[(context, p)] for p in comparison.perturbations(context)}
    control = rate(comparison.controls, comparison.control_rows[context])
    rates = {p: rate(comparison.real, r) for p, r in rows.items()}
    return effects_of(control, rates, {p: len(r) for p, r in rows.items()}, comparison.genes)


def _controls(comparison: Comparison, context: str, n: int, rng: np.random.Generator) -> sp.csr_matrix:
    pool = comparison.control_rows[context]
    return comparison.controls.take(rng.choice(pool, n, replace=n > len(pool))).counts()
