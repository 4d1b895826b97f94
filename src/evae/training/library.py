"""How library sizes change with perturbation and cell type, so that a prediction need not copy those of its controls.

Treated cells are often sequenced deeper or less deep than their controls. For cell type c and perturbation p, y is the
mean of log(library size) of the treated cells less that of the controls. Ridge regression fits

    y = m + a_p + b_c

with each pair weighted by 1 / variance, and a_p and b_c drawn to 0 as by a prior of standard deviation SPREAD. Where c
has other perturbed cells in training, b_c carries over how much deeper they are than their controls.
"""

from typing import Any

import numpy as np

from evae.data.format import DatasetInfo
from evae.training.codes import EncodedCells

SPREAD = 0.3  # of a_p and b_c, natural log units: a third more or less
UNEXPLAINED = 0.05  # standard deviation of y that neither explains


def fit_library_sizes(cells: EncodedCells, whole: np.ndarray, info: DatasetInfo) -> dict[str, Any] | None:
    """`library_model` of the training cells, thinned copies left out; `whole` as `Encoder.whole_rows` gives it."""
    rows = np.flatnonzero(whole == np.arange(len(whole)))
    labels = (cells.perturbation_ids[rows], cells.cell_type_ids[rows])
    control = info.perturbations.index(info.control)
    return library_model(cells.library_size[rows], *labels, list(info.perturbations), list(info.cell_types), control)


def extended(former: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `library_model` of a trained prior with what new cells tell of names that it does not know."""
    if former is None or new is None:
        return former or new
    shift = new["mean"] - former["mean"]
    names = {name: change + shift for name, change in new["perturbations"].items()}
    return former | {
        "perturbations": names | former["perturbations"],
        "cell_types": new["cell_types"] | former["cell_types"],
        "lowest": min(former["lowest"], new["lowest"]),
        "highest": max(former["highest"], new["highest"]),
    }


def library_model(
    library_size: np.ndarray,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    names: list[str],
    kinds: list[str],
    control: int,
) -> dict[str, Any] | None:
    """Fit the changes of the library size on the training cells.

    Args:
        library_size: total counts over the panel, (cells,).
        perturbation, cell_type: ids, (cells,).
        names, kinds: the vocabularies of perturbations and cell types.
        control: id of the control.

    Returns:
        plain values for `EvaeProcessor.library_model`: `mean` m, `perturbations` a_p and `cell_types` b_c by name,
        `lowest` and `highest` mean of log(library size) among the treated groups, and `best`, which of "predicted",
        "controls" and "training" came closest to the pairs left out one by one. None where no cell type has both
        treated cells and controls.
    """
    depth = np.log(np.maximum(library_size, 1.0))
    pairs = _pairs(depth, perturbation, cell_type, control)
    if not len(pairs):
        return None
    weights = 1 / (pairs[:, 4] + UNEXPLAINED**2)
    kind, name, y, treated = pairs[:, 0].astype(int), pairs[:, 1].astype(int), pairs[:, 2], pairs[:, 3]
    mean, of_name, of_kind = _fit(y, weights, name, kind, len(names), len(kinds))
    errors = np.zeros((len(y), 3))
    for left in range(len(y)):
        rest = np.arange(len(y)) != left
        if not rest.any():
            continue
        m, a, b = _fit(y[rest], weights[rest], name[rest], kind[rest], len(names), len(kinds))
        same = rest & (name == name[left])
        elsewhere = treated[same if same.any() else rest].mean()
        guesses = (m + a[name[left]] + b[kind[left]], 0.0, elsewhere - (treated[left] - y[left]))
        errors[left] = np.abs(np.array(guesses) - y[left])
    best = ("predicted", "controls", "training")[int(errors.mean(0).argmin())] if len(y) > 1 else "controls"
    return {
        "mean": float(mean),
        "perturbations": {names[p]: float(of_name[p]) for p in np.unique(name)},
        "cell_types": {kinds[c]: float(of_kind[c]) for c in np.unique(kind)},
        "lowest": float(treated.min()),
        "highest": float(treated.max()),
        "best": best,
    }


def _pairs(depth: np.ndarray, perturbation: np.ndarray, cell_type: np.ndarray, control: int) -> np.ndarray:
    """A row for every pair: cell type, perturbation, y, mean log library size of the treated, variance of y."""
    rows = []
    for kind in np.unique(cell_type):
        own = cell_type == kind
        controls = depth[own & (perturbation == control)]
        if not len(controls):
            continue
        for name in np.unique(perturbation[own]):
            if name != control:
                treated = depth[own & (perturbation == name)]
                variance = depth[own].var() * (1 / len(treated) + 1 / len(controls))
                rows.append((kind, name, treated.mean() - controls.mean(), treated.mean(), variance))
    return np.array(rows).reshape(-1, 5)


def _fit(
    y: np.ndarray, weights: np.ndarray, name: np.ndarray, kind: np.ndarray, n_names: int, n_kinds: int
) -> tuple[float, np.ndarray, np.ndarray]:
    design = np.zeros((len(y), 1 + n_names + n_kinds))
    rows = np.arange(len(y))
    design[:, 0], design[rows, 1 + name], design[rows, 1 + n_names + kind] = 1, 1, 1
    used = np.flatnonzero(design.any(0))
    penalty = np.full(len(used), 1 / SPREAD**2)
    penalty[0] = 1e-6
    weighted = design[:, used] * weights[:, None]
    found = np.zeros(design.shape[1])
    found[used] = np.linalg.solve(weighted.T @ design[:, used] + np.diag(penalty), weighted.T @ y)
    return float(found[0]), found[1 : 1 + n_names], found[1 + n_names :]
