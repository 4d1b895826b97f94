"""Experimental batches: which cell is of which, for pairs within a batch and for priors that read it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evae.data.streaming.mixture import Sources
from evae.data.streaming.split_anndata import DatasetSplit
from evae.models.contract_evae import EvaeError
from evae.models.processing_evae import EvaeProcessor
from evae.training.codes import EncodedCells
from evae.training.encoder import Encoder
from evae.training.pairs import SPLITS


def cell_batches(encoder: Encoder) -> tuple[dict[str, np.ndarray], list[str]]:
    """The experimental batch of every cell of both splits, and the names: those of each dataset are its own."""
    infos, datasets = encoder.sources.infos, encoder.sources.datasets
    vocabularies = [own.statistics.get("batches") or ["no batch"] for own in infos]
    if all(names == ["no batch"] for names in vocabularies):  # then all datasets are one
        return {split: np.zeros(encoder.sources.info.n_cells[split], dtype=np.int64) for split in SPLITS}, ["all"]
    firsts = np.cumsum([0, *map(len, vocabularies)])
    found = {
        split: np.concatenate(
            [
                first + DatasetSplit(dataset, split).batch_ids()
                for dataset, first in zip(datasets, firsts, strict=False)
                if dataset.info.n_cells[split]
            ]
        )
        for split in SPLITS
    }
    return found, [name for names in vocabularies for name in names]


def batch_names(sources: Sources) -> list[str]:
    """The batches of all datasets by unique names.

    Raises:
        EvaeError: no dataset has batches.
    """
    names = [name for name in _names_of_each(sources) if name]
    if not names:
        raise EvaeError("model.condition_on_batch needs batches; prepare the dataset with batch_key.")
    return names


def _names_of_each(sources: Sources) -> list[str]:
    """The batches by which `cell_batches` counts, "" of a dataset without; one in several has its dataset's name."""
    names = [(d, name) for d in sources.datasets for name in d.info.statistics.get("batches") or [""]]
    plain = [name for _, name in names]
    return [name if plain.count(name) == 1 or not name else f"{dataset}: {name}" for dataset, name in names]


def set_batches(
    prior: Any, cells: Mapping[str, EncodedCells], processor: EvaeProcessor, encoder: Encoder, whole: np.ndarray
) -> None:
    """Give the encoded cells the ids of their batches, where the prior reads them; that of none where it knows not.

    Args:
        prior: built for the batches of `processor`.
        cells: split -> encoded cells, changed in place.
        processor: of the prior.
        encoder: of the cells.
        whole: as `Encoder.whole_rows` gives it.
    """
    if not prior.config.condition_on_batch:
        return
    known = {name: number for number, name in enumerate(processor.batches or [])}
    ids = np.array([known.get(name, len(known)) for name in _names_of_each(encoder.sources)], dtype=np.int32)
    of_cells, _ = cell_batches(encoder)
    firsts = np.flatnonzero(whole == np.arange(len(whole)))  # without the thinned copies of training cells
    rows = {"train": np.searchsorted(firsts, whole), "validation": slice(None)}
    for split in SPLITS:
        cells[split].batch_ids = ids[of_cells[split]][rows[split]]
