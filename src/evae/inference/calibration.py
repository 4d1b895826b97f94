"""Calibrates the confidence of a prior's predictions on pairs of a dataset that training did not see."""

import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import rankdata

from evae.common.files import write_bytes
from evae.common.group_means import means_and_errors
from evae.data.format import AnyDataset, Dataset, Pair
from evae.data.streaming.split_anndata import DatasetSplit
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.inference.checkpoint import PROCESSOR
from evae.inference.confidence import FACTS, facts_of, features, fitted, left_out, moments, size_of, with_confidence
from evae.inference.held_out import READ_BATCH, held_out_cells, predict_held_out
from evae.inference.pipeline import Pipeline
from evae.models.contract_evae import EvaeError

FEWEST_PAIRS = 10  # with fewer, nine of ten errors have no upper bound
FEWEST_CELLS = 20  # of a pair: its mean is noise below
LIMIT = 0.99  # of correlations, whose z is finite
NEAR = 0.05  # distance of controls, log1p CP10K: batches of one cell line lie farther from one another

Mean = tuple[int, np.ndarray, np.ndarray]  # cells, their mean of log1p CP10K, the square of its error
Means = dict[Pair, Mean]


def calibrate(
    pipe: Pipeline, dataset: AnyDataset, *, seed: int = 0, batch_size: int = 256, progress: bool = True
) -> pd.DataFrame:
    """Learn how far predictions may be trusted, from all pairs that a dataset holds out.

    The held-out cells are read: they teach the confidence, not the model, whose predictions stay as they were.

    Args:
        pipe: a prior, trained on the dataset; `pipe.processor.calibration` is set, and is saved with the processor.
        dataset: the folder, Hub id or open `Dataset`.
        seed, batch_size, progress: of the predictions, as in `Pipeline.predict`.

    Returns:
        DataFrame, one row a held-out pair: the facts and expectations as `Pipeline.effects` gives them (each from the
        regression without that pair), with the real `error`, the `correlation` of the predicted with the real mean
        change, and the number of real `cells`.

    Raises:
        EvaeError: fewer than 10 held-out pairs of 20 cells or more, or names that the model does not know.
    """
    dataset = Dataset.open(dataset)
    pairs = {pair: n for pair, n in held_out_cells(dataset.info).items() if n >= FEWEST_CELLS}
    if len(pairs) < FEWEST_PAIRS:
        raise EvaeError(
            f"{dataset} holds out too few pairs to calibrate on: {len(pairs)} of {FEWEST_CELLS} cells or more; "
            f"prepare a dataset that holds out {FEWEST_PAIRS} or more, and train on it."
        )
    predicted = predict_held_out(pipe, dataset, seed=seed, batch_size=batch_size, progress=progress)
    control = str(dataset.info.control)
    train, real = means_of_split(dataset, "train"), means_of_split(dataset, "test")
    change = predicted_changes(predicted, train, control)
    known, profiles = training_facts(train, control)
    facts = facts_of({pair: change[pair] for pair in pairs}, dict.fromkeys(dataset.info.cell_types, 0.0), known)
    found = [_real(change[pair], real[pair], train[pair[0], control]) for pair in pairs]
    table = facts.assign(
        error=[error for error, _ in found], correlation=[r for _, r in found], cells=list(pairs.values())
    )
    pipe.processor.calibration = _learned(table, known, profiles)
    return _told_by_the_others(table, pipe.processor.calibration)


def means_of_split(dataset: Dataset, split: str) -> Means:
    """Cells, means of log1p CP10K and squares of their errors of every pair of a split, the control's too."""
    cells = DatasetSplit(dataset, split)
    labels = cells.labels()
    groups = labels.groupby(["cell_type", "perturbation"], observed=True, sort=False)
    names, group = list(groups.indices), groups.ngroup().to_numpy()
    n, sums, squares = np.bincount(group, minlength=len(names)), 0.0, 0.0
    order = groups.ngroup().groupby([labels["cell_type"], labels["perturbation"]], observed=True).first()
    for start in range(0, cells.n_cells, READ_BATCH):
        values = log1p_cp10k(cells.counts(start, min(start + READ_BATCH, cells.n_cells)), "raw counts")
        own = group[start : start + READ_BATCH]
        member = sp.csr_matrix((np.ones(len(own)), (own, np.arange(len(own)))), shape=(len(names), len(own)))
        sums, squares = sums + (member @ values).toarray(), squares + (member @ values.multiply(values)).toarray()
    means, errors = means_and_errors(n, np.asarray(sums), np.asarray(squares))
    return {(str(c), str(p)): (int(n[g]), means[g], errors[g]) for (c, p), g in order.items()}


