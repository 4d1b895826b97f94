"""A baseline from another library: control cells moved through scVI's latent space (extra `scvi`).

scVI (Lopez et al. 2018), with scvi-tools' own settings and without batches, is trained on a sample of the
training cells. A perturbation's shift is its mean latent difference from control over the training cell types,
as in scGen (Lotfollahi et al. 2019); it is added to the latents of real controls of the evaluated cell type,
and counts are drawn from the decoder at the controls' own totals.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import anndata as ad
import numpy as np
import scipy.sparse as sp

from evae.common.extras import require
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.comparison import group_rows
from evae.evaluation.cells.normalised import Cells, log1p_cp10k, mean_of
from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.baselines import System
from evae.evaluation.systems.names import SCVI_SHIFT
from evae.models.contract_evae import EvaeError

_MEAN_CELLS = 1_000  # cells behind the mean of a pair
_CHUNK = 2_048  # cells decoded at once


class LatentModel(Protocol):
    """What is needed of a generative model with a latent space."""

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        """Raw counts (cells, genes) -> latents (cells, dimensions)."""

    def decode(self, latents: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        """Latents (cells, dimensions) and total counts (cells,) -> drawn raw counts (cells, genes)."""


def scvi_shift(
    comparison: Comparison, seed: int = 0, fit: Callable[[sp.csr_matrix, int], LatentModel] | None = None
) -> System:
    """The baseline, for the pairs whose perturbation has a shift.

    Args:
        comparison: with training cells; training and control cells came as raw counts.
        seed: of the training.
        fit: (raw counts, seed) -> trained model; scVI by default.

    Raises:
        EvaeError: no raw counts, or no scvi-tools.
    """
    training, controls = comparison.training, comparison.controls
    assert training is not None
    for name, cells in (("training cells", training.reference), ("controls", controls)):
        if cells.totals is None:
            raise EvaeError(
                f"the baseline scvi needs raw counts, and the {name} came as log1p or expected counts; give raw "
                "counts in X."
            )
    counts = training.reference.counts()
    model = (fit or fit_scvi)(counts, seed)
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

    return System(SCVI_SHIFT, draw, mean, [pair for pair in comparison.pairs if pair[1] in shifts])


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


def fit_scvi(counts: sp.csr_matrix, seed: int) -> LatentModel:
    """Train scVI on raw counts, (cells, genes), until its validation loss no longer falls."""
    require("scvi", "the baseline scvi", extra="scvi")
    import scvi

    counts = counts[np.diff(counts.indptr) > 0]  # a cell without counts has no library size
    with _quietly():
        scvi.settings.seed = seed
        cells = ad.AnnData(counts)
        scvi.model.SCVI.setup_anndata(cells)
        model = scvi.model.SCVI(cells)
        model.train(early_stopping=True, enable_progress_bar=False)
    return _Scvi(model)


class _Scvi:
    """A trained `scvi.model.SCVI` as a `LatentModel`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        with _quietly():
            return self.model.get_latent_representation(ad.AnnData(counts))

    def decode(self, latents: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        import torch

        device, parts = self.model.device, []
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**31)))
            for start in range(0, len(latents), _CHUNK):
                part = slice(start, start + _CHUNK)
                z = torch.as_tensor(latents[part], dtype=torch.float32, device=device)
                total = torch.as_tensor(totals[part].clip(min=1), dtype=torch.float32, device=device)
                batch = torch.zeros(len(z), 1, device=device)
                found = self.model.module.generative(z=z, library=total.log()[:, None], batch_index=batch)
                parts.append(sp.csr_matrix(found["px"].sample().cpu().numpy()))
        return sp.vstack(parts, format="csr")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes that scvi-tools and Lightning print."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi")]
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
