"""What the training cells show of every perturbation, kept beside a prior, so that predictions can be held to it."""

from collections.abc import Sequence

import numpy as np

from evae.common.known_effects import KnownEffects
from evae.data.format import Dataset
from evae.training.shifts import Shifts, read_shifts

MOST_VALUES = 200_000_000  # pairs x genes; 800 MB as stored


def measure_effects(
    datasets: Sequence[Dataset], genes: Sequence[str], before: KnownEffects | None = None
) -> KnownEffects | None:
    """Effects of all perturbations in all cell types of the training cells that have controls.

    Args:
        datasets: whose training cells are read.
        genes: the panel of the model; a dataset may have some of its genes.
        before: those that the model had, which further ones are added to.

    Returns:
        None where no cell type has both controls and perturbed cells, or where there are too many pairs to keep.
    """
    known = before
    for dataset in datasets:
        if len(dataset.info.cell_types) * len(dataset.info.perturbations) * len(genes) > MOST_VALUES:
            return before
        shifts = read_shifts(dataset, None if known is None else known.pseudo)
        if len(shifts.change):
            found = _over(shifts, dataset, genes)
            known = found.judged() if known is None else known.joined(found)
    return known


def _over(shifts: Shifts, dataset: Dataset, genes: Sequence[str]) -> KnownEffects:
    """The shifts of a dataset over the genes of a model."""
    place = {gene: number for number, gene in enumerate(genes)}
    columns = np.array([place[gene] for gene in dataset.info.genes])
    contexts = {kind: row for row, kind in enumerate(shifts.controls)}

    def spread(values: np.ndarray, missing: float) -> np.ndarray:
        wide = np.full((len(values), len(genes)), missing)
        wide[:, columns] = values
        return wide

    return KnownEffects(
        spread(shifts.change, 0.0),
        spread(np.where(shifts.variance > 0, shifts.variance, np.inf), np.inf),
        np.array([contexts[int(kind)] for kind in shifts.cell_type]),
        [dataset.info.perturbations[number] for number in shifts.perturbation],
        spread(np.stack(list(shifts.controls.values())), np.nan),
        shifts.pseudo,
    )
