"""A prediction: the cells asked for are planned, get a control and a library size each, and are drawn."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from evae.common.messages import number_of
from evae.data.format import Pair
from evae.data.reading.anndata_file import as_anndata
from evae.inference.checkpoint import Checkpoint
from evae.inference.decoder_labels import told_to_decoder
from evae.inference.effects import effects_on_controls, log_fold_changes
from evae.inference.embedding import said_coverage
from evae.inference.library import choose_library_sizes, compare_with_controls
from evae.inference.matching import match_effects, wanted_of
from evae.inference.request import (
    CellOptions,
    cell_type_labels,
    choose_controls,
    keep_own_columns,
    listed,
    pairs_asked_for,
    planned_cells,
    planned_genes,
)
from evae.inference.requests import requested_pairs
from evae.inference.sampling import (
    ControlFacts,
    conditions_of,
    draw_cells,
    knows_by_context,
    read_control_facts,
    reads_controls,
    source_cells,
    takes_effects,
)
from evae.inference.spread import FEWEST_CELLS, PairMeans
from evae.inference.totals import with_means
from evae.inference.transfer import EffectTransfer
from evae.inference.treatments import Amounts, add_treatments, treated, warn_beyond
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.sampling_evae import takes_temperature, temperature_of

FEW_EFFECTS = 10  # perturbations, below which a prior has hardly learned to read effects


@dataclass(frozen=True)
class Request(CellOptions):
    """What a user asks for; the fields, and what they are if left out, are the arguments of `Pipeline.predict`."""

    perturbation: str | Sequence[str] | None
    cell_type: str | Sequence[str] | None = None
    n_cells: int | Mapping[Pair, int] | None = None
    requests: pd.DataFrame | str | Path | None = None
    dose: Amounts = None
    dose_unit: str | None = None
    time: Amounts = None
    effects: pd.DataFrame | str | Path | None = None
    match_effects: bool = False
    effect_transfer: float | None = None
    library_size: Any = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, perturbation: str, cell_type: str | None, options: Mapping[str, Any]) -> "Request":
        """That of `Pipeline.counterfactual`: `options` are further fields, and options of the prior's `sample`."""
        for name in ("n_cells", "requests"):
            if name in options:
                raise EvaeError(f"counterfactual changes every control once; leave {name} out, or use predict.")
        own = {
            name: value for name, value in options.items() if name in cls.__dataclass_fields__ and name != "sampling"
        }
        sampling = {name: value for name, value in options.items() if name not in own}
        if own.get("effect_transfer") is None:
            own["effect_transfer"] = 0.0  # what becomes of one cell shall not depend on the others
        return cls(perturbation, cell_type, sampling=sampling, **own)


@dataclass(frozen=True)
class Controls:
    """The controls of the cell types asked for: the cells, and what they tell."""

    cells: ad.AnnData
    found: ControlFacts


def predict_cells(
    prior: Checkpoint, controls: ad.AnnData | str | Path | None, asked: Request, device: torch.device
) -> ad.AnnData:
    """See `Pipeline.predict`."""
    given = None if controls is None else _controls_among(controls, prior, asked)
    folds = _read_folds(prior, given, asked)
    any_cell_type = given is not None and (knows_by_context(prior) or reads_controls(prior))
    pairs = _pairs(prior, given, asked, any_cell_type, folds)
    obs = planned_cells(pairs, prior.processor)
    read = None if given is None else _read_controls(prior, given, pairs, asked, device)
    sources = None if read is None else read.found.draw_sources(pairs, np.random.default_rng(asked.seed))
    return _draw(prior, given, asked, device, obs, read, sources, folds, PairMeans.of(prior.model, obs))


def change_cells(
    prior: Checkpoint, controls: ad.AnnData | str | Path, asked: Request, device: torch.device
) -> ad.AnnData:
    """See `Pipeline.counterfactual`."""
    if not source_cells(prior):
        raise EvaeError(f"{prior.name} reads no source cells; train a prior with model.source_cells=1.")
    given = _controls_among(controls, prior, asked)
    folds = _read_folds(prior, given, asked)
    pairs = _pairs(prior, given, asked, True, folds)
    if len({name for _, name in pairs}) > 1:
        raise EvaeError("counterfactual changes every cell once; name one perturbation.")
    read = _read_controls(prior, given, pairs, asked, device)
    order = np.concatenate([read.found.rows[kind] for kind, _ in pairs])
    obs = planned_cells(pairs, prior.processor).iloc[np.argsort(order)].copy()
    obs.index = pd.Index(read.found.names)
    means = PairMeans.of(prior.model, obs) if asked.effect_transfer else None
    return _draw(prior, given, asked, device, obs, read, np.arange(len(obs)), folds, means)


