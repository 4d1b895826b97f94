"""How likely cells are after each perturbation.

A prior gives the likelihood of a cell's codes under a condition: exactly where it is autoregressive, a lower bound from
masked diffusion. A prior that reads control cells is prompted with several controls of the cell type in turn, and the
likelihoods are averaged. All perturbations are given the same controls, so that their differences are not those of the
prompts. There "control" answers with the very cell that is read, so the control is scored as an unknown perturbation
without an effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evae.common.progress import progress_bar
from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.labels import label_texts
from evae.inference.checkpoint import Checkpoint
from evae.inference.request import CellOptions, cell_type_labels, choose_controls, listed
from evae.inference.sampling import (
    ControlFacts,
    conditions_of,
    panel_batches,
    read_control_facts,
    reads_controls,
    source_cells,
)
from evae.models.contract_evae import EvaeError
from evae.models.randomness_evae import CellStreams

NO_EFFECT = "without an effect"  # the control's name where "control" would give back the cell that is read


@dataclass(frozen=True)
class Scoring(CellOptions):
    """How cells are scored; the fields, with those of `CellOptions`, are the options of `Pipeline.score`.

    Attributes:
        cell_type: of all cells; None takes it from the obs column.
        n_prompts: controls that each cell is scored from in turn; the likelihoods are averaged.
    """

    cell_type: str | None = None
    n_prompts: int = 4


@dataclass(frozen=True)
class Scored:
    """What the scores are of.

    Attributes:
        codes: of the cells, int64 (cells, latents).
        library_size: total counts over the panel, float32 (cells,).
        cell_types: of the cells, str (cells,).
        controls: what the controls tell; None where the prior reads none.
    """

    codes: Tensor
    library_size: np.ndarray
    cell_types: np.ndarray
    controls: ControlFacts | None


def score_cells(
    prior: Checkpoint,
    cells: ad.AnnData | str | Path,
    perturbation: str | Sequence[str],
    controls: ad.AnnData | str | Path | None,
    asked: Scoring,
    device: torch.device,
) -> pd.DataFrame:
    """See `Pipeline.score`."""
    names = listed(perturbation, "perturbation")
    adata = as_anndata(cells, "the cells", asked.layer, (asked.cell_type_key,))
    return scores_of(prior, adata, names, controls, asked, device)


def scores_of(
    prior: Checkpoint,
    cells: ad.AnnData,
    names: list[str],
    controls: ad.AnnData | str | Path | None,
    asked: Scoring,
    device: torch.device,
) -> pd.DataFrame:
    """The scores of `cells`, whose counts are in X."""
    prior.processor.perturbation_ids(names)
    for option in ("n_prompts", "batch_size"):
        if getattr(asked, option) < 1:
            raise EvaeError(f"{option} is {getattr(asked, option)}; give at least 1.")
    if controls is not None:
        given = as_anndata(controls, "the controls", asked.layer, (asked.cell_type_key, asked.perturbation_key))
        controls = choose_controls(given, prior.processor, asked.perturbation_key, asked.control)
    scored = _read(prior, cells, controls, asked, device)
    return pd.DataFrame(_log_likelihoods(prior, scored, names, asked, device), cells.obs_names, names)


def _read(
    prior: Checkpoint, cells: ad.AnnData, controls: ad.AnnData | None, asked: Scoring, device: torch.device
) -> Scored:
    """Encode the cells, and the controls where the prior reads them."""
    cell_type, cell_type_key = asked.cell_type, asked.cell_type_key
    if not hasattr(prior.model, "score"):
        raise EvaeError(f"{prior.name} gives no likelihood; score with an autoregressive or masked diffusion prior.")
    if cell_type is None and (cell_type_key is None or cell_type_key not in cells.obs):
        raise EvaeError(f"the cells have no obs column '{cell_type_key}'; name their cell_type, or their column.")
    own = np.full(cells.n_obs, cell_type, dtype=object) if cell_type else label_texts(cells.obs[cell_type_key])
    kinds = list(pd.unique(pd.Series(own)))
    found = None
    if reads_controls(prior):
        if controls is None:
            raise EvaeError(f"{prior.name} reads control cells; give controls of the same cell types.")
        labels = cell_type_labels(controls, kinds, cell_type_key)
        rows = np.flatnonzero(np.isin(labels, kinds))
        found = read_control_facts(prior, controls[rows], labels[rows], device=device)
    codes, sizes = [], []
    with torch.inference_mode():
        for batch in panel_batches(prior.processor, cells, device=device):
            codes.append(prior.tokenizer.encode(batch["counts"], batch["gene_ids"]).cpu())
            sizes.append(batch["library_size"].cpu().numpy())
    return Scored(torch.cat(codes), np.concatenate(sizes), own, found)


def _log_likelihoods(
    prior: Checkpoint, scored: Scored, names: Sequence[str], asked: Scoring, device: torch.device
) -> np.ndarray:
    """Log-likelihood of every cell's codes after every perturbation, nats, float64 (cells, perturbations)."""
    n_cells, width = len(scored.codes), getattr(prior.model.condition.effect, "width", 0)
    n_prompts = asked.n_prompts if source_cells(prior) else 1
    rng = np.random.default_rng(asked.seed)
    facts = scored.controls
    sources = [facts.draw_any(scored.cell_types, 1, rng)[:, 0] if facts else None for _ in range(n_prompts)]
    streams = CellStreams.spawn(torch.Generator().manual_seed(asked.seed), n_cells)
    none = {(str(kind), NO_EFFECT): torch.zeros(width) for kind in pd.unique(pd.Series(scored.cell_types))}
    result = np.empty((n_cells, len(names)))
    with progress_bar(asked.progress) as bar:
        advance = bar.start("scoring cells", n_cells * len(names) * n_prompts)
        for column, name in enumerate(names):
            shifts = none if name == prior.processor.control and source_cells(prior) else None
            obs = pd.DataFrame({"cell_type": pd.Categorical(scored.cell_types), "library_size": scored.library_size})
            obs["perturbation"] = pd.Categorical(np.full(n_cells, NO_EFFECT if shifts else name, dtype=object))
            each = np.empty((n_prompts, n_cells))
            for row, chosen in enumerate(sources):
                conditions = conditions_of(prior, obs, facts, chosen, asked.seed + row, shifts)
                for start in range(0, n_cells, asked.batch_size):
                    part = slice(start, start + asked.batch_size)
                    each[row, part] = _score(prior, scored.codes[part], conditions, part, streams, device)
                    advance(len(scored.codes[part]))
            result[:, column] = np.logaddexp.reduce(each, axis=0) - np.log(n_prompts)
    return result


@torch.inference_mode()
def _score(
    prior: Checkpoint, codes: Tensor, conditions: dict[str, Tensor], part: slice, streams: CellStreams,
    device: torch.device,
) -> np.ndarray:  # fmt: skip
    own: dict[str, Any] = {name: values[part].to(device) for name, values in conditions.items()}
    if prior.model.config.model_type == "evae_mdlm":  # the same maskings for every perturbation
        own["generator"] = streams[part]
    values: np.ndarray = prior.model.score(codes.to(device), **own).double().cpu().numpy()
    return values
