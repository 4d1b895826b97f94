"""What a prior is conditioned on, from a dataset: the vocabulary of perturbations, feature vectors, contexts."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evae.common.logs import logger
from evae.common.messages import first_of, number_of
from evae.data.format import DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.models.contract_evae import EvaeError, near_matches, parts_of
from evae.models.processing_evae import EvaeProcessor
from evae.models.treatments_evae import Treatment
from evae.training.codes import EncodedCells
from evae.training.feature_tables import FeatureTable, read_feature_table
from evae.training.loop.stopping import StopCheck, checked_for_stop
from evae.training.settings import PriorSettings

LOG = logger(__name__)

MAX_CONTROLS = 2_000  # of a cell type, whose embeddings are kept while its contexts are made
FEWEST_CONTROLS = 20  # in a sample: as few as a user may have
N_SAMPLES = 64
READ_BATCH = 512


@dataclass(frozen=True)
class Vocabulary:
    """The perturbations that a prior will know.

    Attributes:
        units: names of the prior's ids, the featured ones last; None where they are the dataset's perturbations.
        n_units: how many there are.
        features: vectors of the featured ones, float32 (featured, features).
        source: what the features are; "" without any.
    """

    units: list[str] | None
    n_units: int
    features: np.ndarray
    source: str = ""

    def digest(self) -> list[str]:
        """What must stay the same for a run to be resumed; nothing for a plain vocabulary."""
        if self.units is None:
            return []
        return [*self.units, hashlib.sha256(self.features.tobytes()).hexdigest()]


def perturbation_vocabulary(info: DatasetInfo, table: str = "", sign: str = "+") -> Vocabulary:
    """The agents of the dataset's perturbations and their parts, and all names of a feature table where there is one.

    Args:
        info: the dataset. `A+B` is the sum of A and B, where A or B is a name by itself (see `parts_of`).
        table: file of feature vectors by name; "" for learned vectors only.
        sign: what stands between the parts of a combination; "" where there are none.

    Raises:
        EvaeError: a table that cannot be read, or that names none of the perturbations; perturbations that are in no
            training cell and not in the table.
    """
    names, features, source = read_feature_table(Path(table)) if table else FeatureTable.without_any()
    parts = list(dict.fromkeys(_agent(info, part) for part in _parts(info, set(names), sign)))
    check_learnable(info, set(names), sign)
    if not table:
        return Vocabulary(None if parts == list(info.perturbations) else parts, len(parts), features)
    known = set(names)
    learned = [part for part in parts if part not in known]
    lacking = [part for part in learned if part != info.control]
    if len(lacking) == len([part for part in parts if part != info.control]):
        raise EvaeError(f"{table} names none of the dataset's perturbations, such as '{lacking[0]}'; check its names.")
    if lacking:
        LOG.warning(
            f"{number_of(len(lacking), 'perturbation has', 'perturbations have')} no feature vector and "
            f"{'gets a learned one' if len(lacking) == 1 else 'get learned ones'}: {first_of(lacking, 5)}. "
            f"Mend the table if '{lacking[0]}' stands there by another name. {near_matches(lacking[0], names)}"
        )
    return Vocabulary([*learned, *names], len(learned) + len(names), features, source)


def _parts(info: DatasetInfo, featured: set[str], sign: str) -> list[str]:
    """The parts of all perturbations of a dataset; says which names hold the sign and are taken as one."""
    parts = _parts_of_each(info, featured, sign)
    uncut = [name for name in parts if sign and sign in name.strip(sign) and parts[name] == [name]]
    if uncut:
        shown = first_of(uncut, 3)
        LOG.warning(
            f"{number_of(len(uncut), 'perturbation')} with a '{sign}' uncut, as no part is a name by itself: {shown}"
        )
    return list(dict.fromkeys(part for name in info.perturbations for part in parts[name]))


def _parts_of_each(info: DatasetInfo, featured: set[str], sign: str) -> dict[str, list[str]]:
    with_control = [p for name in info.perturbations for p in parts_of(name, (), info.control, sign)]  # A of A+control
    known = {*info.perturbations, *featured, *with_control, *info.treatments}
    return {name: parts_of(name, known, info.control, sign) for name in info.perturbations}


def _agent(info: DatasetInfo, part: str) -> str:
    """What a prior has a vector of: the agent of a treatment, else the name."""
    return info.treatments[part].agent if part in info.treatments else part


def _kind(info: DatasetInfo, part: str) -> str:
    return info.treatments[part].kind if part in info.treatments else ""


def check_learnable(info: DatasetInfo, featured: set[str], sign: str, kinds: Collection[str] = ()) -> None:
    """Raise `EvaeError` for a perturbation that no training cell has and no feature vector describes.

    A prior would draw it from an embedding that stayed random.

    Args:
        info: the dataset.
        featured: names that have a feature vector.
        sign: separator of the parts of a combination.
        kinds: of perturbations, that the prior knows already.
    """
    parts = _parts_of_each(info, featured, sign)
    trained = {name for row in info.statistics["cell_counts"]["train"].values() for name, n in row.items() if n}
    learned = {_agent(info, part) for name in trained for part in parts[name]} | featured | {info.control}
    learned_kinds = {_kind(info, part) for name in trained for part in parts[name]} | {"", *kinds}
    lacking = [
        name
        for name, own in parts.items()
        if not all(_agent(info, part) in learned and _kind(info, part) in learned_kinds for part in own)
    ]
    if lacking:
        shown = first_of(lacking, 5)
        raise EvaeError(
            f"a prior cannot learn perturbations without a training cell or a feature vector, of which there are "
            f"{len(lacking)} ({shown}); give perturbation_features=FILE with their vectors, or prepare the dataset "
            "with a --split that leaves cells of each."
        )


def treatment_fields(info: DatasetInfo, processor: EvaeProcessor) -> dict[str, Any]:
    """The fields of a prior's configuration that say which kinds, doses and times training sees."""
    known, seen = processor.names().known, list[Treatment]()
    trained = {name for row in info.statistics["cell_counts"]["train"].values() for name, n in row.items() if n}
    for parts in processor.parts_of_all(trained).values():
        seen += [known.treatments[part] for part in parts if part in known.treatments]
    spans = {unit: _span(t.dose for t in seen if t.dose_unit == unit) for unit in known.dose_units()}
    (unit, span), *further = spans.items() or [("", None)]
    return {
        "perturbation_kinds": known.kinds(),
        "dose_unit": unit,
        "dose_range": span,
        "further_doses": [{"unit": unit, "range": span} for unit, span in further],
        "time_range": _span(t.time for t in seen),
    }


