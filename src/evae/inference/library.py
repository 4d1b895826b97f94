"""The library sizes of predicted cells: as the checkpoint predicts them, of the controls, of the training cells."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from evae.inference.sampling import ControlFacts, rows_by_parts
from evae.models.contract_evae import EvaeError, near_matches

CHOICES = ("predicted", "controls", "training")
NOTABLE = 1.5  # ratio of the medians of predicted cells and controls, or its inverse, that is worth a sentence


def choose_library_sizes(
    how: str | Any | None,
    processor: Any,
    obs: pd.DataFrame,
    found: ControlFacts | None,
    sources: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str]:
    """Library sizes, float32 (cells,), and where they come from.

    Args:
        how: one of CHOICES, or numbers (cells,). None takes what training found to be best on left-out pairs, or
            "controls" where the checkpoint does not say; without controls "training".
        processor: the checkpoint's.
        obs: one row a cell, with `perturbation` and `cell_type`.
        found, sources: the controls, and the one of every cell; None without controls.
        rng: of the draws from the training cells.

    Raises:
        EvaeError: another word, wrong numbers, or what needs controls without them.
    """
    if how is not None and not isinstance(how, str):
        given = np.asarray(how, dtype=np.float32)
        if given.shape != (len(obs),) or not (np.isfinite(given).all() and (given >= 1).all()):
            raise EvaeError(f"library_size must be {len(obs):,} numbers of 1 or more, one a predicted cell.")
        return given, "given"
    model = processor.library_model
    if how is None:
        how = (model["best"] if model else "controls") if found is not None else "training"
    if how not in CHOICES:
        raise EvaeError(f"library_size is '{how}'. {near_matches(how, CHOICES)}")
    if how == "training":
        return processor.sample_library_size(len(obs), rng), "training cells"
    if found is None or sources is None:
        raise EvaeError(f"library_size='{how}' needs controls; give them, or take 'training'.")
    sizes = found.library_size[sources]
    if how == "controls":
        return sizes, how
    if model is None:
        raise EvaeError("this checkpoint does not predict library sizes; take 'controls' or 'training'.")
    return np.maximum(np.round(sizes * _factors(model, processor, obs, found)), 1).astype(np.float32), how


def _factors(model: dict[str, Any], processor: Any, obs: pd.DataFrame, found: ControlFacts) -> np.ndarray:
    """How many times the library size of its control each cell has, (cells,).

    The mean of a group stays within what training saw of treated cells: beyond it the tokenizer was never trained, and
    controls that are shallower than all that training saw say more of their sequencing than of the cells.
    """
    factors, rows_of, names = np.ones(len(obs)), rows_by_parts(processor), processor.names()
    parts_of = names.parts(obs["perturbation"].unique())
    pairs = obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).indices
    for (kind, name), rows in pairs.items():
        parts = [part for part in parts_of[str(name)] if part != processor.control]
        if not parts:
            continue
        own, row = model["perturbations"], rows_of.get(frozenset(parts))
        known = None if row is None else own.get(processor.perturbations[row])
        change = sum(_change(names, own, part) for part in parts) if known is None else known
        depth = float(np.log(np.maximum(found.library_size[found.rows[str(kind)]], 1)).mean())
        wanted = depth + model["mean"] + change + model["cell_types"].get(str(kind), 0.0)
        factors[rows] = np.exp(np.clip(wanted, model["lowest"], model["highest"]) - depth)
    return factors


def _change(names: Any, known: dict[str, float], part: str) -> float:
    """That of a perturbation; of an unseen dose what lies between the known ones; 0 where nothing is known."""
    said = names.known.read(part)
    if part in known or said is None:
        return known.get(part, 0.0)
    return sum(weight * known[t.label] for t, weight in names.known.neighbours(said, known.__contains__))


def compare_with_controls(obs: pd.DataFrame, found: ControlFacts | None) -> dict[str, float]:
    """Medians of the library size of the predicted cells and the controls; warns where they are far apart."""
    medians = {"predicted": float(np.median(obs["library_size"]))}
    if found is None:
        return medians
    medians["controls"] = float(np.median(found.library_size))
    ratio = medians["predicted"] / max(medians["controls"], 1)
    if not 1 / NOTABLE <= ratio <= NOTABLE:
        warnings.warn(
            f"the predicted cells have a median of {medians['predicted']:,.0f} molecules over the panel, the controls "
            f"{medians['controls']:,.0f}; choose with library_size whose depth they shall have ({', '.join(CHOICES)}).",
            stacklevel=3,
        )
    return medians