def _controls_among(cells: ad.AnnData | str | Path, prior: Checkpoint, asked: Request) -> ad.AnnData:
    keys = (asked.cell_type_key, asked.perturbation_key)
    given = as_anndata(cells, "the controls", asked.layer, keys)  # the counts are in X from here on
    return choose_controls(given, prior.processor, asked.perturbation_key, asked.control)


def _pairs(
    prior: Checkpoint, controls: ad.AnnData | None, asked: Request, any_cell_type: bool, folds: Mapping[str, np.ndarray]
) -> dict[Pair, int]:
    n_cells = asked.n_cells
    if asked.requests is not None:
        if n_cells is not None or asked.perturbation is not None or asked.cell_type is not None:
            raise EvaeError("requests name the pairs; leave perturbation, cell_type and n_cells out.")
        n_cells = requested_pairs(asked.requests, controls, asked.cell_type_key, prior.processor)
    names = asked.perturbation
    if names is not None:
        names = treated(prior.processor, listed(names, "perturbation"), asked.dose, asked.dose_unit, asked.time)
    elif asked.dose is not None or asked.time is not None:
        raise EvaeError("dose and time go with perturbation; in requests they are columns.")
    wanted = (controls, names, asked.cell_type, n_cells, asked.cell_type_key, any_cell_type)
    pairs = pairs_asked_for(prior.processor, *wanted, told=folds if takes_effects(prior) else ())
    warn_beyond(prior.processor, dict.fromkeys(name for _, name in pairs))
    lacking = [name for _, name in pairs if name not in folds] if asked.match_effects else []
    if lacking:
        raise EvaeError(
            f"the effects lack '{lacking[0]}', which match_effects needs. {near_matches(lacking[0], list(folds))}"
        )
    return pairs


def _read_folds(prior: Checkpoint, controls: ad.AnnData | None, asked: Request) -> dict[str, np.ndarray]:
    """Perturbation -> log2 fold changes that the user gives."""
    if asked.effects is None:
        if asked.match_effects:
            raise EvaeError("match_effects follows log2 fold changes that you know; give them as effects.")
        return {}
    if not takes_effects(prior) and not asked.match_effects:
        raise EvaeError(
            f"{prior.name} takes no effects; train a prior with model.condition_on_effect=true, or set "
            "match_effects=True, which changes the drawn cells."
        )
    if controls is None:
        raise EvaeError("effects are imposed on control cells; give controls.")
    return log_fold_changes(asked.effects, prior.processor)


def _transfers(prior: Checkpoint, asked: Request) -> bool:
    """Whether the drawn cells are moved towards effects that training cells tell."""
    given = asked.effect_transfer
    if given is None:
        return prior.effects is not None and not asked.match_effects
    if not isinstance(given, int | float | np.number) or not 0 <= given <= 1:
        raise EvaeError(
            f"effect_transfer is {given!r}; give a number from 0 (as drawn) to 1 (the mean that training cells tell)."
        )
    if given and asked.match_effects:
        raise EvaeError("effect_transfer and match_effects both set the mean of the cells; give one of them.")
    if given and prior.effects is None:
        raise EvaeError(
            f"{prior.name} keeps no effects of training cells; set effect_transfer=0, give effects, or train it anew."
        )
    return given > 0


def _told(prior: Checkpoint, folds: Mapping[str, np.ndarray], asked: Request) -> Mapping[str, np.ndarray]:
    """The effects that the prior is told.

    Where the drawn cells are changed to follow them, those of new perturbations alone: of others the prior knows more
    than a mean, and with what it knows the changed cells come out closer to real ones.
    """
    if not asked.match_effects:
        return folds
    if not takes_effects(prior):
        return {}
    known, parts = prior.processor.names().known, prior.processor.parts_of_all(folds)
    return {name: of for name, of in folds.items() if any(part not in known for part in parts[name])}


