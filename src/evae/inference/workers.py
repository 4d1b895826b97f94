"""What the workers of Dask do for predictions and embeddings. Each loads the model once, from where the caller did."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from evae.common.progress import Advance, no_progress
from evae.data.reading.file_counts import FileCounts
from evae.inference.checkpoint import Checkpoint, load_checkpoint
from evae.inference.embedding import CellEncoder
from evae.inference.embedding_parts import EmbeddingParts
from evae.inference.request import whole_counts
from evae.inference.spread import rate_sums
from evae.models.randomness_evae import CellStreams


class ModelPlace(NamedTuple):
    """Where a model lies: the folder, under the same path on every machine, or the Hub id with its commit."""

    name: str
    revision: str
    device: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> "ModelPlace":
        """That of a loaded model, to be computed on the same kind of device."""
        name = str(Path(checkpoint.name).resolve()) if Path(checkpoint.name).is_dir() else checkpoint.name
        return cls(name, checkpoint.revision, device.type)


class EmbeddedCells(NamedTuple):
    """A file of cells and the embedding of them that is asked for; see `evae.inference.embedding_files`."""

    file: Path
    layer: str | None
    scratch: Path
    kind: str
    parts: EmbeddingParts


def draw_batch(
    model: Any,
    device: torch.device,
    conditions: Mapping[str, Tensor],
    streams: CellStreams,
    sampling: Mapping[str, Any],
    pairs: np.ndarray | None,
) -> tuple[sp.csr_matrix, dict[int, np.ndarray]]:
    """Raw counts (cells, genes) of one batch, and what `rate_sums` gives of its first draw.

    `pairs` are those of `PairMeans`; without them there is one draw, and no sums.
    """
    asked = {name: values.to(device) for name, values in conditions.items()} | dict(sampling)
    if pairs is None:
        return whole_counts(model.sample_cells(**asked, generator=streams), streams), {}
    own, other = model.sample_cells(**asked, generator=streams, also_independent=True)
    alone = torch.from_numpy(pairs < 0).to(own.device)
    return whole_counts(torch.where(alone[:, None], own, other), streams), rate_sums(own, pairs)


def draw_on_worker(place: ModelPlace, *batch: Any) -> tuple[sp.csr_matrix, dict[int, np.ndarray]]:
    """The same on a worker."""
    return draw_batch(_loaded(place).model, torch.device(place.device), *batch)


def embed_part(encoder: CellEncoder, source: FileCounts, parts: EmbeddingParts, part: int, advance: Advance) -> None:
    """Embed the cells of a part and write it."""
    blocks = [values for _, values in encoder.blocks(source, *parts.bounds(part), advance)]
    parts.write(part, np.concatenate(blocks))


def embed_on_worker(place: ModelPlace, cells: EmbeddedCells, part: int) -> None:
    """The same on a worker."""
    source, encoder = _encoder(place, cells)
    embed_part(encoder, source, cells.parts, part, no_progress)


@lru_cache(maxsize=1)
def _loaded(place: ModelPlace) -> Checkpoint:
    checkpoint = load_checkpoint(place.name, place.revision or None)
    checkpoint.model.to(torch.device(place.device)).eval()
    return checkpoint


@lru_cache(maxsize=1)
def _encoder(place: ModelPlace, cells: EmbeddedCells) -> tuple[FileCounts, CellEncoder]:
    source = FileCounts(cells.file, cells.layer, cells.scratch)
    return source, CellEncoder.align(_loaded(place), source, cells.kind, place.device)
