"""A dataset as codes: encoded once by the frozen tokenizer, kept in memory, served in a seeded order.

A cell of 64 codes takes 128 bytes, so a million cells take 128 MB. The latents of a Gaussian tokenizer are kept as they
are, 8 kB for 64 x 32 numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from evae.models.contract_evae import EvaeError
from evae.training.loop.validation import Batch
from evae.training.prompts import Prompts

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
COLUMNS = ("codes", "perturbation_ids", "cell_type_ids", "library_size", "latents")


@dataclass
class EncodedCells:
    """Cells as a prior sees them.

    Attributes:
        codes: uint16 (cells, latents); of a Gaussian tokenizer the latents, float32 (cells, latents, latent_dim).
        perturbation_ids: int32 (cells,), or (cells, parts), padded with -1, where there are combinations.
        cell_type_ids: int32 (cells,).
        library_size: total counts over the panel, float32 (cells,).
        latents: before quantization, float32 (cells, latents, latent_width); empty where the prior reads no controls.
        contexts: means of samples of every cell type's controls, float32 (cell types, samples, embedding); None where
            the prior knows cell types by name.
        prompts: what the prior reads of control cells; None where it reads none.
        treatments: of every part, float32 (cells, parts, 3 or more), see `EvaePrior.sample`; None where perturbations
            are names.
        batch_ids: int32 (cells,); None where the prior does not read the batch.
    """

    codes: np.ndarray
    perturbation_ids: np.ndarray
    cell_type_ids: np.ndarray
    library_size: np.ndarray
    latents: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    contexts: np.ndarray | None = None
    prompts: Prompts | None = None
    treatments: np.ndarray | None = None
    batch_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, rows: slice | np.ndarray) -> "EncodedCells":
        """Some of the cells; those of a slice are not copied."""
        return replace(
            self,
            codes=self.codes[rows],
            perturbation_ids=self.perturbation_ids[rows],
            cell_type_ids=self.cell_type_ids[rows],
            library_size=self.library_size[rows],
            latents=self.latents[rows],
            prompts=None if self.prompts is None else self.prompts.part(rows),
            treatments=None if self.treatments is None else self.treatments[rows],
            batch_ids=None if self.batch_ids is None else self.batch_ids[rows],
        )

    def batch(self, rows: np.ndarray, places: np.ndarray | None = None) -> Batch:
        """The cells `rows` as the prior's arguments.

        Args:
            rows: of the cells.
            places: their places in the stream of training cells, which decide what is drawn; None draws nothing.
        """
        continuous = self.codes.dtype.kind == "f"
        tokens = self.codes[rows] if continuous else self.codes[rows].astype(np.int64)
        batch = {
            "latents" if continuous else "codes": torch.from_numpy(tokens),
            "perturbation_ids": torch.from_numpy(self.perturbation_ids[rows].astype(np.int64)),
            "cell_type_ids": torch.from_numpy(self.cell_type_ids[rows].astype(np.int64)),
            "library_size": torch.from_numpy(self.library_size[rows]),
        }
        if self.contexts is not None:  # which sample a cell gets is decided by its row, so that a run resumes exactly
            sample = rows % self.contexts.shape[1]
            batch["context"] = torch.from_numpy(self.contexts[self.cell_type_ids[rows], sample])
        if self.treatments is not None:
            batch["treatments"] = torch.from_numpy(self.treatments[rows])
        if self.batch_ids is not None:
            batch["batch_ids"] = torch.from_numpy(self.batch_ids[rows].astype(np.int64))
        if self.prompts is not None:
            batch |= self.prompts.batch(rows, places)
        return batch


@torch.no_grad()
def encode_cells(
    tokenizer: Any, batches: Iterable[Batch], accelerator: Accelerator, with_latents: bool = False
) -> EncodedCells:
    """Encode all cells of `batches` (sparse batches) in float32; each rank encodes its part of the batches.

    Args:
        tokenizer: a trained tokenizer.
        batches: the cells, on every rank the same; all of one size but the last.
        accelerator: the device, and the ranks that share the work.
        with_latents: keep the latents before quantization too.

    Raises:
        EvaeError: there are no cells, or more than 65,536 codes.
    """
    tokenizer.to(accelerator.device).eval()
    parts: list[Columns] = []
    cells = iter(batches)
    while share := list(islice(cells, accelerator.num_processes)):  # a batch for each rank
        own = share[min(accelerator.process_index, len(share) - 1)]  # at the end some do what another does too
        counts, gene_ids = own["counts"].to(accelerator.device), own["gene_ids"].to(accelerator.device)
        if with_latents:
            codes, latents = tokenizer.tokens_and_latents(counts, gene_ids)
        else:
            codes, latents = tokenizer.encode(counts, gene_ids=gene_ids), counts.new_zeros(len(counts), 0)
        sizes = [len(batch["library_size"]) for batch in share]
        of_ranks = [_of_ranks(found, sizes, accelerator) for found in (codes, latents.float())]
        for batch, tokens, before in zip(share, *of_ranks, strict=True):
            labels = [batch[name].numpy() for name in ("perturbation_ids", "cell_type_ids", "library_size")]
            kinds = (np.int32, np.int32, np.float32)
            columns = (label.astype(kind) for label, kind in zip(labels, kinds, strict=True))
            parts.append((tokens.astype(np.float32 if codes.is_floating_point() else np.uint16), *columns, before))
    if not parts:
        raise EvaeError("the dataset has no cells in this split; prepare it again with another --split.")
    return EncodedCells(*_joined(parts))


def _of_ranks(found: Tensor, sizes: list[int], accelerator: Accelerator) -> list[np.ndarray]:
    """What the first ranks found, each (its size, ...); `found` is this rank's."""
    if accelerator.num_processes == 1:
        return [found.cpu().numpy()]
    largest = max(sizes)
    padded = torch.cat([found, found.new_zeros(largest - len(found), *found.shape[1:])])
    gathered = accelerator.gather(padded).cpu().numpy()
    return [gathered[i * largest : i * largest + size] for i, size in enumerate(sizes)]