def _doubt(prior: Checkpoint, told: Mapping[str, np.ndarray], pairs: Iterable[Pair]) -> None:
    """Warn where effects are told to a prior that has hardly learned to read them."""
    learned = len(prior.processor.perturbations) - 1
    if learned < FEW_EFFECTS and not told.keys().isdisjoint(name for _, name in pairs):
        warnings.warn(
            f"this prior learned to read the effects of {number_of(learned, 'perturbation')}, too few to "
            "follow closely those given; match_effects=True makes the cells follow them.",
            stacklevel=2,
        )


def _read_controls(
    prior: Checkpoint, controls: ad.AnnData, pairs: Mapping[Pair, int], asked: Request, device: torch.device
) -> Controls:
    cell_types = list(dict.fromkeys(c for c, _ in pairs))
    labels = cell_type_labels(controls, cell_types, asked.cell_type_key)
    rows = np.flatnonzero(np.isin(labels, cell_types))
    cells = controls[rows]
    return Controls(cells, read_control_facts(prior, cells, labels[rows], device=device, batch_key=asked.batch_key))


def _draw(
    prior: Checkpoint,
    controls: ad.AnnData | None,
    asked: Request,
    device: torch.device,
    obs: pd.DataFrame,
    read: Controls | None,
    sources: np.ndarray | None,
    folds: Mapping[str, np.ndarray],
    means: PairMeans | None,
) -> ad.AnnData:
    """The cells that `obs` plans; `sources` is the control of every cell. Without `means` each is drawn by itself."""
    found, seed = None if read is None else read.found, asked.seed
    rng = np.random.default_rng(seed if found is None else (seed, 1))
    sizes, origin = choose_library_sizes(asked.library_size, prior.processor, obs, found, sources, rng)
    obs["library_size"] = sizes
    add_treatments(obs, prior.processor)
    facts: dict[str, Any] = {"seed": seed, "control": str(prior.processor.control), "library_size_source": origin}
    if prior.processor.treatments:
        facts["dose_unit"] = ", ".join(prior.processor.names().known.dose_units())
    facts["library_size_median"] = compare_with_controls(obs, found)
    default = getattr(prior.model.config, "guidance_scale", 1.0)
    facts["guidance_scale"] = float(asked.sampling.get("guidance_scale", default))
    if takes_temperature(prior.model):
        facts["temperature"] = temperature_of(prior.model.config, asked.sampling.get("temperature"))
    transfers = _transfers(prior, asked)
    shifts = {}
    pairs = list(obs.groupby(["cell_type", "perturbation"], observed=True).indices)
    if read is not None:
        reading: dict[str, Any] = {"device": device, "seed": seed}
        told = _told(prior, folds, asked)
        _doubt(prior, told, pairs)
        shifts = effects_on_controls(prior, read.cells, read.found, told, pairs, **reading)
        if sources is not None and source_cells(prior):
            obs["source"] = read.found.names[sources]
    if controls is not None:
        facts["gene_coverage"] = said_coverage(prior.processor, controls, "the controls")
    conditions = conditions_of(prior, obs, found, sources, seed, shifts) | told_to_decoder(prior, obs)
    how: dict[str, Any] = {"batch_size": asked.batch_size, "progress": asked.progress, "sampling": asked.sampling}
    X = draw_cells(prior, conditions, seed=seed, device=device, means=means, **how)
    if asked.match_effects and read is not None:
        wanted = wanted_of(prior.processor, read.cells, read.found, folds, pairs)
        X, facts["matched_effects"] = match_effects(X, obs, wanted, seed)
    elif transfers and read is not None:
        transfer = EffectTransfer.of(prior, read.cells, read.found, folds)
        X, moved = transfer.move(X, obs, seed, asked.effect_transfer, means)
        facts |= moved.facts()
        if asked.effect_transfer and not moved:
            warnings.warn(
                f"effect_transfer={asked.effect_transfer:g} moves no cells: no pair has {FEWEST_CELLS} cells or "
                "more of a perturbation of which other cell types tell.",
                stacklevel=2,
            )
    elif means is not None:
        X = with_means(X, obs, means.means(), seed)
    keep_own_columns(obs, controls, {asked.cell_type_key: "cell_type", asked.perturbation_key: "perturbation"})
    var = planned_genes(prior.processor, controls)
    return ad.AnnData(X=X, obs=obs, var=var, uns={"evae": facts | prior.provenance()})
