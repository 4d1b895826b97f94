"""A baseline from another library: control cells moved through scVI's latent space (extra `scvi`).

scVI (Lopez et al. 2018), with scvi-tools' own settings and without batches; counts are drawn from the decoder at the
controls' own totals. See `latent_shift`.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp

from evae.common.extras import require
from evae.evaluation.cells import Comparison
from evae.evaluation.systems.baselines import System
from evae.evaluation.systems.latent_shift import LatentModel, latent_shift, quietly
from evae.evaluation.systems.names import SCVI_SHIFT

_CHUNK = 2_048  # cells decoded at once


def scvi_shift(comparison: Comparison, seed: int = 0) -> System:
    """The baseline; see `latent_shift` for what it needs and raises."""
    return latent_shift(SCVI_SHIFT, comparison, seed, fit_scvi)


def fit_scvi(counts: sp.csr_matrix, seed: int) -> LatentModel:
    """Train scVI on raw counts, (cells, genes), until its validation loss no longer falls."""
    require("scvi", "the baseline scvi", extra="scvi")
    import anndata as ad
    import scvi

    counts = counts[np.diff(counts.indptr) > 0]  # a cell without counts has no library size
    with quietly():
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
        import anndata as ad

        with quietly():
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
