"""One training step, of ours and of any other model, as the benchmark times it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evae.models.randomness_evae import CellStreams
from evae.training.resume.state import build_optimizer


def training_step(model: nn.Module, **inputs: Tensor) -> Callable[[], None]:
    """One update of AdamW as in training."""
    n_cells = len(next(iter(inputs.values())))

    def loss() -> Tensor:
        found: Tensor = model(**inputs, generator=CellStreams(0, range(n_cells))).loss
        return found

    return update_step(model, loss)


def update_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One update of AdamW of any model, down the gradient of a loss."""
    model.train()
    optimizer = build_optimizer(model, 1e-4, 1e-3)

    def step() -> None:
        found = loss()
        with torch.autocast(found.device.type, enabled=False):  # as training leaves it before the backward pass
            found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
