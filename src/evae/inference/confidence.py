"""How far the predicted mean change of a pair may be trusted: told from what is known of it, as held-out pairs taught.

`calibrate` predicts pairs that training did not see and compares them with their cells. Two ridge regressions, of the
logarithm of the error and of Fisher's z of the correlation, read three facts that need no cell of the pair:

    effect          size of the predicted change, root mean square over genes of log1p CP10K, less the noise of cells
    agreement       how alike the training cell types answer the perturbation, mean correlation of their mean changes
    training_cells  cells of the perturbation in training

The spread over seeds and prompts is not among them: taken over whole means it is mostly the noise of so many cells, and
with it held-out errors were ordered no better. A fact that is not known of all calibrated pairs is left out. A pair
unlike all of these gets no number: one of fewer training cells, of a larger effect, or from controls that lie far from
the training controls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.data.format import Pair

FACTS = ("effect", "agreement", "training_cells")
MARGINS = {"effect": np.log(1.5), "agreement": 0.2, "training_cells": np.log(2.0)}  # beyond what was calibrated
LEAST = 0.1  # share of the noise below which what is left of a square cannot be told from 0
COLUMNS = ("expected_error", "error_90", "expected_correlation", "remark")


def moments(values: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every gene and the square of its standard error, (genes,) each."""
    n = values.shape[0]
    mean = np.asarray(values.mean(0), dtype=np.float64).ravel()
    square = np.asarray(values.multiply(values).mean(0), dtype=np.float64).ravel()
    return mean, (square - mean**2).clip(0) / max(n - 1, 1)


def size_of(change: np.ndarray, noise: np.ndarray) -> float:
    """Root mean square of a change over genes, the square of its noise taken out, (genes,) each."""
    expected = float(noise.mean())
    return float(np.sqrt(max(float((change**2).mean()) - expected, LEAST * expected, 1e-12)))


def facts_of(
    change: Mapping[Pair, tuple[np.ndarray, np.ndarray]], distance: Mapping[str, float], known: Mapping[str, Any]
) -> pd.DataFrame:
    """What is known of predicted pairs, one row a pair.

    Args:
        change: pair -> predicted mean change over the controls and the square of its noise, (genes,) each.
        distance: cell type -> of its controls to the nearest training controls, see `distance_to`.
        known: perturbation -> (training cells, agreement or None), as `calibrate` keeps it.
    """
    rows = []
    for (kind, name), (moved, noise) in change.items():
        cells, agreement = known.get(name, (0, None))
        rows.append((kind, name, size_of(moved, noise), np.nan if agreement is None else agreement, cells))
    table = pd.DataFrame(rows, columns=["cell_type", "perturbation", *FACTS])
    return table.assign(control_distance=[distance[kind] for kind in table["cell_type"]])


def distance_to(profile: np.ndarray, noise: np.ndarray, others: Mapping[str, Any], measured: np.ndarray) -> float:
    """Of the mean of controls to the nearest mean of training controls, root mean square over the measured genes."""
    return min(size_of(profile - np.asarray(other)[measured], noise) for other in others.values())


def features(facts: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """What the regressions read of the facts with these names, (pairs, names); NaN where it is not known."""
    agreement, cells = (facts[name].to_numpy(float) for name in ("agreement", "training_cells"))
    columns = {"effect": np.log(facts["effect"]), "agreement": agreement, "training_cells": np.log(cells.clip(1))}
    return np.column_stack([columns[name] for name in names])


def with_confidence(facts: pd.DataFrame, calibration: Mapping[str, Any]) -> pd.DataFrame:
    """The facts with COLUMNS: numbers for pairs like the calibrated ones, else NaN and a remark that says why.

    Args:
        facts: from `facts_of`.
        calibration: of the processor.
    """
    names = calibration["facts"]
    x = features(facts, names)
    low, high = (np.array(calibration[side], dtype=float) for side in ("lowest", "highest"))
    margins = np.array([MARGINS[name] for name in names])
    outside = ~((x >= low - margins) & (x <= high + margins))  # NaN too
    far = facts["control_distance"].to_numpy() > calibration["control_distance"]
    remarks = []
    for row, is_far in zip(outside, far, strict=True):
        unlike = [name.replace("_", " ") for name, is_so in zip(names, row, strict=True) if is_so]
        unlike += ["distance of the controls from training's"] * bool(is_far)
        remarks.append(f"unlike the calibrated pairs in {' and '.join(unlike)}" if unlike else "")
    trusted = np.array([not remark for remark in remarks])
    error = np.exp(predicted_by(calibration["error"], x))
    correlation = np.tanh(predicted_by(calibration["correlation"], x))
    return facts.assign(
        expected_error=np.where(trusted, error, np.nan),
        error_90=np.where(trusted, error * calibration["error"]["upper"], np.nan),
        expected_correlation=np.where(trusted, correlation, np.nan),
        remark=remarks,
    )


def fitted(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Ridge regression on standardised features, one pair's worth of penalty: plain values for `predicted_by`.

    Args:
        x: (pairs, features).
        y: (pairs,).
    """
    mean, sd = x.mean(0), x.std(0)
    sd[sd < 1e-9] = 1.0  # a fact that all pairs share tells nothing
    z = (x - mean) / sd
    weights = np.linalg.solve(z.T @ z + np.eye(x.shape[1]), z.T @ (y - y.mean()))
    return {"mean": mean.tolist(), "sd": sd.tolist(), "weights": weights.tolist(), "intercept": float(y.mean())}


def predicted_by(fit: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """What a regression says of each row of features, (pairs,)."""
    z = (np.nan_to_num(x) - np.array(fit["mean"])) / np.array(fit["sd"])
    return fit["intercept"] + z @ np.array(fit["weights"])


def left_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the regression on all other pairs says of each pair, (pairs,)."""
    rest = [np.arange(len(y)) != i for i in range(len(y))]
    return np.array([predicted_by(fitted(x[keep], y[keep]), x[i : i + 1])[0] for i, keep in enumerate(rest)])
