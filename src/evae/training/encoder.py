"""Encode the cells of the datasets with a frozen tokenizer, as a prior is trained on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from accelerate import Accelerator
from torch import nn

from evae.common.progress import progress_bar
from evae.data.streaming.mixture import Sources
from evae.training.codes import EncodedCells, encode_cells, joined, thinned
from evae.training.loop.stopping import StopCheck, checked_for_stop
from evae.training.loop.validation import Batch
from evae.training.prompts import shallower

ENCODING_BATCH = 512  # fixed: a resumed run must encode exactly as the first one did


@dataclass(frozen=True)
class Encoder:
    """Encodes the cells of the datasets with the frozen tokenizer.

    Attributes:
        sources: the datasets.
        tokenizer: frozen.
        with_latents: keep the latents before quantization too.
        accelerator: device, the ranks that share the encoding, and whether this one shows progress.
        check_stop: called at every batch.
    """

    sources: Sources
    tokenizer: nn.Module
    with_latents: bool
    accelerator: Accelerator
    check_stop: StopCheck

    def split(self, split: str, copies: int = 0) -> EncodedCells:
        """One split of every dataset, one after another, each followed by its thinned copies."""
        parts = []
        for number in range(len(self.sources)):
            parts.append(self._encode(number, split, f"encoding {split}"))
            for copy in range(1, 1 + copies):
                title = f"encoding {split}, thinned copy {copy}"
                parts.append(self._encode(number, split, title, partial(thinned, seed=copy)))
        return joined(parts)

    def controls(self, control: int, copy: int) -> EncodedCells:
        """The training controls of every dataset with fewer molecules; see `shallower`."""
        thin = partial(shallower, control=control, copy=copy)
        title = f"encoding controls, thinned copy {copy}"
        return joined([self._encode(number, "train", title, thin) for number in range(len(self.sources))])

    def whole_rows(self, copies: int) -> np.ndarray:
        """For every training cell of `split("train", copies)` the row of the cell it is a copy of, or its own."""
        rows, start = [], 0
        for info in self.sources.infos:
            n_cells = info.n_cells["train"]
            rows += [start + np.arange(n_cells)] * (1 + copies)
            start += n_cells * (1 + copies)
        return np.concatenate(rows)

    def read(self, number: int, split: str, title: str) -> Iterator[Batch]:
        """All cells of a split of one dataset as sparse batches, in stored order, with progress."""
        title += f" of {self.sources.datasets[number]}" if len(self.sources) > 1 else ""
        loader = checked_for_stop(self.sources.cells(number, split, ENCODING_BATCH), self.check_stop)
        n_cells = self.sources.infos[number].n_cells[split]
        with progress_bar(self.accelerator.is_main_process) as bar:
            yield from bar.track(loader, title, n_cells, lambda batch: len(batch["counts"]))

    def _encode(
        self, number: int, split: str, title: str, change: Callable[[Iterator[Batch]], Iterator[Batch]] = iter
    ) -> EncodedCells:
        cells = change(self.read(number, split, title))
        return encode_cells(self.tokenizer, cells, self.accelerator, self.with_latents)
