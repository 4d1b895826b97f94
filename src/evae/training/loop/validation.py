"""Validation over a fixed set of cells, and the two numbers that say how much of a codebook is used.

use        = codes drawn at least once / codebook size
perplexity = exp(- sum_k p_k log p_k),  p_k the share of code k among all drawn codes
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Tensor]
Tally = Callable[[Any, Batch], dict[str, Tensor]]


def codebook_statistics(code_counts: Tensor) -> dict[str, float]:
    """Use (0 to 1) and perplexity (1 to the codebook's size) from how often each code was drawn, (codes,)."""
    counts = code_counts.double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return {"codebook_use": float((counts > 0).double().mean()), "codebook_perplexity": float(entropy.exp())}


def tally_loss(output: Any, batch: Batch) -> dict[str, Tensor]:
    """Sums over the cells of one batch, from which `mean_loss` takes the mean."""
    cells = torch.tensor(len(next(iter(batch.values()))), dtype=torch.float64)
    return {"cells": cells, "loss": output.loss.detach().double().cpu() * cells}


def mean_loss(sums: dict[str, Tensor]) -> dict[str, float]:
    """The mean loss over all tallied cells."""
    return {"loss": float(sums["loss"] / sums["cells"])}


def take_cells(batches: Iterable[Batch], limit: int) -> list[Batch]:
    """The first `limit` cells of `batches`, kept in memory."""
    taken: list[Batch] = []
    left = limit
    for batch in batches:
        taken.append({key: tensor[:left] for key, tensor in batch.items()})
        left -= len(next(iter(taken[-1].values())))
        if left <= 0:
            break
    return taken


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; the host does not wait for a GPU to have it."""
    if device.type != "cuda":
        return {key: tensor.to(device) for key, tensor in batch.items()}
    return {key: tensor.pin_memory().to(device, non_blocking=True) for key, tensor in batch.items()}


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    *,
    inputs: Sequence[str],
    tally: Tally,
    seed: int,
) -> dict[str, Tensor]:
    """Sum `tally` over all validation batches and ranks.

    Every rank takes its share of the batches. Random draws inside the model's loss come from `seed` and
    leave the training's random state untouched, so validating more or less often does not change a run.

    Args:
        model: the model, not wrapped for distribution.
        batches: the same batches on every rank.
        accelerator: device, autocast and reduction.
        inputs: the keys of a batch that the model takes.
        tally: (output, batch) -> name -> tensor to be summed; the same names and shapes for every batch.
        seed: of the random draws.

    Returns:
        The sums, on the CPU, equal on all ranks.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    sums: dict[str, Tensor] = {}
    model.eval()
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for first in range(0, len(batches), world):
            # Every rank makes as many passes, as FSDP wants; one past the last batch counts nothing.
            weight = 1.0 if first + rank < len(batches) else 0.0
            batch = batches[min(first + rank, len(batches) - 1)]
            moved = {key: tensor.to(accelerator.device) for key, tensor in batch.items()}
            with accelerator.autocast():
                output = model(**{key: moved[key] for key in inputs})
            for name, value in tally(output, moved).items():
                sums[name] = sums.get(name, 0) + value.cpu() * weight
    model.train()
    return {k: accelerator.reduce(v.to(accelerator.device), "sum").cpu() for k, v in sums.items()}
