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
    conditions: Mapping[str, Tensor],
    streams: CellStreams,
    device: torch.device,
    sampling: Mapping[str, Any],
) -> sp.csr_matrix:
    """Raw counts (cells, genes) of one batch."""
    placed = {name: values.to(device) for name, values in conditions.items()}
    return whole_counts(model.sample_cells(**placed, generator=streams, **sampling), streams)


def draw_on_worker(
    place: ModelPlace, conditions: Mapping[str, Tensor], streams: CellStreams, sampling: Mapping[str, Any]
) -> sp.csr_matrix:
    """The same on a worker."""
    return draw_batch(_loaded(place).model, conditions, streams, torch.device(place.device), sampling)


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