def _span(values: Iterable[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def set_conditions(
    prior: Any,
    cells: Mapping[str, EncodedCells],
    processor: EvaeProcessor,
    vocabulary: Vocabulary,
    sources: Sources,
    settings: PriorSettings,
    device: torch.device,
    check_stop: StopCheck,
    trained: bool = False,
) -> None:
    """Give the prior its feature vectors and contexts, and the encoded cells their ids and contexts.

    Args:
        prior: built for `vocabulary`.
        cells: split -> encoded cells, changed in place.
        sources: that they are of.
        check_stop: called at every batch that is read, see `evae.training.loop.stopping`.
        trained: whether the prior was trained before, and keeps the features and contexts that it has.
    """
    if len(vocabulary.features) and not trained:
        prior.condition.perturbation.set_features(torch.from_numpy(vocabulary.features))
    ids = processor.perturbation_ids(processor.perturbations).numpy().astype(np.int32)
    treatments = processor.treatments_of(processor.perturbations)
    for part in cells.values():
        part.treatments = None if treatments is None else treatments.numpy()[part.perturbation_ids]
        part.perturbation_ids = ids[part.perturbation_ids]
    if prior.config.cell_type_context:
        contexts = control_contexts(prior.tokenizer, sources, settings.seed, device, check_stop)
        table = prior.condition.cell_type
        (table.add_contexts if trained else table.set_contexts)(torch.from_numpy(contexts[:, 0]))
        cells["train"].contexts, cells["validation"].contexts = contexts, contexts[:, :1]


@torch.no_grad()
def control_contexts(
    tokenizer: Any, sources: Sources, seed: int, device: torch.device, check_stop: StopCheck
) -> np.ndarray:
    """Mean embeddings of every cell type's training controls, float32 (cell types, N_SAMPLES, embedding).

    The first is over all controls, the others over random samples of them, so that the prior learns how little a
    context is to be trusted that comes from a few cells.

    Raises:
        EvaeError: a cell type of the training cells has no controls.
    """
    info = sources.info
    control = info.perturbations.index(info.control)
    tokenizer.to(device).eval()
    found: list[list[np.ndarray]] = [[] for _ in info.cell_types]
    batches = chain.from_iterable(sources.cells(i, "train", READ_BATCH) for i in range(len(sources)))
    for batch in checked_for_stop(batches, check_stop):
        rows = batch["perturbation_ids"] == control
        if rows.any():
            embedded = tokenizer.embed(batch["counts"][rows].to(device), batch["gene_ids"][rows].to(device)).float()
            for kind, vector in zip(batch["cell_type_ids"][rows].tolist(), embedded.cpu().numpy(), strict=True):
                if len(found[kind]) < MAX_CONTROLS:
                    found[kind].append(vector)
    seen = info.statistics["cell_counts"]["train"]
    rng, width = np.random.default_rng(seed), tokenizer.config.embedding_size
    contexts = np.zeros((len(info.cell_types), N_SAMPLES, width), dtype=np.float32)
    for kind, vectors in enumerate(found):
        if not vectors:
            if not seen.get(info.cell_types[kind]):
                continue
            raise EvaeError(
                f"the cell type '{info.cell_types[kind]}' has no training controls, so it has no context; drop its "
                "cells, or set model.cell_type_context=false."
            )
        pool = np.stack(vectors)
        sizes = np.exp(rng.uniform(np.log(min(FEWEST_CONTROLS, len(pool))), np.log(len(pool)), N_SAMPLES)).round()
        contexts[kind] = [pool[rng.choice(len(pool), int(n), replace=False)].mean(0) for n in sizes]
        contexts[kind, 0] = pool.mean(0)
    return contexts
