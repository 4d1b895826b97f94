"""Labels in the training of a tokenizer: what its configuration takes from the dataset and from a feature table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evae.data.format import DatasetInfo
from evae.models.contract_evae import EvaeError
from evae.models.modeling_evae import EvaeModel
from evae.models.processing_evae import EvaeProcessor
from evae.training.feature_tables import FeatureTable, read_feature_table
from evae.training.settings import TokenizerSettings

FROM_DATASET = ("perturbation_names", "cell_type_names", "n_features")


def table_of(settings: TokenizerSettings, fields: Mapping[str, Any]) -> FeatureTable:
    """The feature table of the settings; an empty one where none is asked for.

    Raises:
        EvaeError: a table without a head that learns it, or the head without a table.
    """
    weight, path = fields.get("regression_weight", 0), settings.perturbation_features
    if weight and not path:
        raise EvaeError("model.regression_weight needs feature vectors; set perturbation_features to their table.")
    if path and not weight:
        raise EvaeError("perturbation_features is used with model.regression_weight above 0 only; set it, too.")
    return read_feature_table(Path(path)) if path else FeatureTable.without_any()


def label_fields(info: DatasetInfo, fields: Mapping[str, Any], table: FeatureTable) -> dict[str, Any]:
    """Fields of a tokenizer's configuration that hold names of labels; none where it uses no labels."""
    told = fields.get("decoder_conditions", "none")
    found: dict[str, Any] = {"n_features": table.vectors.shape[1]} if len(table.names) else {}
    has_heads = fields.get("classification_weight", 0) or fields.get("regression_weight", 0)
    if has_heads or told in ("perturbation", "both"):
        found["perturbation_names"] = list(info.perturbations)
    if told in ("cell-type", "both"):
        found["cell_type_names"] = list(info.cell_types)
    return found


@torch.no_grad()
def set_targets(model: EvaeModel, processor: EvaeProcessor, table: FeatureTable) -> None:
    """Give the regressor the vectors of the perturbations: that of a combination is the sum of its parts'.

    Raises:
        EvaeError: the table names none of the perturbations.
    """
    if model.auxiliary is None or model.auxiliary.regressor is None:
        return
    vectors = dict(zip(table.names, torch.from_numpy(table.vectors), strict=True))
    names, targets = model.config.perturbation_names, model.auxiliary.targets
    parts = processor.parts_of_all(names)
    treatments = processor.names().known.treatments
    for row, name in enumerate(names):
        agents = [treatments[part].agent if part in treatments else part for part in parts[name]]
        own = [agent for agent in agents if agent != processor.control]
        if own and all(agent in vectors for agent in own):
            targets[row] = torch.stack([vectors[agent] for agent in own]).sum(0).to(targets)
    if not targets.any():
        others = [name for name in names if name != processor.control]
        raise EvaeError(
            f"{table.source} names none of the dataset's perturbations, such as '{(others or names)[0]}'; check its "
            "names."
        )


def check_same_labels(model: EvaeModel, info: DatasetInfo, name: str) -> None:
    """Raise `EvaeError` where a tokenizer that uses labels would be trained on with others.

    Args:
        model: the tokenizer, trained before.
        info: what it is to be trained on.
        name: what messages call it.
    """
    held: list[tuple[Sequence[str], Sequence[str]]] = [
        (model.config.perturbation_names, info.perturbations),
        (model.config.cell_type_names, info.cell_types),
    ]
    for own, new in held:
        if own and list(own) != list(new):
            raise EvaeError(
                f"the tokenizer of {name} uses labels, and the dataset has others; leave tokenizer out, so that it "
                "stays as it is."
            )
