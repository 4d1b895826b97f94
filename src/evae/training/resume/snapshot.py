"""Content of a checkpoint: taken from a running training, and put back into one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from evae.common.messages import first_line, number_of
from evae.data.streaming.order import PLACE
from evae.models.contract_evae import EvaeError
from evae.models.randomness_evae import CellStreams
from evae.training.resume.checkpoint import TrainingState, read_checkpoint
from evae.training.resume.state import (
    MovingAverage,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    random_states,
    restore_random_states,
    weights_of,
    whole,
)
from evae.training.settings import Settings


@dataclass
class Running:
    """The state of a run that a checkpoint holds, for one rank.

    Attributes:
        model: the model, without wrappers for distributed training.
        optimizer: AdamW over the trained parameters.
        batches: the data source, with `state_dict` and `load_state_dict`.
        average: the moving average of the weights, if there is one.
        step: number of updates made.
        best: "step" and "loss" of the lowest validation loss so far.
    """

    model: nn.Module
    optimizer: Any
    batches: Any
    average: MovingAverage | None
    step: int = 0
    best: dict[str, float] | None = None


def capture(running: Running, accelerator: Accelerator, settings: Settings, fingerprint: str) -> TrainingState:
    """The content of this rank's checkpoint. All ranks must call it together.

    The tensors are not copied, so they must be written before the next step. Those that FSDP has sharded are gathered.
    """
    shared = {
        "model": whole(weights_of(running.model)),
        "optimizer": whole(optimizer_tensors(running.model, running.optimizer)),
    }
    if running.average:
        shared["average"] = whole(running.average.average)
    tensors, randomness = random_states(accelerator.device)
    record = {
        "step": running.step,
        "best": running.best,
        "ranks": accelerator.num_processes,
        "batch_size": settings.batch_size,
        "threads": torch.get_num_threads(),
        "precision": str(accelerator.mixed_precision),
        "fingerprint": fingerprint,
        "data": running.batches.state_dict(),
    }
    place = {key: value for key, value in record["data"].items() if key in PLACE}
    return TrainingState(record, shared, tensors, {"random": randomness, "place": place})


def restore(
    running: Running, stored: TrainingState, accelerator: Accelerator, settings: Settings, fingerprint: str
) -> list[str]:
    """Restore a run from a checkpoint.

    With the same number of ranks everything is restored exactly. With other ranks and the same global batch, everything
    but the dropout masks is, if the data source gives the ranks together the same cells, as it does to 1, 2, 4 and 8
    (see `evae.data.streaming.order`); else the checkpoint is refused.

    Returns:
        Messages to the user on what was not restored exactly.

    Raises:
        EvaeError: the checkpoint belongs to other data, another tokenizer or another model, or these ranks would take
            the cells in another order.
    """
    record = stored.record
    if record["fingerprint"] != fingerprint:
        raise EvaeError(
            "the dataset or the tokenizer is not the one this run was started with, or perturbation_features or the "
            "cells are not; point them to the old ones, or set overwrite=true to start anew."
        )
    try:
        load_weights(running.model, stored.shared["model"])
        load_optimizer(running.model, running.optimizer, stored.shared["optimizer"])
        if running.average:
            running.average.load(stored.shared["average"])
    except (KeyError, RuntimeError) as error:
        raise EvaeError(
            f"the checkpoint does not fit this model ({first_line(error)}); it was written by another "
            "version, set overwrite=true to start anew."
        ) from None
    running.step, running.best = record["step"], record["best"]
    notes = []
    same_ranks = record["ranks"] == accelerator.num_processes
    if same_ranks and stored.rank_tensors:
        restore_random_states(stored.rank_tensors, stored.rank_record["random"], accelerator.device)
    else:
        seed_rank(settings, accelerator, running.step)
        notes.append(
            f"{number_of(accelerator.num_processes, 'rank')} instead of {record['ranks']}: other masks of dropout"
        )
    place = running.batches.state_dict()
    data = record["data"] | (stored.rank_record.get("place", {}) if same_ranks else {})
    if all(data.get(key) == value for key, value in place.items() if key not in PLACE):
        running.batches.load_state_dict(data)
    else:
        raise EvaeError(
            f"{number_of(accelerator.num_processes, 'process', 'processes')} with batch_size {settings.batch_size} "
            f"take the cells in another order than before; start {record['ranks']} with batch_size "
            f"{record['batch_size']}, or set overwrite=true to start anew."
        )
    if record.get("precision", accelerator.mixed_precision) != accelerator.mixed_precision:
        notes.append(f"mixed precision {accelerator.mixed_precision} instead of {record['precision']}: other rounding")
    if accelerator.device.type == "cpu" and record["threads"] != torch.get_num_threads():
        notes.append(f"{torch.get_num_threads()} CPU threads instead of {record['threads']}: other last bits")
    return notes


def load_final_weights(running: Running, checkpoints: Path, choice: str) -> int:
    """Load the weights that a run ends with, averaged where there is an average, into its model.

    Args:
        running: the run after its last step.
        checkpoints: the folder of its checkpoints.
        choice: "last", or "best" for those with the lowest validation loss.

    Returns:
        The step that the weights are of.
    """
    step, best = running.step, running.best
    if choice == "best" and best is not None and best["step"] != step:
        step = int(best["step"])
        stored = read_checkpoint(checkpoints, step).shared
        load_weights(running.model, stored["model"])
        if running.average:
            running.average.load(stored["average"])
    if running.average:
        running.average.swap()
    return step


def cell_streams(settings: Settings, accelerator: Accelerator, step: int, part: int) -> CellStreams:
    """The random numbers of this rank's cells in forward pass `part` after `step` updates.

    They are a function of the seed and of the cell's position among all cells trained on. So they do not depend on the
    number of ranks.
    """
    number = step * settings.gradient_accumulation_steps + part
    first = (number * accelerator.num_processes + accelerator.process_index) * settings.batch_size
    return CellStreams(settings.seed % 2**32, range(first, first + settings.batch_size), number)


def seed_rank(settings: Settings, accelerator: Accelerator, step: int = 0) -> None:
    """Seed the generators of dropout, differently on every rank."""
    set_seed((settings.seed * 1_000_003 + accelerator.process_index * 7_919 + step) % 2**32)


def agreed_step(step: int | None, accelerator: Accelerator) -> int | None:
    """The main rank's `step` on all ranks: a shared file system may show a new checkpoint to some ranks later."""
    if accelerator.num_processes == 1:
        return step
    own = -1 if step is None else step
    sent = torch.tensor(own if accelerator.is_main_process else 0, device=accelerator.device)
    agreed = int(accelerator.reduce(sent, "sum"))
    return None if agreed < 0 else agreed
