"""What of the cells' own variation is recovered, and whether predictions look alike.

variance_recovered     1 - sum_g |predicted variance_g - real_g| / sum_g real_g:  1 exact, 0 for mere means
correlation_recovered  Pearson correlation, over pairs of the 100 most variable genes, of the predicted with the real
                       gene-gene correlations. A gene that does not vary is uncorrelated; 0 for cells that are all alike
look_alike             mode collapse as a number: of the pairs of perturbations whose real means differ by more than
                       noise, the share whose predicted means are less than half as far apart. 0 is right, 1 is one
                       prediction for all
effect_spread          predicted over real squared distance between the means of perturbations, summed over those pairs:
                       1 is right, 0 one prediction for all, above 1 exaggerated

Definitions of our own; squared distances of means are less their sampling noise.
"""

import numpy as np

MAX_GENES = 100
NEAR = 0.25  # of a squared distance: half as far apart


def variance_recovered(real: np.ndarray, predicted: np.ndarray) -> float:
    """Of sample variances of genes, (genes,) each; NaN where no gene varies in the real cells."""
    total = real.sum()
    return float(1 - np.abs(predicted - real).sum() / total) if total > 0 else float("nan")


def correlation_recovered(real: np.ndarray, predicted: np.ndarray, max_genes: int = MAX_GENES) -> float:
    """Of log1p expression, (cells, genes) each; NaN below three cells a side or two genes that vary."""
    variance = real.var(axis=0)
    genes = np.argsort(-variance, kind="stable")[: min(max_genes, int((variance > 0).sum()))]
    if len(genes) < 2 or min(len(real), len(predicted)) < 3:
        return float("nan")
    upper = np.triu_indices(len(genes), k=1)
    truth, found = (_correlations(cells[:, genes])[upper] for cells in (real, predicted))
    lengths = np.linalg.norm(truth - truth.mean()) * np.linalg.norm(found - found.mean())
    if lengths < 1e-12:  # no two genes to tell apart on one side: nothing of the structure is there
        return 0.0 if np.linalg.norm(truth - truth.mean()) > 1e-12 else float("nan")
    return float((truth - truth.mean()) @ (found - found.mean()) / lengths)


def _correlations(cells: np.ndarray) -> np.ndarray:
    centred = cells - cells.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    scaled = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-9)
    return scaled.T @ scaled


def collapse_metrics(
    predicted: np.ndarray, noise: np.ndarray, real: np.ndarray, real_noise: np.ndarray
) -> dict[str, float]:
    """`look_alike` and `effect_spread` of the perturbations of one cell type; NaN where no two of them differ.

    Args:
        predicted: mean expression of the predictions, (perturbations, genes).
        noise: summed sampling variance of each of these means, (perturbations,).
        real, real_noise: the same of the real cells, in the same order.
    """
    truth, found = _squared_distances(real, real_noise), _squared_distances(predicted, noise)
    first, second = np.triu_indices(len(real), k=1)
    differ = truth[first, second] > real_noise[first] + real_noise[second]
    truth, found = truth[first, second][differ], found[first, second][differ]
    if not len(truth):
        return {"look_alike": float("nan"), "effect_spread": float("nan")}
    return {"look_alike": float((found < NEAR * truth).mean()), "effect_spread": float(found.sum() / truth.sum())}


def _squared_distances(means: np.ndarray, noise: np.ndarray) -> np.ndarray:
    square = (means**2).sum(axis=1)
    return square[:, None] + square - 2 * means @ means.T - noise[:, None] - noise
