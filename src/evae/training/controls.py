"""Give a prior what it reads of control cells: source cells by coupling, and the known effects of perturbations."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evae.common.digests import weights_digest
from evae.common.logs import logger
from evae.training.batches import cell_batches
from evae.training.codes import EncodedCells
from evae.training.components import principal_components
from evae.training.couplings import Cells, without_control
from evae.training.effects import effect_table
from evae.training.encoder import Encoder
from evae.training.pairs import SPLITS, PairSettings, keep_pairs, kept_or_made, make_pairs, pairing_key
from evae.training.prompts import COPIES, Controls, Prompts
from evae.training.settings import PriorSettings

LOG = logger(__name__)

EFFECT_DRAWS = 8  # of every effect within its error


def set_prompts(
    prior: Any, cells: dict[str, EncodedCells], encoder: Encoder, settings: PriorSettings, folder: Path,
    trained: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """Give the encoded cells their source cells and known effects, and the prior what it must keep of them.

    Args:
        prior: that reads controls.
        cells: split -> encoded cells, with latents and the perturbation ids of the dataset; changed in place.
        encoder: of these cells.
        settings: of the training.
        folder: of the run, which may keep pairs from before.
        trained: whether the prior was trained before. It keeps its statistics and the effects that it knows; effects
            that a cell type could only have from its own cells are then told to it, since new cells often are of one.

    Returns:
        what writes the pairs into the folder, once it is this run's.

    Raises:
        EvaeError: a cell type has perturbed cells and no training controls.
    """
    info = encoder.sources.info
    control = info.perturbations.index(info.control)
    whole = encoder.whole_rows(settings.thinned_copies)
    firsts = np.flatnonzero(whole == np.arange(len(whole)))  # without the thinned copies of training cells
    measured = {"train": cells["train"].part(firsts), "validation": cells["validation"]}
    pairs, keep = {split: np.zeros((len(measured[split]), 1), dtype=np.int32) for split in SPLITS}, _nothing
    copies = []
    if prior.source is not None:
        pairs, keep = _pairs(prior.config, measured, encoder, settings, folder)
        copies = [encoder.controls(control, copy) for copy in range(1, 1 + COPIES)]
        if not trained:
            prior.source.set_statistics(torch.from_numpy(cells["train"].latents))
    pairs["train"] = pairs["train"][np.searchsorted(firsts, whole)]
    pools = control_pools(measured, copies, control)
    size = (len(info.perturbations), len(info.cell_types))
    table, effects = known_effects(measured["train"], *size, control, settings.seed, own=trained)
    of_prior, told = prior.condition.effect, None
    if of_prior is not None:
        (of_prior.add_to_table if trained else of_prior.set_table)(torch.from_numpy(table))
        kept = of_prior.effects()[:-1].reshape(1, -1, table.shape[2]).cpu().numpy()
        told = np.where(np.isnan(effects), kept, effects)  # what only the cells before tell of a pair
    for split in SPLITS:
        rows = cells[split].cell_type_ids.astype(np.int32) * size[0] + cells[split].perturbation_ids
        cells[split].prompts = Prompts(pools[split], pairs[split], prior.config.source_cells, told, rows)
    return keep


def control_pools(
    measured: Mapping[str, EncodedCells], copies: Sequence[EncodedCells], control: int
) -> dict[str, Controls]:
    """The controls that cells of either split may start from.

    Args:
        measured: split -> its cells, without thinned copies.
        copies: the training controls again, thinned, in the same order.
        control: id of the control.

    Returns:
        split -> controls. To the validation cells the training controls are whole, and those of their own follow.
    """
    train, validation = (measured[split] for split in SPLITS)
    rows, own = (np.flatnonzero(some.perturbation_ids == control) for some in (train, validation))
    return {
        "train": Controls(
            latents=np.stack([train.latents[rows], *(copy.latents for copy in copies)]),
            library_size=np.stack([train.library_size[rows], *(copy.library_size for copy in copies)]),
        ),
        "validation": Controls(
            latents=np.concatenate([train.latents[rows], validation.latents[own]])[None],
            library_size=np.concatenate([train.library_size[rows], validation.library_size[own]])[None],
        ),
    }


def known_effects(
    train: EncodedCells, n_perturbations: int, n_cell_types: int, control: int, seed: int, own: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The table of effects (see `effect_table`), and draws of each within its error as `Prompts` holds them.

    With `own`, a cell type is told the effect in its own cells where no other one tells of it.
    """
    table, errors = effect_table(
        train.latents.reshape(len(train), -1), train.perturbation_ids, train.cell_type_ids,
        n_perturbations=n_perturbations, n_cell_types=n_cell_types, control=control,
    )  # fmt: skip
    if own:
        errors = np.where(np.isnan(table), errors[-1], errors)
        table = np.where(np.isnan(table), table[-1], table)
    drawn = np.random.default_rng(seed).normal(size=(EFFECT_DRAWS, *table.shape)).astype(np.float32)
    drawn[0] = 0
    return table, (table + drawn * errors)[:, :-1].reshape(EFFECT_DRAWS, -1, table.shape[2])


def _pairs(
    config: Any, measured: Mapping[str, EncodedCells], encoder: Encoder, settings: PriorSettings, folder: Path
) -> tuple[dict[str, np.ndarray], Callable[[], None]]:
    """The pairs of both splits (see `make_pairs`), and what keeps them."""
    info, wanted = encoder.sources.info, PairSettings.of(config, settings)
    control = info.perturbations.index(info.control)
    digests = [[shard.get("sha256") for shard in own.statistics["shards"]] for own in encoder.sources.infos]
    data = (weights_digest(encoder.tokenizer), info.perturbations, info.cell_types, info.n_cells, digests)
    key = pairing_key(wanted, *data)

    def make() -> dict[str, np.ndarray]:
        of_cells, names = cell_batches(encoder)
        points = {split: some.latents.reshape(len(some), -1) for split, some in measured.items()}
        if wanted.needs_points and wanted.space == "pca":
            points = principal_components(encoder, SPLITS)
        cells = {
            split: Cells(points[split], some.perturbation_ids, some.cell_type_ids, of_cells[split])
            for split, some in measured.items()
        }
        pool = cells["train"].part(np.flatnonzero(cells["train"].perturbation == control))
        note = without_control(cells["train"], pool, control, list(info.cell_types), names)
        if note and encoder.accelerator.is_main_process:
            LOG.warning(f"note: {note}")
        return make_pairs(wanted, cells, control, list(info.cell_types))

    sizes = {split: (len(some), wanted.n_draws) for split, some in measured.items()}
    pairs = kept_or_made(folder, key, sizes, make, encoder.accelerator)
    return pairs, partial(keep_pairs, folder, key, dict(pairs))


def _nothing() -> None:
    """Without pairs there is nothing to keep."""
