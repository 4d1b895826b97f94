"""A trained prior with a larger vocabulary: what it knew keeps its ids and rows, new names begin as unknown ones.

The last row of each table stands for a condition that is not given, which training learns by leaving conditions out. A
new perturbation or cell type begins as a copy of it, so before its first step the grown prior predicts a new name as
the trained one predicts an unknown one: from the control cells and the known effect alone.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from evae.data.format import DatasetInfo
from evae.models.contract_evae import EvaeError
from evae.models.processing_evae import EvaeProcessor
from evae.training.conditions import Vocabulary


def grown_processor(former: EvaeProcessor, info: DatasetInfo) -> EvaeProcessor:
    """The processor with the names of a dataset added.

    Args:
        former: of the checkpoint.
        info: of the datasets, with the checkpoint's names first.
    """
    grown = copy.deepcopy(former)
    if former.treatments:  # else labels of treatments are names as any other
        grown.treatments = _grown_treatments(former, info)
    known = grown.names()
    parts = [part for own in known.parts(info.perturbations).values() for part in own]
    agents = [known.known.treatments[part].agent if part in known.known.treatments else part for part in parts]
    units = list(dict.fromkeys([*former.known_units(), *agents]))
    grown.perturbations, grown.cell_types = list(info.perturbations), list(info.cell_types)
    grown.perturbation_units = None if units == grown.perturbations else units
    pairs = {kind: list(own) for kind, own in (former.training_pairs or {}).items()}
    for kind, row in info.statistics["cell_counts"]["train"].items():
        pairs[kind] = list(dict.fromkeys([*pairs.get(kind, []), *(name for name, n in row.items() if n)]))
    grown.training_pairs = pairs
    grown.calibration = None  # of other weights
    return grown


def _grown_treatments(former: EvaeProcessor, info: DatasetInfo) -> list[dict[str, Any]]:
    """The treatments of both.

    Raises:
        EvaeError: doses in another family, or doses or times where the checkpoint knows none.
    """
    names = former.names().known
    known, units = names.treatments, names.dose_units()
    new = [treatment for label, treatment in info.treatments.items() if label not in known]
    other = [t.label for t in new if units and t.dose is not None and t.dose_unit not in units]
    if other:
        raise EvaeError(
            f"the checkpoint knows doses in {' and '.join(units)}, but there is '{other[0]}'; leave these cells out "
            "(--where), or train a prior on both datasets."
        )
    for what in ("dose", "time"):
        told = [treatment.label for treatment in new if getattr(treatment, what) is not None]
        if told and all(getattr(treatment, what) is None for treatment in known.values()):
            raise EvaeError(f"the checkpoint knows no {what}s, but there is '{told[0]}'; prepare without {what}_key.")
    return [*(former.treatments or []), *(treatment.to_dict() for treatment in new)]


def vocabulary_of(prior: Any, processor: EvaeProcessor, name: str) -> Vocabulary:
    """The perturbations that a checkpoint's prior is to know, as training takes them.

    Raises:
        EvaeError: a new one, where the prior knows perturbations by feature vectors.
    """
    units, n_known = processor.known_units(), prior.config.n_perturbations
    if prior.config.n_perturbation_features and len(units) > n_known:
        raise EvaeError(
            f"{name} knows perturbations by feature vectors, and has none of '{units[n_known]}'; train a prior with "
            "perturbation_features that name it."
        )
    return Vocabulary(processor.perturbation_units, len(units), torch.zeros(0, 0).numpy())


@torch.no_grad()
def grown_prior(former: Any, processor: EvaeProcessor) -> Any:
    """A copy of a prior that knows all names of `processor`, the former ones as before."""
    config = copy.deepcopy(former.config)
    config.n_perturbations, config.n_cell_types = len(processor.known_units()), len(processor.cell_types)
    config.perturbation_kinds = processor.names().known.kinds()
    config.n_effects = len(processor.perturbations) if config.condition_on_effect else 0
    prior = type(former)(config)
    unnamed = config.cell_type_dropout if config.reads_controls else config.condition_dropout
    trained = {True: config.condition_dropout > 0, False: unnamed > 0}
    old, new = former.state_dict(), prior.state_dict()
    for name, tensor in new.items():
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
        elif name.endswith("contexts"):
            tensor.zero_()[: len(old[name])] = old[name]
        elif name.endswith("treatment.kind.weight"):
            tensor[:] = old[name].mean(0)
            tensor[: len(old[name])] = old[name]
        elif name.endswith(("effect.table", "effect.known")):
            _place_effects(tensor, old[name])
        else:
            _place_rows(tensor, old[name], trained[".perturbation." in name])
    return prior.eval()


def _place_rows(table: Tensor, former: Tensor, null_is_trained: bool) -> None:
    """Former rows first, that of the null last; new ones begin as the null, or as the mean where it is untrained."""
    table[:] = former[-1] if null_is_trained else former[:-1].mean(0)
    table[: len(former) - 1], table[-1] = former[:-1], former[-1]


def _place_effects(table: Tensor, former: Tensor) -> None:
    """Effects (cell types + 1, perturbations, ...); to a new cell type all former ones are others, as in the last row.

    The others keep their places.
    """
    n_kinds, n_names = len(former) - 1, former.shape[1]
    table.zero_()
    table[:, :n_names] = former[-1]
    table[:n_kinds, :n_names] = former[:-1]