def thinned(batches: Iterable[Batch], seed: int) -> Iterator[Batch]:
    """The same cells with fewer molecules: of every cell a share drawn from [0.5, 1] is kept, each molecule alike.

    To the tokenizer they are further measurements of the same cells, so their codes vary as those of like cells do.
    Labels and library sizes stay those of the whole cells.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        counts = batch["counts"]
        share = 0.5 + 0.5 * torch.rand(len(counts), 1, generator=generator)
        kept = torch.binomial(counts, share.expand_as(counts).contiguous(), generator=generator)
        yield {**batch, "counts": kept}


def joined(parts: Sequence[EncodedCells]) -> EncodedCells:
    """All cells of several encodings, one after another."""
    if len(parts) == 1:
        return parts[0]
    return EncodedCells(*_joined([tuple(getattr(part, name) for name in COLUMNS) for part in parts]))


def _joined(parts: Sequence[Columns]) -> Columns:
    codes, perturbation_ids, cell_type_ids, library_size, latents = map(np.concatenate, zip(*parts, strict=True))
    return codes, perturbation_ids, cell_type_ids, library_size, latents


class CodeBatches:
    """An endless seeded stream of training batches: one permutation of all cells after another.

    The place in the stream is one number, the cells handed out so far over all ranks. It means the same for
    any number of ranks and any batch size, and rank r of w takes the r-th part of every w * batch_size
    cells, so two ranks see together what one rank with twice the batch size sees.

    Args:
        cells: all training cells, on every rank in the same order.
        batch_size: cells a rank and batch.
        seed: of the permutations, with the epoch.
        rank, world_size: this process and how many there are.
    """

    def __init__(self, cells: EncodedCells, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.cells, self.batch_size, self.seed = cells, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.seen = 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = self.seen + self.rank * self.batch_size
            rows = self._rows(start, start + self.batch_size)
            self.seen += self.world_size * self.batch_size
            yield self.cells.batch(rows, np.arange(start, start + self.batch_size))

    def rows_of(self, ago: int) -> np.ndarray:
        """Rows of the cells of a batch that this rank handed out; `ago` is 1 for the last one."""
        start = self.seen - (ago * self.world_size - self.rank) * self.batch_size
        return self._rows(start, start + self.batch_size)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the cells `start` to `stop` of the stream; a batch may reach into the next epochs."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, len(self.cells))
            if epoch != self._epoch:
                self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.cells))
                self._epoch = epoch
            piece = self._order[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces)

    @property
    def batches_per_epoch(self) -> int:
        """Batches, of all ranks at once, in which every cell is seen."""
        return -(-len(self.cells) // (self.batch_size * self.world_size))

    def go_to(self, n_batches: int) -> None:
        """Go on as if so many batches had been handed out since the start."""
        self.seen = n_batches * self.batch_size * self.world_size

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return {"cells_seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream."""
        self.seen = int(state["cells_seen"])


def cells_batches(cells: EncodedCells, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """All cells once, in order."""
    for start in range(0, len(cells), batch_size):
        yield cells.batch(np.arange(start, min(start + batch_size, len(cells))))
