"""A baseline from another library: control cells moved through scGen's latent space (extra `scgen`).

scGen (Lotfollahi et al. 2019) as pertpy has it, on log1p CP10K, with the settings of scGen's tutorial. Its answer is
the decoder's mean for every control, so cells vary less than real ones. pertpy's own prediction chooses cells for the
shift with a generator that no seed reaches; here all training cells count, so that a seed gives the same cells. See
`latent_shift`.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp

from evae.common.extras import require
from evae.evaluation.cells import Comparison
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.systems.baselines import System
from evae.evaluation.systems.latent_shift import LatentModel, latent_shift, quietly
from evae.evaluation.systems.names import SCGEN_SHIFT

_TRAINING = {"max_epochs": 100, "batch_size": 32, "early_stopping": True, "early_stopping_patience": 25}


def scgen_shift(comparison: Comparison, seed: int = 0) -> System:
    """The baseline; see `latent_shift` for what it needs and raises."""
    return latent_shift(SCGEN_SHIFT, comparison, seed, fit_scgen)


def fit_scgen(counts: sp.csr_matrix, seed: int) -> LatentModel:
    """Train scGen on raw counts, (cells, genes), until its validation loss no longer falls."""
    require("pertpy", "the baseline scgen", extra="scgen")
    import anndata as ad
    import pertpy
    import scvi

    with quietly():
        scvi.settings.seed = seed
        cells = ad.AnnData(log1p_cp10k(counts, "raw counts"))
        pertpy.tl.Scgen.setup_anndata(cells)
        model = pertpy.tl.Scgen(cells)
        model.train(**_TRAINING, enable_progress_bar=False)
    return _Scgen(model)


class _Scgen:
    """A trained `pertpy.tl.Scgen` as a `LatentModel`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        import anndata as ad

        with quietly():
            return np.asarray(self.model.get_latent_representation(ad.AnnData(log1p_cp10k(counts, "raw counts"))))

    def decode(self, latents: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
        expression = np.asarray(self.model.module.as_bound().generative(latents)["px"])
        return sp.csr_matrix(np.expm1(expression.clip(min=0)))
