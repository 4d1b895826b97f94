"""What the priors' samplers share: classifier-free guidance, the number of cells, the check for a compiler."""

import os
import shlex
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from .contract_evae import EvaeError


def check_compiler() -> None:
    """Raise `EvaeError` if there is no C++ compiler for `torch.compile`."""
    if not shutil.which(shlex.split(os.environ.get("CXX") or "g++")[0]):
        raise EvaeError("to compile needs a C++ compiler; install g++, name another in CXX, or leave `compile` out.")


def cells_asked_for(n_cells: int | None, *conditions: Tensor | None) -> int:
    """How many cells to draw: `n_cells`, else as many as the conditions have, else one."""
    given = [x for x in conditions if x is not None]
    return len(given[0]) if n_cells is None and given else n_cells or 1


def guided(network: Callable[..., Tensor], scale: float, *inputs: Tensor) -> Tensor:
    """`network(*inputs)` with classifier-free guidance; 1 is none.

    With guidance `network` gets the inputs twice: for the conditions of the cells, then for their nulls.
    """
    if scale == 1:
        return network(*inputs)
    conditional, null = network(*(torch.cat([x, x]) for x in inputs)).chunk(2)
    return null + scale * (conditional - null)
