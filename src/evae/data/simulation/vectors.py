"""Feature vectors of simulated perturbations, of which their effects can be told: for questions about unseen ones.

A vector is a random linear map of the perturbation's true effect, and noise:

    v_p = R e_p / s + noise * u_p

    e_p    the log fold changes of all genes, zero for the control and for perturbations without effect
    R      ~ N(0, 1), (features, genes);  s scales R e_p to a variance of 1 over perturbations and features
    u_p    ~ N(0, 1), (features,)
"""

import anndata as ad
import numpy as np
import pandas as pd

from evae.models.contract_evae import EvaeError


def simulated_vectors(cells: ad.AnnData, n_features: int = 32, noise: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """A feature table of the perturbations of a simulated screen (formula: see the module).

    Args:
        cells: of `simulate_perturb_seq`.
        n_features: numbers of a vector.
        noise: standard deviation of what says nothing of the effect, in those of what does.
        seed: of the random map and the noise.

    Returns:
        Perturbations x features, float32; the control has none.

    Raises:
        EvaeError: the screen has no perturbation with an effect.
    """
    truth = cells.uns["simulation"]
    effects = np.asarray(truth["log_fold_change"], dtype=np.float64)[1:]  # the control comes first
    if not effects.any():
        raise EvaeError("no perturbation of the screen has an effect that vectors could tell; simulate more of them.")
    rng = np.random.default_rng([seed, 2])  # apart from that of the cells
    told = effects @ rng.normal(size=(effects.shape[1], n_features))
    vectors = told / told.std() + noise * rng.normal(size=told.shape)
    names = pd.Index(np.asarray(truth["perturbations"], dtype=str)[1:], name="perturbation")
    columns = [f"feature_{i + 1}" for i in range(n_features)]
    return pd.DataFrame(vectors.astype(np.float32), index=names, columns=columns)
