"""What stands beside the model in every table: baselines to beat, and the real cells' own agreement.

control copy               real controls of the cell type, unchanged
perturbation mean          every cell is the perturbation's mean over the training cell types
mean of all perturbations  every cell is the mean over all perturbations in training
additive shift             real controls + the perturbation's mean shift in the training cell types
mean of all shifts         real controls + the mean shift over all perturbations in training: what is known of a
                           perturbation that was never seen
shrunken transfer          real controls + a part of the perturbation's effect in the other training cell types, see
                           `transfer`; amplitudes from predicting training cell types from one another
linear                     every cell is the mean that ridge regression across perturbations predicts from the
                           shift seen in the training cell types; fitted on perturbations seen in both
marginal resample          each gene drawn by itself from the perturbation's training cells: right marginals,
                           no correlation between genes
mean-collapsed model       every cell is the model's own mean: keeps Pearson delta and MAE, and nothing else
other contexts             the perturbation's real cells in other cell types or batches

What was never seen, see `unseen`: sum of singles, nearest in features, kernel ridge on features, bilinear. A dose that
was never seen, see `nearest_dose`: nearest dose.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.moments import moments_of
from evae.evaluation.cells.normalised import Cells, mean_of
from evae.evaluation.cells.projection import Matrix, dense
from evae.evaluation.systems.names import (
    ADDITIVE_SHIFT,
    COLLAPSED,
    CONTROL_COPY,
    LINEAR,
    MARGINAL_RESAMPLE,
    MEAN_SHIFT,
    MODEL,
    NEAREST_DOSE,
    OTHER_CONTEXTS,
    OVERALL_MEAN,
    PERTURBATION_MEAN,
    SHRUNKEN_TRANSFER,
    SUM_OF_SINGLES,
)
from evae.evaluation.systems.nearest_dose import shifts_at_nearest_dose
from evae.evaluation.systems.transfer import ContextShifts, shrunken_shifts
from evae.evaluation.systems.unseen import sums_of_singles, unseen_shifts

Draw = Callable[[Pair, int, np.random.Generator], Matrix]


@dataclass(frozen=True)
class System:
    """Something that gives cells for a pair.

    Attributes:
        name: as it stands in tables.
        draw: (pair, n, generator) -> log1p CP10K of n cells, (n, genes), sparse where they are stored cells.
        mean: pair -> mean log1p CP10K, (genes,), exact where it is known.
        pairs: the pairs that it has an answer for.
        available: pair -> how many cells it has of its own; None where cells are drawn at will.
        stored: pair -> all of its own cells, sparse; None where cells are drawn at will.
        noise: pair -> sampling variance of `mean`, (genes,); None where it is not known.
    """

    name: str
    draw: Draw
    mean: Callable[[Pair], np.ndarray]
    pairs: list[Pair]
    available: dict[Pair, int] | None = None
    stored: Callable[[Pair], sp.csr_matrix] | None = None
    noise: Callable[[Pair], np.ndarray] | None = None

    def all_cells(self, pair: Pair, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        """Its own cells of a pair, all of them; n drawn ones where it has none of its own."""
        return sp.csr_matrix(self.draw(pair, n, rng)) if self.stored is None else self.stored(pair)


def sampled(name: str, cells: Cells, rows: dict[Pair, np.ndarray], own: bool = False) -> System:
    """A system that draws from given cells: without replacement while they last, else with.

    Args:
        name: as it stands in tables.
        cells: where the cells come from.
        rows: the rows of `cells` that may stand for each pair.
        own: the rows are the system's own cells, of which no more than there are may be drawn.
    """

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> Matrix:
        pool = rows[pair]
        return cells.matrix[rng.choice(pool, n, replace=n > len(pool) and not own)]

    def mean(pair: Pair) -> np.ndarray:
        return mean_of(cells.matrix[rows[pair]])

    def noise(pair: Pair) -> np.ndarray:
        return moments_of(cells.matrix[rows[pair]]).noise

    pairs = [pair for pair, found in rows.items() if len(found)]
    if not own:
        return System(name, draw, mean, pairs, noise=noise)
    available = {p: len(rows[p]) for p in pairs}
    return System(name, draw, mean, pairs, available, lambda pair: cells.matrix[rows[pair]], noise)


def repeated(name: str, means: dict[Pair, np.ndarray]) -> System:
    """A system whose cells are all the mean."""

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.tile(means[pair], (n, 1))

    return System(name, draw, lambda pair: means[pair], list(means))


def model_system(comparison: Comparison) -> System:
    """The predictions themselves."""
    return sampled(MODEL, comparison.predicted, comparison.predicted_rows, own=True)


def real_system(comparison: Comparison) -> System:
    """The real held-out cells themselves."""
    return sampled("real", comparison.real, comparison.real_rows, own=True)


def baselines(comparison: Comparison, features: Mapping[str, np.ndarray] | None = None) -> list[System]:
    """All baselines that the given cells allow; those that need training cells are left out without them.

    Args:
        comparison: what is evaluated.
        features: vectors of perturbations by name, for those that training never saw.
    """
    pairs = comparison.pairs
    control_rows, model = comparison.control_rows, model_system(comparison)
    found = [
        sampled(CONTROL_COPY, comparison.controls, {pair: control_rows[pair[0]] for pair in pairs}),
        repeated(COLLAPSED, {pair: model.mean(pair) for pair in pairs}),
    ]
    training = comparison.training
    if training is None:
        return found
    by_perturbation = {
        pair: np.flatnonzero((training.elsewhere.perturbation == pair[1]) & (training.elsewhere.cell_type != pair[0]))
        for pair in pairs
    }
    seen = {pair: np.flatnonzero(training.elsewhere.perturbation == pair[1]) for pair in pairs}
    shifts = training.shifts()
    additive = {pair: shifts[pair[1]] for pair in pairs if pair[1] in shifts}
    shift_of = {c: training.mean_shift(c) for c in comparison.cell_types}
    mean_of_type = {c: training.overall_mean(c) for c in comparison.cell_types}
    found += [
        repeated(PERTURBATION_MEAN, _known({pair: training.perturbation_mean(pair[1]) for pair in pairs})),
        repeated(OVERALL_MEAN, _known({pair: mean_of_type[pair[0]] for pair in pairs})),
        shifted(ADDITIVE_SHIFT, comparison, additive),
        shifted(MEAN_SHIFT, comparison, _known({pair: shift_of[pair[0]] for pair in pairs})),
        shifted(SHRUNKEN_TRANSFER, comparison, shrunken_transfer(comparison)),
        shifted(SUM_OF_SINGLES, comparison, sums_of_singles(comparison)),
        shifted(NEAREST_DOSE, comparison, shifts_at_nearest_dose(comparison)),
        *(shifted(name, comparison, own) for name, own in unseen_shifts(comparison, features).items()),
        repeated(LINEAR, linear_predictions(comparison)),
        _marginal_resample(training.elsewhere, seen),
        sampled(OTHER_CONTEXTS, training.elsewhere, by_perturbation),
    ]
    return [system for system in found if system.pairs]


def _known(means: dict[Pair, np.ndarray | None]) -> dict[Pair, np.ndarray]:
    return {pair: mean for pair, mean in means.items() if mean is not None}


def shifted(name: str, comparison: Comparison, shifts: dict[Pair, np.ndarray]) -> System:
    """Real controls of each pair's cell type, every cell with a shift of log1p expression added, (genes,) each."""
    rows = {pair: comparison.control_rows[pair[0]] for pair in shifts}
    base = sampled("", comparison.controls, rows)

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> np.ndarray:
        return (dense(base.draw(pair, n, rng)) + shifts[pair]).clip(min=0)  # expression is never negative

    def mean(pair: Pair) -> np.ndarray:
        return (comparison.control_means[pair[0]] + shifts[pair]).clip(min=0)  # the shift itself, no clipped cells

    return System(name, draw, mean, list(shifts))


