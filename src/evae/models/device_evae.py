"""Where a model computes: the one switch between what suits a CPU and what suits an accelerator.

A CPU gains by looking at the values first: cells with the same counts share tokens, conditions are worked out once,
padding is cut. On an accelerator the host launches kernels ahead of the device. Reading a value back makes it wait for
all of them, and many small kernels take longer to launch than to run. There everything is done in few large steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

MEMORY = 80 * 2**30  # bytes of the accelerator that the CPU plays
SHARE = 64  # an activation may have a number for so many bytes of memory; in float32 it is then a sixteenth of it
MOST_NUMBERS = 2**30  # kernels count to 2**31

_forced = False


def on_accelerator(device: torch.device) -> bool:
    """Whether to work in few large steps that read nothing back."""
    return _forced or device.type != "cpu"


@contextmanager
def as_on_accelerator() -> Iterator[None]:
    """A context in which the CPU is treated as an accelerator, to test that path and to count its operations."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def checks_itself(device: torch.device) -> bool:
    """Whether `torch._assert_async` works there: it checks on the device, and the host does not wait."""
    return _forced or device.type == "cuda"


def most_numbers(device: torch.device, on_cpu: int) -> int:
    """How many numbers the largest activation of a large step may have; `on_cpu` where memory is not known."""
    if not (_forced or device.type == "cuda"):
        return on_cpu
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else MEMORY
    return min(MOST_NUMBERS, max(on_cpu, memory // SHARE))


def in_precision(x: Tensor) -> Tensor:
    """`x` as matrix products under autocast take it: several of the same `x` then cast it once."""
    return x.to(cast_to(x))


def cast_to(x: Tensor) -> torch.dtype:
    """The type in which matrix products take `x`: that of autocast where it is on."""
    device = x.device.type
    if x.is_meta or x.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def in_its_own_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward` of a module of a few small layers, without autocast: casts would take longer than what they save."""

    @wraps(forward)
    def wrapped(self: Any, n_cells: int, *args: Any, **kwargs: Any) -> Tensor:
        device = next(self.parameters()).device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return forward(self, n_cells, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return forward(self, n_cells, *args, **kwargs)

    return wrapped
