"""Effects of perturbations as a table of log2 fold changes: measured in other cell types, or told by features.

A perturbation that some training cell type has seen gets its mean log2 fold change over these cell types, shrunk. A
combination of such perturbations that no cell has seen gets the sum of theirs. Any other needs a vector in a feature
table, which says its effect from those of all measured ones, see `features`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from evae.common.shrinkage import combine, shrink
from evae.data.format import AnyDataset, Dataset
from evae.effects.features import METHODS, read_vectors, told_by_features
from evae.models.contract_evae import EvaeError, near_matches, parts_of
from evae.training.shifts import read_shifts

Known: TypeAlias = tuple[np.ndarray, str]  # an effect, (genes,), and where it comes from


@dataclass(frozen=True)
class EffectEstimates:
    """Effects and where they come from.

    Attributes:
        log2_fold_changes: perturbations x genes of the dataset's panel, float64.
        source: of each perturbation "measured", "sum of its parts" or the method that read its features.
        unknown: perturbations that were not asked for by name and of which nothing is known.
    """

    log2_fold_changes: pd.DataFrame
    source: pd.Series
    unknown: list[str]


def estimate_effects(
    dataset: AnyDataset,
    perturbations: Iterable[str] | None = None,
    *,
    features: str | Path | None = None,
    method: str = "ridge",
    leave_out: Iterable[str] = (),
    combination_sign: str = "+",
) -> EffectEstimates:
    """Estimate the effects of perturbations from the training cells of a dataset.

    Args:
        dataset: a folder, a Hub id or an open `Dataset`. Held-out cells are never read.
        perturbations: names; all of the dataset and of the feature table if None.
        features: npz, csv, tsv or parquet of vectors by name, for perturbations that no training cell has.
        method: how features tell an effect: "ridge" (the penalty chosen by leaving perturbations out), "nearest" (the
            mean of the 5 nearest by cosine similarity), "kernel" ridge or "bilinear", see `evae.effects.features`.
        leave_out: cell types that are not read: for a trial with cells whose answer is known.
        combination_sign: joins the parts of a combination.

    Raises:
        EvaeError: a name of which nothing is known, an unknown method or cell type, a table that cannot be read, no
            cell type with both perturbed cells and controls, too few measured perturbations with a vector.
    """
    if method not in METHODS:
        raise EvaeError(f"method is '{method}'. {near_matches(method, METHODS)}")
    dataset = Dataset.open(dataset)
    measured = _measured(dataset, list(leave_out))
    vectors = read_vectors(features) if features else {}
    asked = None if perturbations is None else list(dict.fromkeys(map(str, perturbations)))
    control = dataset.info.control
    names = [p for p in dict.fromkeys([*dataset.info.perturbations, *vectors]) if p != control]
    wanted = names if asked is None else [p for p in asked if p != control]
    unseen = [p for p in wanted if p in vectors and p not in measured]
    told = {name: (effect, method) for name, effect in told_by_features(measured, vectors, unseen, method).items()}
    parts = {name: parts_of(name, set(names), control, combination_sign) for name in {*measured, *wanted}}
    by_parts = {frozenset(parts[name]): (effect, "measured") for name, effect in measured.items()}
    effects, source = {}, {}
    for name in wanted:
        known = by_parts.get(frozenset(parts[name])) or told.get(name) or _sum_of(parts[name], by_parts, told)
        if known is not None:
            effects[name], source[name] = known
        elif asked is not None:
            raise EvaeError(
                f"nothing is known of '{name}': no training cell has it and no feature table has its vector; give "
                f"features=FILE with it. {near_matches(name, list(measured))}"
            )
    table = pd.DataFrame.from_dict(effects, orient="index", columns=list(dataset.info.genes))
    unknown = [name for name in wanted if name not in effects]
    return EffectEstimates(table.rename_axis("perturbation"), pd.Series(source, dtype=object), unknown)


def _sum_of(parts: list[str], measured: dict[frozenset[str], Known], told: dict[str, Known]) -> Known | None:
    """The effect of a combination from those of its parts; None where one is not known."""
    each = [measured.get(frozenset([part])) or told.get(part) for part in parts]
    known = [effect for effect, _ in filter(None, each)]
    return (np.sum(known, axis=0), "sum of its parts") if len(known) == len(parts) > 1 else None


def _measured(dataset: Dataset, leave_out: list[str]) -> dict[str, np.ndarray]:
    """Effects of the perturbations that training cells show, (genes,) each."""
    kinds = list(dataset.info.cell_types)
    for name in leave_out:
        if name not in kinds:
            raise EvaeError(f"no cell type '{name}' to leave out. {near_matches(name, kinds)}")
    shifts, names = read_shifts(dataset), dataset.info.perturbations
    used = ~np.isin(shifts.cell_type, [kinds.index(name) for name in leave_out])
    found = {}
    for p in np.unique(shifts.perturbation[used]):
        own = used & (shifts.perturbation == p)
        found[names[p]] = np.zeros(shifts.change.shape[1])
        counted = (shifts.variance[own] > 0).all(0)  # the others have no molecule in any training cell
        found[names[p]][counted] = shrink(*combine(shifts.change[own][:, counted], shifts.variance[own][:, counted]))
    if not found:
        raise EvaeError(
            f"no cell type of {dataset} has both perturbed training cells and controls, so that no effect is known; "
            "prepare it with a --split that leaves some for training."
        )
    return found
