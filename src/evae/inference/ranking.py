"""Which perturbation explains cells best, the control among them.

A prior that reads control cells scores the control as an unknown perturbation without an effect. That name stands for
all that training saw, so it is broader than any one name, and even control cells are less likely under it than under a
knock-out that does nothing. So the control gets the lead that the best name has on the user's own control cells: there
it explains as much as the best name does, and a perturbation stands above it where cells show more of it than controls.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.labels import label_texts
from evae.inference.checkpoint import Checkpoint
from evae.inference.request import cell_type_labels, choose_controls
from evae.inference.sampling import source_cells
from evae.inference.scoring import Scoring, scores_of
from evae.models.contract_evae import EvaeError, near_matches

RANKING = ("group", "perturbation", "log_likelihood", "over_control", "best_for")
MOST_CONTROLS = 100  # of a cell type, that tell the lead


def rank_cells(
    prior: Checkpoint,
    cells: ad.AnnData | str | Path,
    perturbations: Sequence[str] | None,
    controls: ad.AnnData | str | Path | None,
    groupby: str | None,
    asked: Scoring,
    device: torch.device,
) -> pd.DataFrame:
    """See `Pipeline.rank_perturbations`."""
    adata = as_anndata(cells, "the cells", asked.layer, (asked.cell_type_key, groupby))
    if groupby is not None and groupby not in adata.obs:
        raise EvaeError(f"the cells have no obs column '{groupby}'. {near_matches(groupby, list(adata.obs))}")
    groups = label_texts(adata.obs[groupby]) if groupby else np.full(adata.n_obs, "all cells", dtype=object)
    control = str(prior.processor.control)
    wanted = prior.processor.perturbations if perturbations is None else perturbations
    names = list(dict.fromkeys([*map(str, wanted), control]))
    if controls is not None:
        given = as_anndata(controls, "the controls", asked.layer, (asked.cell_type_key, asked.perturbation_key))
        controls = choose_controls(given, prior.processor, asked.perturbation_key, asked.control)
    asked = replace(asked, layer=None)  # it was read
    scores = scores_of(prior, adata, names, controls, asked, device).to_numpy()
    lead = np.zeros(len(scores))
    if isinstance(controls, ad.AnnData) and source_cells(prior):
        key = asked.cell_type_key
        own = np.full(len(scores), asked.cell_type) if asked.cell_type else label_texts(adata.obs[key])
        lead = _lead_on_controls(prior, controls, np.asarray(own, dtype=object), names, asked, device)
    return _ranked(names, control, scores, lead, groups)


def _lead_on_controls(
    prior: Checkpoint, controls: ad.AnnData, kinds: np.ndarray, names: list[str], asked: Scoring, device: torch.device
) -> np.ndarray:
    """By how much the best name explains control cells better than the control does, nats, at least 0.

    Args:
        controls: unperturbed cells.
        kinds: cell type of every cell that is ranked, (cells,).
        names: of the perturbations, the control among them.

    Returns:
        the lead in the cell type of every cell, (cells,).
    """
    labels = cell_type_labels(controls, list(dict.fromkeys(kinds)), asked.cell_type_key)
    rng = np.random.default_rng(asked.seed)
    lead = np.zeros(len(kinds))
    for kind in dict.fromkeys(kinds):
        rows = np.flatnonzero(labels == kind)
        some = controls[np.sort(rng.permutation(rows)[:MOST_CONTROLS])].copy()
        of_names = scores_of(prior, some, names, controls, replace(asked, cell_type=str(kind)), device).mean()
        lead[kinds == kind] = max(float(of_names.max() - of_names[str(prior.processor.control)]), 0.0)
    return lead


def _ranked(
    names: Sequence[str], control: str, scores: np.ndarray, lead: np.ndarray, groups: np.ndarray
) -> pd.DataFrame:
    """The perturbations of every group of cells, best first.

    Args:
        names: of the columns of `scores`.
        control: its name.
        scores: log-likelihoods, (cells, perturbations).
        lead: what the control gets on top, (cells,).
        groups: of the cells, (cells,).
    """
    raised = scores + lead[:, None] * (np.array(names) == control)
    tables, best = [], raised.argmax(1)
    for group in pd.unique(pd.Series(groups)):
        rows = groups == group
        mean, level = scores[rows].mean(0), raised[rows].mean(0)
        share = np.bincount(best[rows], minlength=len(names)) / rows.sum()
        columns = (group, list(names), mean, level - level[list(names).index(control)], share)
        table = pd.DataFrame(dict(zip(RANKING, columns, strict=True)))
        tables.append(table.sort_values("over_control", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)
