"""Doses and times that a prediction asks for: the labels of what the model knows, and what is told of other doses."""

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evae.common.messages import number_of
from evae.data.reading.labels import label_texts
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.treatments_evae import Treatment

Amounts = float | Sequence[float] | None


def treated(
    processor: Any, names: Iterable[str], dose: Amounts = None, dose_unit: str | None = None, time: Amounts = None
) -> list[str]:
    """The labels of every name at every dose and time; what is left out is taken where training knew only one.

    Args:
        processor: the checkpoint's.
        names: agents, or labels that say all; the control stays as it is.
        dose: in `dose_unit`; that of the agent's known doses if None.
        time: hours.

    Raises:
        EvaeError: a model without doses, or a name that leaves open which dose, time or kind is meant.
    """
    known = processor.names()
    if (dose is not None or time is not None) and not known.known.treatments:
        raise EvaeError("this model knows no doses and times; prepare its dataset with dose_key, and train it anew.")
    amounts = list(product(_listed(dose), _listed(time)))
    labels = [
        name if name == processor.control else known.complete(name, own, dose_unit, hours)
        for name in names
        for own, hours in amounts
    ]
    return list(dict.fromkeys(labels))


def _listed(values: Amounts) -> list[float | None]:
    if values is None or isinstance(values, int | float | np.number):
        return [values if values is None else float(values)]
    if not list(values):
        raise EvaeError("no dose or time was given; give at least one number, or leave it out.")
    return list(values)


def warn_beyond(processor: Any, labels: Iterable[str]) -> None:
    """Warn (UserWarning) of doses and times outside those that training saw of the same agent."""
    if not processor.treatments:
        return
    names = processor.names()
    trained = {name for own in (processor.training_pairs or {}).values() for name in own}
    seen = [said for parts in names.parts(trained).values() for part in parts if (said := names.known.read(part))]
    beyond = []
    for label, parts in names.parts(labels).items():
        for said in filter(None, map(names.known.read, parts)):
            own = [t for t in seen if t.agent == said.agent]
            doses = [t.dose for t in own if t.dose_unit == said.dose_unit]
            if _outside(said.dose, doses) or _outside(said.time, [t.time for t in own]):
                beyond.append(label)
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        warnings.warn(
            f"'{beyond[0]}'{more} lies beyond the doses or times that training saw of it; take such a prediction for a "
            "guess (beyond those of all perturbations, it stays that of the nearest).",
            stacklevel=2,
        )


def _outside(value: float | None, seen: list[float | None]) -> bool:
    known = [v for v in seen if v is not None]
    return value is not None and bool(known) and not min(known) * (1 - 1e-9) <= value <= max(known) * (1 + 1e-9)


def add_treatments(obs: pd.DataFrame, processor: Any) -> None:
    """Add the columns `agent`, `dose`, `dose_unit` and `time` (hours) where the model knows treatments.

    Args:
        obs: of the cells to draw, with `perturbation`; changed. Of combinations they are empty but for the agent.
        processor: the checkpoint's.
    """
    if not processor.treatments:
        return
    names, labels = processor.names(), obs["perturbation"].astype(str)
    said = {label: names.known.read(label) or Treatment(label) for label in labels.unique()}
    for column in ("agent", "dose_unit"):
        obs[column] = pd.Categorical([getattr(said[label], column) for label in labels])
    for column in ("dose", "time"):
        values = {label: getattr(one, column) for label, one in said.items()}
        obs[column] = [math.nan if values[label] is None else values[label] for label in labels]


def treatments_asked(prior: Any, labels: Sequence[str]) -> dict[str, Tensor]:
    """The argument `treatments` of a prior that reads them, for cells with these labels."""
    found = prior.processor.treatments_of(labels)
    return {"treatments": found} if found is not None and prior.model.config.reads_treatments else {}


def batches_of(prior: Any, obs: pd.DataFrame, key: str | None) -> np.ndarray | None:
    """Ids of the batches of control cells, int64 (cells,), that of none where the model knows not; None without a key.

    Args:
        prior: a checkpoint.
        obs: of the controls.
        key: obs column of the batch, or several with commas, as for `prepare_dataset`.

    Raises:
        EvaeError: a prior that does not read batches, or no such column.
    """
    if key is None:
        return None
    if not getattr(prior.model.config, "condition_on_batch", False):
        raise EvaeError(f"{prior.name} reads no batches; leave batch_key out, or train with model.condition_on_batch.")
    columns = [key] if key in obs else [column.strip() for column in key.split(",")]
    for column in columns:
        if column not in obs:
            raise EvaeError(f"the controls have no obs column '{column}'. {near_matches(column, list(obs))}")
    names = pd.Series(list(map(" / ".join, zip(*(label_texts(obs[c]) for c in columns), strict=True))))
    known = {name: number for number, name in enumerate(prior.processor.batches or [])}
    unknown = sorted(set(names) - set(known))
    if unknown:
        warnings.warn(
            f"{number_of(len(unknown), 'batch of the controls is', 'batches of the controls are')} new to the model "
            f"(such as '{unknown[0]}'); it draws their cells as of an unknown batch.",
            stacklevel=2,
        )
    return names.map(known).fillna(len(known)).to_numpy(dtype=np.int64)


def effect_of_treatment(names: Any, effects: Tensor, rows: dict[frozenset[str], int], part: str) -> Tensor:
    """The known effect of one perturbation; between known doses linear in log dose, beyond them that of the nearest.

    Args:
        names: `PerturbationNames` of the model.
        effects: of the training perturbations in a cell type, (perturbations, values), NaN where unknown.
        rows: parts of a training perturbation -> its row.
        part: label of a single perturbation.
    """

    def known(label: str) -> bool:
        row = rows.get(frozenset([label]))
        return row is not None and not bool(effects[row].isnan().any())

    if known(part) or (said := names.known.read(part)) is None:
        return effects[rows[frozenset([part])]] if known(part) else torch.full_like(effects[0], torch.nan)
    around = names.known.neighbours(said, known)
    if not around:
        return torch.full_like(effects[0], torch.nan)
    return torch.stack([weight * effects[rows[frozenset([t.label])]] for t, weight in around]).sum(0)