def predicted_changes(cells: ad.AnnData, train: Means, control: str) -> dict[Pair, tuple[np.ndarray, np.ndarray]]:
    """Pair -> mean change of the predicted cells over the training controls, and the square of its noise."""
    values = log1p_cp10k(cells.X, "raw counts")
    found = {}
    for (kind, name), rows in cells.obs.groupby(
        ["cell_type", "perturbation"], observed=True, sort=False
    ).indices.items():
        mean, noise = moments(values[rows])
        _, base, base_noise = train[str(kind), control]
        found[str(kind), str(name)] = mean - base, noise + base_noise
    return found


def training_facts(train: Means, control: str) -> tuple[dict[str, tuple[int, float | None]], dict[str, list[float]]]:
    """Perturbation -> (training cells, agreement of its cell types); cell type -> mean of its controls."""
    bases = {kind: mean for (kind, name), (_, mean, _) in train.items() if name == control}
    known: dict[str, tuple[int, float | None]] = {}
    for name in dict.fromkeys(name for _, name in train if name != control):
        own = {kind: (n, mean) for (kind, other), (n, mean, _) in train.items() if other == name}
        shifts = [mean - bases[kind] for kind, (n, mean) in own.items() if kind in bases and n >= FEWEST_CELLS]
        agreement = None
        if len(shifts) > 1:
            table = np.corrcoef(np.stack(shifts))
            agreement = float(np.nan_to_num(table[np.triu_indices(len(shifts), 1)]).mean())
        known[name] = sum(n for n, _ in own.values()), agreement
    return known, {kind: np.round(mean, 4).tolist() for kind, mean in bases.items()}


def _real(change: tuple[np.ndarray, np.ndarray], real: Mean, base: Mean) -> tuple[float, float]:
    """Error of a predicted mean change, and its correlation with the real one. Both are over the same controls."""
    moved = real[1] - base[1]
    noise = change[1] - base[2] + real[2]  # that of the controls cancels
    correlation = np.corrcoef(change[0], moved)[0, 1] if change[0].std() and moved.std() else 0.0
    return size_of(change[0] - moved, noise), float(correlation)


def _learned(table: pd.DataFrame, known: dict[str, Any], profiles: dict[str, list[float]]) -> dict[str, Any]:
    """What the processor keeps: plain values."""
    names = [name for name in FACTS if table[name].notna().all()]
    x, targets = features(table, names), _targets(table)
    out: dict[str, Any] = {"pairs": len(table), "facts": names}
    for what, y in targets.items():
        without = left_out(x, y)
        out[what] = fitted(x, y) | {"orders": rank_correlation(without, table[what].to_numpy())}
        if what == "error":
            place = int(np.ceil(0.9 * (len(y) + 1))) - 1
            out[what]["upper"] = float(np.exp(np.sort(y - without)[min(place, len(y) - 1)]))
    apart = [
        min(float(np.sqrt(np.mean((np.array(a) - np.array(b)) ** 2))) for other, b in profiles.items() if other != kind)
        for kind, a in profiles.items()
        if len(profiles) > 1
    ]
    return out | {
        "lowest": x.min(0).tolist(), "highest": x.max(0).tolist(),
        "control_distance": max(float(np.median(apart)), NEAR) if apart else NEAR,
        "perturbations": {name: list(facts) for name, facts in known.items()}, "controls": profiles,
    }  # fmt: skip


def _targets(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {
        "error": np.log(table["error"].to_numpy()),
        "correlation": np.arctanh(table["correlation"].to_numpy().clip(-LIMIT, LIMIT)),
    }


def _told_by_the_others(table: pd.DataFrame, calibration: dict[str, Any]) -> pd.DataFrame:
    """The pairs, each with what the regression without it expects."""
    x, targets = features(table, calibration["facts"]), _targets(table)
    error = np.exp(left_out(x, targets["error"]))
    return with_confidence(table, calibration).assign(
        expected_error=error,
        error_90=error * calibration["error"]["upper"],
        expected_correlation=np.tanh(left_out(x, targets["correlation"])),
    )


def keep_calibration(pipe: Pipeline, folder: str | Path) -> Path:
    """Write the processor with its calibration into the model's folder, whole or not at all."""
    with tempfile.TemporaryDirectory() as place:
        pipe.processor.save_pretrained(place)
        return write_bytes(Path(folder) / PROCESSOR, (Path(place) / PROCESSOR).read_bytes())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one of the two is constant."""
    ranks = rankdata(a), rankdata(b)
    return float(np.corrcoef(*ranks)[0, 1]) if min(r.std() for r in ranks) > 0 else 0.0