def shrunken_transfer(comparison: Comparison) -> dict[Pair, np.ndarray]:
    """Shifts carried over from the other training cell types, shrunken; nothing where there are none."""
    training = comparison.training
    assert training is not None
    every = {c: training.shifts({c}) for c in sorted(training.cell_types)}
    contexts = {
        c: ContextShifts(np.mean(list(own.values()), axis=0), own, {p: training.counts[(c, p)] for p in own})
        for c, own in every.items()
        if own
    }
    found: dict[Pair, np.ndarray] = {}
    for cell_type in comparison.cell_types:
        others = {c: context for c, context in contexts.items() if c != cell_type}
        if not others:
            continue
        shifts, said = shrunken_shifts(others, comparison.perturbations(cell_type))
        comparison.notes.append(f"{SHRUNKEN_TRANSFER} to {cell_type}: {said}")
        found |= {(cell_type, p): shift for p, shift in shifts.items()}
    return found


def _marginal_resample(cells: Cells, rows: dict[Pair, np.ndarray]) -> System:
    base = sampled(MARGINAL_RESAMPLE, cells, rows)

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = dense(base.draw(pair, n, rng))
        return np.take_along_axis(drawn, rng.random(drawn.shape).argsort(axis=0), axis=0)  # permute each gene by itself

    return System(base.name, draw, base.mean, base.pairs)


def linear_predictions(comparison: Comparison, penalty: float = 0.1, n_components: int = 10) -> dict[Pair, np.ndarray]:
    """Mean of each pair predicted by a linear model across perturbations.

    For a cell type, ridge regression maps a perturbation's embedding to its mean shift in this cell type,
    fitted on the perturbations that training holds both here and elsewhere. The embedding is, as in
    Ahlmann-Eltze et al. 2025, of the leading principal components of the training pseudobulks: here of the
    mean shifts in the other cell types. Pairs whose cell type shares fewer than three perturbations with the
    others have no answer.

    Args:
        comparison: with training cells.
        penalty: of the ridge, in units of the embedding's mean variance.
        n_components: of the embedding.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    training = comparison.training
    assert training is not None
    answers: dict[Pair, np.ndarray] = {}
    for cell_type in comparison.cell_types:
        own = training.shifts({cell_type})
        elsewhere = training.shifts(training.cell_types - {cell_type})
        shared = sorted(set(own) & set(elsewhere))
        wanted = [p for p in comparison.perturbations(cell_type) if p in elsewhere]
        if len(shared) < 3 or not wanted:
            continue
        embedding = PCA(min(n_components, len(shared) - 1, len(comparison.genes)), svd_solver="full")
        features = embedding.fit_transform([elsewhere[p] for p in shared])  # (shared perturbations, components)
        model = Ridge(penalty * float((features**2).sum(axis=0).mean())).fit(features, [own[p] for p in shared])
        shifts = model.predict(embedding.transform([elsewhere[p] for p in wanted]))  # (wanted, genes)
        base = training.means[(cell_type, training.control)]
        answers |= {(cell_type, p): (base + shift).clip(min=0) for p, shift in zip(wanted, shifts, strict=True)}
    return answers
