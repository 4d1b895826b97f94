"""What the loop asks of the two stages: a source of batches, and how to validate and save the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from evae.training.loop.validation import Batch, Tally, mean_loss, tally_loss


class Batches(Protocol):
    """An endless source of training batches that can tell and take back its place.

    `state_dict` is JSON and describes the place after the last batch that was handed out: "epoch" and "batch" within
    it, or "cells_seen". What else it holds says which order the place is in: a place in another order means other
    cells. Where it differs between ranks, that order includes their number.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Stage:
    """What the loop needs to know about the model it trains.

    Attributes:
        title: shown beside the progress bar.
        inputs: the keys of a batch that the model takes; its output has a `.loss`, the mean over cells.
        validation: batches, the same on every rank; empty for no validation.
        save: writes the finished model into a folder.
        tally: what to sum over validation batches.
        summarise: the sums -> metrics; `loss` among them decides which checkpoint is best.
        fingerprint: of the data and of frozen weights; a run resumes only with the same one.
        named_cells: which cells a source handed out so many batches ago.
        keep: writes into the run's folder what a resumed run need not make again; called by the main rank.
    """

    title: str
    inputs: Sequence[str]
    validation: Sequence[Batch]
    save: Callable[[Any, Path], None]
    tally: Tally = tally_loss
    summarise: Callable[[dict[str, Tensor]], dict[str, float]] = mean_loss
    fingerprint: str = ""
    named_cells: Callable[[Any, int], list[dict[str, Any]]] = lambda batches, ago: []
    keep: Callable[[], None] | None = None
