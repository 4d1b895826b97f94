"""Give a prior what it reads of control cells: source cells by coupling, and the known effects of perturbations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evae.training.codes import EncodedCells
from evae.training.couplings import DRAWS, couple
from evae.training.effects import effect_table
from evae.training.encoder import Encoder
from evae.training.prompts import COPIES, Controls, Prompts
from evae.training.settings import PriorSettings

EFFECT_DRAWS = 8  # of every effect within its error


@dataclass(frozen=True)
class Vocabularies:
    """What the couplings need to know of the data and the run.

    Attributes:
        n_perturbations: of the dataset, the control included.
        control: its id.
        cell_types: their names.
        coupling: see `evae.training.couplings`.
        seed: of the run.
    """

    n_perturbations: int
    control: int
    cell_types: list[str]
    coupling: str
    seed: int


def set_prompts(prior: Any, cells: dict[str, EncodedCells], encoder: Encoder, settings: PriorSettings) -> None:
    """Give the encoded cells their source cells and known effects, and the prior what it must keep of them."""
    info = encoder.sources.info
    control = info.perturbations.index(info.control)
    data = Vocabularies(len(info.perturbations), control, list(info.cell_types), settings.coupling, settings.seed)
    whole = encoder.whole_rows(settings.thinned_copies)
    copies = [encoder.controls(control, copy) for copy in range(1, 1 + COPIES)] if prior.source is not None else []
    prompts, effects = prompts_of(prior.config, cells, whole, copies, data)
    for split, found in prompts.items():
        cells[split].prompts = found
    if prior.source is not None:
        prior.source.set_statistics(torch.from_numpy(cells["train"].latents))
    if prior.condition.effect is not None:
        prior.condition.effect.set_table(torch.from_numpy(effects))


def prompts_of(
    config: Any,
    cells: Mapping[str, EncodedCells],
    whole: np.ndarray,
    copies: Sequence[EncodedCells],
    data: Vocabularies,
) -> tuple[dict[str, Prompts], np.ndarray]:
    """The prompts of the training and the validation cells, and the table of effects (see `effect_table`).

    Args:
        config: of the prior.
        cells: split -> encoded cells, with latents and the perturbation ids of the dataset.
        whole: for every training cell the row of the cell that it is a thinned copy of, or its own, (cells,).
        copies: the training controls again, thinned, in the same order.
        data: the vocabularies and what the run is set to.

    Raises:
        EvaeError: a cell type has perturbed cells and no training controls.
    """
    train, validation = cells["train"], cells["validation"]
    firsts = np.flatnonzero(whole == np.arange(len(whole)))
    flat = train.latents.reshape(len(train), -1)
    table, errors = effect_table(
        flat[firsts], train.perturbation_ids[firsts], train.cell_type_ids[firsts],
        n_perturbations=data.n_perturbations, n_cell_types=len(data.cell_types), control=data.control,
    )  # fmt: skip
    is_control = train.perturbation_ids[firsts] == data.control
    rows = firsts[is_control]
    pool = Controls(
        latents=np.stack([train.latents[rows], *(copy.latents for copy in copies)]),
        library_size=np.stack([train.library_size[rows], *(copy.library_size for copy in copies)]),
        cell_type_ids=train.cell_type_ids[rows],
    )
    own = np.where(is_control, np.cumsum(is_control) - 1, -1)
    found = _couple(config, train, firsts, pool, own, data)
    of_whole = np.zeros(len(train), dtype=np.int64)
    of_whole[firsts] = np.arange(len(firsts))
    held = validation.perturbation_ids == data.control  # a validation control is its own source
    more = Controls(
        latents=np.concatenate([pool.latents[0], validation.latents[held]])[None],
        library_size=np.concatenate([pool.library_size[0], validation.library_size[held]])[None],
        cell_type_ids=pool.cell_type_ids,
    )
    own = np.where(held, len(rows) + np.cumsum(held) - 1, -1)
    of_validation = _couple(config, validation, np.arange(len(validation)), pool, own, data)
    drawn = np.random.default_rng(data.seed).normal(size=(EFFECT_DRAWS, *table.shape)).astype(np.float32)
    drawn[0] = 0
    effects = (table + drawn * errors)[:, :-1].reshape(EFFECT_DRAWS, -1, table.shape[2])
    prompts = {}
    for split, some, controls, sources in (
        ("train", train, pool, found[of_whole[whole]]),
        ("validation", validation, more, of_validation),
    ):
        told = effects if config.condition_on_effect else None
        effect_rows = some.cell_type_ids.astype(np.int32) * data.n_perturbations + some.perturbation_ids
        prompts[split] = Prompts(controls, sources, config.source_cells, told, effect_rows)
    return prompts, table


def _couple(
    config: Any, cells: EncodedCells, rows: np.ndarray, pool: Controls, own: np.ndarray, data: Vocabularies
) -> np.ndarray:
    if not config.source_cells:
        return np.zeros((len(rows), 1), dtype=np.int32)
    return couple(
        cells.latents[rows].reshape(len(rows), -1), cells.perturbation_ids[rows], cells.cell_type_ids[rows], own,
        pool.latents[0].reshape(pool.latents.shape[1], -1), pool.cell_type_ids, control=data.control,
        names=data.cell_types, how=data.coupling if config.source_cells == 1 else "random",
        n_draws=max(DRAWS, config.source_cells), as_set=config.source_cells > 1, seed=data.seed,
    )  # fmt: skip
