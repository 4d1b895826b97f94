"""How far the predictions of old perturbations move in a fine-tuning.

The model before and the model after predict the same old pairs from the same controls with the same random numbers. For
each pair the drift is the root mean square, over genes, of the difference of the means of log1p CP10K. Beside it stand
the same distance between two seeds of the model before, which is what the number of cells alone makes, and the distance
from the controls, which is how large the effect is.
"""

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from evae.common.messages import number_of
from evae.data.format import Dataset, Pair
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.inference.checkpoint import Checkpoint
from evae.inference.held_out import read_controls
from evae.inference.pipeline import Pipeline
from evae.inference.sampling import knows_by_context, reads_controls

MOST_NAMES, MOST_KINDS = 16, 2


def measure_drift(before: Checkpoint, after: Checkpoint, dataset: Dataset, n_cells: int, seed: int) -> pd.DataFrame:
    """The drift of old pairs, at most `MOST_NAMES` perturbations in `MOST_KINDS` cell types.

    Args:
        before, after: the prior as it was, and fine-tuned.
        dataset: whose training controls the cells start from.
        n_cells: predicted of every pair.
        seed: of the draws.

    Returns:
        DataFrame: `cell_type`, `perturbation`, `drift`, `noise`, `effect` (NaN where no controls could be taken).
    """
    controls = _controls(before, dataset, n_cells)
    names = [name for name in before.processor.perturbations if name != before.processor.control]
    if len(names) > MOST_NAMES:
        names = [names[i * len(names) // MOST_NAMES] for i in range(MOST_NAMES)]
    kinds = before.processor.cell_types if controls is None else controls.obs["cell_type"].unique().tolist()
    pairs = {(kind, name): n_cells for kind in kinds[:MOST_KINDS] for name in names}
    options: dict[str, Any] = {
        "effect_transfer": 0.0,
        "n_cells": pairs,
        "library_size": "training" if controls is None else "controls",
    }
    pipes = [Pipeline(checkpoint, checkpoint.model.device) for checkpoint in (before, before, after)]
    first, second, moved = (
        _means(pipe.predict(controls, seed=s, progress=False, **options), pairs)
        for pipe, s in zip(pipes, (seed, seed + 1, seed), strict=True)
    )
    resting: dict[str, Any] = dict.fromkeys(kinds, np.nan)
    if controls is not None:
        resting = {kind: _mean(controls[(controls.obs["cell_type"] == kind).to_numpy()]) for kind in kinds}
    return pd.DataFrame(
        [
            {
                "cell_type": kind,
                "perturbation": name,
                "drift": _distance(moved[kind, name], first[kind, name]),
                "noise": _distance(second[kind, name], first[kind, name]),
                "effect": _distance(first[kind, name], resting[kind]),
            }
            for kind, name in pairs
        ]
    )


def said(table: pd.DataFrame, n_cells: int) -> str:
    """One sentence for a person."""
    if table.empty:
        return "there is no old perturbation whose drift could be measured"
    worst = table.loc[table["drift"].idxmax()]
    drift, noise, effect = (table[name].median() for name in ("drift", "noise", "effect"))
    return (
        f"old perturbations moved by {drift:.3g} (median of {number_of(len(table), 'pair')}, "
        f"{number_of(n_cells, 'cell')} each; at most {worst['drift']:.3g}, {worst['perturbation']} in "
        f"{worst['cell_type']}), two seeds differ by {noise:.3g} and effects are {effect:.3g}; root mean square over "
        "genes, log1p CP10K"
    )


def _controls(before: Checkpoint, dataset: Dataset, most: int) -> ad.AnnData | None:
    """Training controls of cell types that the model before can predict in; None where there are none."""
    counts = dataset.info.statistics["cell_counts"]["train"]
    any_kind = reads_controls(before) or knows_by_context(before)
    known = before.processor.cell_types
    kinds = [k for k, row in counts.items() if row.get(dataset.info.control) and (any_kind or k in known)]
    if not kinds:
        return None
    cells = read_controls(dataset, kinds[:MOST_KINDS])
    rows = [np.flatnonzero(cells.obs["cell_type"] == kind)[:most] for kind in kinds[:MOST_KINDS]]
    return cells[np.concatenate(rows)].copy()


def _means(cells: ad.AnnData, pairs: dict[Pair, int]) -> dict[Pair, np.ndarray]:
    rows = cells.obs.groupby(["cell_type", "perturbation"], observed=True).indices
    return {pair: _mean(cells[rows[pair]]) for pair in pairs}


def _mean(cells: ad.AnnData) -> np.ndarray:
    return np.asarray(log1p_cp10k(cells.X, "raw counts").mean(0)).ravel()


def _distance(one: np.ndarray, other: Any) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2)))
