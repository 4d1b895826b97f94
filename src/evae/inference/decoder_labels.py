"""Labels for a decoder that is told them: from names to the ids of the tokenizer, each with training cells."""

from collections.abc import Sequence
from typing import Any

import anndata as ad
import pandas as pd
import torch
from torch import Tensor

from evae.data.reading.labels import label_texts
from evae.inference.checkpoint import Checkpoint
from evae.models.contract_evae import EvaeError, near_matches

KEYS = {"perturbation_ids": "perturbation", "cell_type_ids": "cell_type"}


def told_labels(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What the decoder is told, as argument of `EvaeModel.decode` -> its names in the order of their ids."""
    config = checkpoint.tokenizer.config
    told = getattr(config, "decoder_conditions", "none")  # a prior of one's own may stand over something else
    if told == "none":
        return {}
    names = {"perturbation": config.perturbation_names, "cell-type": config.cell_type_names}
    return {f"{k.replace('-', '_')}_ids": list(names[k]) for k in (names if told == "both" else [told])}


def decoder_ids(checkpoint: Checkpoint, labels: pd.DataFrame) -> dict[str, Tensor]:
    """The ids of cells' labels, int64 (cells,), by the arguments of `EvaeModel.decode`; none where nothing is told.

    Args:
        checkpoint: of the tokenizer, or of a prior over it.
        labels: `perturbation` and `cell_type` of the cells, those that the decoder is told.

    Raises:
        EvaeError: a label that no training cell has.
    """
    asked = {}
    for argument, names in told_labels(checkpoint).items():
        kind, seen = KEYS[argument], _seen(checkpoint, names, argument)
        codes, texts = pd.factorize(label_texts(labels[kind]))
        if unknown := [text for text in texts if text not in seen]:
            raise EvaeError(
                f"the decoder of {checkpoint.name} is told the {kind.replace('_', ' ')} of a cell, and no cell of its "
                f"training is labelled '{unknown[0]}'; ask for another. {near_matches(unknown[0], sorted(seen))}"
            )
        place = {name: number for number, name in enumerate(names)}
        asked[argument] = torch.tensor([place[text] for text in texts], dtype=torch.int64)[torch.from_numpy(codes)]
    return asked


def told_to_decoder(checkpoint: Checkpoint, labels: pd.DataFrame) -> dict[str, Tensor]:
    """`decoder_ids` by the arguments of a prior's `sample_cells`."""
    return {f"decoder_{argument}": ids for argument, ids in decoder_ids(checkpoint, labels).items()}


def labels_of(
    checkpoint: Checkpoint, cells: ad.AnnData, perturbation_key: str, cell_type_key: str, what: str
) -> pd.DataFrame:
    """The obs columns of the labels that the decoder is told, as `decoder_ids` wants them.

    Raises:
        EvaeError: the cells have no such column.
    """
    keys = {"perturbation": perturbation_key, "cell_type": cell_type_key}
    columns: dict[str, Any] = {}
    for argument in told_labels(checkpoint):
        kind = KEYS[argument]
        if keys[kind] not in cells.obs:
            raise EvaeError(
                f"the decoder of {checkpoint.name} is told the {kind.replace('_', ' ')} of a cell, and {what} have no "
                f"obs column '{keys[kind]}'; name theirs as {kind}_key."
            )
        columns[kind] = cells.obs[keys[kind]].to_numpy()
    return pd.DataFrame(columns)


def some_labels(checkpoint: Checkpoint) -> tuple[str, str]:
    """A perturbation and a cell type that the decoder can be told, to try a checkpoint with."""
    processor, told = checkpoint.processor, told_labels(checkpoint)
    found = [processor.perturbations[0], processor.cell_types[0]]
    for number, argument in enumerate(KEYS):
        if argument in told:
            found[number] = min(_seen(checkpoint, told[argument], argument), key=told[argument].index)
    return found[0], found[1]


def _seen(checkpoint: Checkpoint, names: Sequence[str], argument: str) -> set[str]:
    """Those of the names that a training cell has; all where the processor does not know."""
    pairs = checkpoint.processor.training_pairs
    if pairs is None:
        return set(names)
    trained = set(pairs) if argument == "cell_type_ids" else {name for row in pairs.values() for name in row}
    return trained & set(names)
