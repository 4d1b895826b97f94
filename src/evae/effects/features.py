"""What vectors of perturbations tell of effects that were never measured.

ridge     linear regression, its penalty chosen by leaving perturbations out
nearest   the mean effect of the 5 nearest perturbations by cosine similarity
kernel    kernel ridge regression with a Gaussian kernel over standardised vectors, as wide as they have entries
bilinear  Y = G W P + b:  Y the effects, (genes, perturbations), b their mean, G the genes' leading principal components
          over the measured perturbations, P the standardised vectors, W by ridge regression on both sides. The linear
          model of Ahlmann-Eltze, Huber and Anders (Nature Methods 2025), with its 10 components and its penalty of 0.1
          on the side of the genes; on the other side the penalty is chosen by leaving perturbations out
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evae.models.contract_evae import EvaeError, near_matches

METHODS = ("ridge", "nearest", "kernel", "bilinear")
NEAREST = 5  # measured perturbations whose effects are averaged
LEAST = 5  # measured perturbations with a vector, below which features tell nothing
PENALTIES = np.logspace(-2, 5, 15)
COMPONENTS, GENE_PENALTY = 10, 0.1  # of the bilinear model


def read_vectors(path: str | Path) -> dict[str, np.ndarray]:
    """The vectors of a feature table by name; npz, csv, tsv or parquet.

    Raises:
        EvaeError: no such file, or a table that cannot be read.
    """
    from evae.training.feature_tables import read_feature_table

    table = read_feature_table(Path(path))
    return dict(zip(table.names, table.vectors, strict=True))


def told_by_features(
    measured: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray], wanted: Sequence[str], method: str
) -> dict[str, np.ndarray]:
    """Effects of perturbations that were not measured, (genes,) each.

    Args:
        measured: effects by name, (genes,) each.
        vectors: features by name, of the measured and of those wanted.
        wanted: names with a vector.
        method: one of `METHODS`.

    Raises:
        EvaeError: too few measured perturbations have a vector.
    """
    if not wanted:
        return {}
    both = [name for name in measured if name in vectors]
    if len(both) < LEAST:
        raise EvaeError(
            f"the feature table has vectors of {len(both)} of the {len(measured)} measured perturbations, too few to "
            f"learn from (at least {LEAST}); give a table with their names. "
            f"{near_matches(next(iter(vectors)), list(measured))}"
        )
    known, new = (np.stack([vectors[name] for name in names]).astype(np.float64) for names in (both, wanted))
    effects = np.stack([measured[name] for name in both])
    if method == "bilinear":
        return dict(zip(wanted, bilinear(effects, known, new), strict=True))
    return dict(zip(wanted, _model(method, known).fit(known, effects).predict(new), strict=True))


def _model(method: str, known: np.ndarray) -> Any:
    from sklearn.decomposition import KernelPCA
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if method == "nearest":
        return KNeighborsRegressor(n_neighbors=min(NEAREST, len(known)), metric="cosine")
    # ridge on all components of the centred kernel is kernel ridge with a free mean, whose penalty RidgeCV can choose
    kernel = KernelPCA(kernel="rbf", gamma=1 / known.shape[1], remove_zero_eig=True, eigen_solver="dense")
    steps = [kernel] if method == "kernel" else []
    return make_pipeline(StandardScaler(), *steps, RidgeCV(alphas=PENALTIES))


def gene_components(effects: np.ndarray, most: int = COMPONENTS) -> np.ndarray:
    """Leading principal components of genes over perturbations, (genes, components); of (perturbations, genes)."""
    from sklearn.decomposition import PCA

    return np.asarray(PCA(min(most, *effects.shape), svd_solver="full").fit_transform(effects.T))


def bilinear(
    effects: np.ndarray, vectors: np.ndarray, new: np.ndarray, penalties: Sequence[float] | np.ndarray = PENALTIES
) -> np.ndarray:
    """Effects that the bilinear model tells, (new perturbations, genes).

    Args:
        effects: of the measured perturbations, (perturbations, genes).
        vectors: theirs, (perturbations, features).
        new: vectors of others, (new perturbations, features).
        penalties: of W on the side of the vectors; the best for perturbations left out is taken.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    mean, genes = effects.mean(axis=0), gene_components(effects)
    inner = genes.T @ genes + GENE_PENALTY * np.eye(genes.shape[1])
    spanned = (genes @ np.linalg.solve(inner, genes.T @ (effects - mean).T)).T  # what G W P must be
    # its mean is 0, so the intercept is too, but those left out must be predicted by the mean of the others
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=penalties))
    return mean + np.asarray(model.fit(vectors, spanned).predict(new)).reshape(len(new), -1)
