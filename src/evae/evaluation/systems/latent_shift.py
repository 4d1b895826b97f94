"""Control cells moved through the latent space of a generative model that another library trains.

The model is trained on a sample of the training cells. A perturbation's shift is its mean latent difference from
control over the training cell types, as in scGen (Lotfollahi et al. 2019); it is added to the latents of real controls
of the evaluated cell type, which are then decoded.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.comparison import group_rows
from evae.evaluation.cells.normalised import Cells, log1p_cp10k, mean_of
from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.baselines import System
from evae.models.contract_evae import EvaeError

_MEAN_CELLS = 1_000  # cells behind the mean of a pair


class LatentModel(Protocol):
    """What is needed of a generative model with a latent space."""

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        """Raw counts (cells, genes) -> latents (cells, dimensions)."""

    def decode(self, latents: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        """Latents (cells, dimensions) and total counts (cells,) -> counts (cells, genes), drawn or expected."""


def latent_shift(
    name: str, comparison: Comparison, seed: int, fit: Callable[[sp.csr_matrix, int], LatentModel]
) -> System:
    """The baseline, for the pairs whose perturbation has a shift.

    Args:
        name: as it stands in tables.
        comparison: with training cells; training and control cells came as raw counts.
        seed: of the training.
        fit: (raw counts, seed) -> trained model.

    Raises:
        EvaeError: no raw counts.
    """
    training, controls = comparison.training, comparison.controls
    assert training is not None
    for source, cells in (("training cells", training.reference), ("controls", controls)):
        if cells.totals is None:
            raise EvaeError(
                f"the baseline {name} needs raw counts, and the {source} came as log1p or expected counts; give raw "
                "counts in X."
            )
    counts = training.reference.counts()
    model = fit(counts, seed)
    shifts = latent_shifts(training, model)
    latents, totals = model.encode(controls.counts()), np.asarray(controls.totals)
    rows = comparison.control_rows

    def cells_of(pair: Pair, chosen: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        return log1p_cp10k(model.decode(latents[chosen] + shifts[pair[1]], totals[chosen], rng), "raw counts")

    def draw(pair: Pair, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        pool = rows[pair[0]]
        return cells_of(pair, rng.choice(pool, n, replace=n > len(pool)), rng)

    def mean(pair: Pair) -> np.ndarray:
        return mean_of(cells_of(pair, rows[pair[0]][:_MEAN_CELLS], np.random.default_rng(seed)))

    return System(name, draw, mean, [pair for pair in comparison.pairs if pair[1] in shifts])


def latent_shifts(training: TrainingCells, model: LatentModel) -> dict[str, np.ndarray]:
    """Mean latent difference from control of every evaluated perturbation, over the cell types that hold both."""
    reference, elsewhere = training.reference, training.elsewhere
    centre = _centres(reference.take(reference.perturbation == training.control), model)
    found: dict[str, list[np.ndarray]] = {}
    for (cell_type, perturbation), latent in _centres(elsewhere, model).items():
        if (cell_type, training.control) in centre:
            found.setdefault(perturbation, []).append(latent - centre[(cell_type, training.control)])
    return {perturbation: np.mean(shifts, axis=0) for perturbation, shifts in found.items()}


def _centres(cells: Cells, model: LatentModel) -> dict[Pair, np.ndarray]:
    if len(cells) == 0:
        return {}
    latents = model.encode(cells.counts())
    return {pair: latents[rows].mean(axis=0) for pair, rows in group_rows(cells.cell_type, cells.perturbation).items()}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the notes that scvi-tools, pertpy and Lightning print."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi", "pertpy", "jax")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
