"""What the priors' samplers share: classifier-free guidance, the number of cells, the check for a compiler."""

import math
import os
import shlex
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contract_evae import EvaeError

GUIDES = ("control", "perturbation", "all")


def check_compiler() -> None:
    """Raise `EvaeError` if there is no C++ compiler for `torch.compile`."""
    if not shutil.which(shlex.split(os.environ.get("CXX") or "g++")[0]):
        raise EvaeError("to compile needs a C++ compiler; install g++, name another in CXX, or leave `compile` out.")


def cells_asked_for(n_cells: int | None, *conditions: Tensor | None) -> int:
    """How many cells to draw: `n_cells`, else as many as the conditions have, else one."""
    given = [x for x in conditions if x is not None]
    return len(given[0]) if n_cells is None and given else n_cells or 1


def takes_temperature(prior: Any) -> bool:
    """Whether a prior draws codes, whose logits a temperature divides; the flow draws latents."""
    return getattr(prior, "training_input", "") == "codes"


def temperature_of(config: Any, given: float | None) -> float:
    """What divides the logits: as given, else as configured.

    Raises:
        EvaeError: not a number above 0.
    """
    temperature = config.sampling_temperature if given is None else given
    if not isinstance(temperature, int | float | np.number) or not 0 < temperature < math.inf:
        raise EvaeError(
            f"temperature is {temperature!r}; give a number above 0: 1 draws as the prior has learnt, 0.01 nearly "
            "always the most probable codes."
        )
    return float(temperature)


def conditions_with_nulls(
    prior: Any, n_cells: int, conditions: tuple[Tensor | None, ...], guidance_scale: float, guide: str | None
) -> Tensor:
    """Condition vectors (cells, hidden_size); with guidance (2 * cells, ...), those of the nulls last.

    Args:
        prior: any of the three.
        n_cells: cells to draw.
        conditions: in the order of `ConditionEmbedding.forward`.
        guidance_scale, guide: see `EvaePrior.sample`.
    """
    condition = prior.condition(n_cells, *conditions)
    _, cell_type_ids, library_size, context, effect, _, batch_ids = conditions
    control = prior.config.control_id
    if guide is None:
        guide = "control" if prior.config.reads_controls and control >= 0 else "perturbation"
    if guide not in GUIDES:
        raise EvaeError(f"guide '{guide}' does not exist; choose one of {', '.join(GUIDES)}.")
    if guidance_scale == 1:
        return torch.as_tensor(condition)
    if not 0 <= guidance_scale < math.inf:
        raise EvaeError(f"guidance_scale is {guidance_scale}; give 0 or more.")
    if guide == "control":
        if control < 0:
            raise EvaeError("this prior does not know which perturbation is the control; set another guide.")
        of_control = torch.full((n_cells,), control, device=prior.device)
        none = None if effect is None else torch.zeros_like(effect)
        size = (n_cells, 1, prior.config.treatment_size)
        plain = torch.full(size, torch.nan, device=prior.device) if prior.config.reads_treatments else None
        null = prior.condition(n_cells, of_control, cell_type_ids, library_size, context, none, plain, batch_ids)
        return torch.cat([condition, null])
    if not prior.config.condition_dropout:
        raise EvaeError("this prior was trained with condition_dropout 0, so it cannot be guided; train it anew.")
    kept = (cell_type_ids, context, batch_ids) if guide == "perturbation" else (None, None, None)
    null = prior.condition(n_cells, None, kept[0], library_size, kept[1], batch_ids=kept[2])
    return torch.cat([condition, null])


def guided(network: Callable[..., Tensor], scale: float, *inputs: Tensor) -> Tensor:
    """`network(*inputs)` with classifier-free guidance; 1 is none.

    With guidance `network` gets the inputs twice: for the conditions of the cells, then for their nulls.
    """
    if scale == 1:
        return network(*inputs)
    conditional, null = network(*(torch.cat([x, x]) for x in inputs)).chunk(2)
    return null + scale * (conditional - null)
