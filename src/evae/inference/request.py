"""What a prediction asks for, checked against the model and the controls, and the cells it gives."""

import numbers
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from torch import Tensor

from evae.common.messages import number_of
from evae.data.format import Pair
from evae.data.reading.labels import label_codes, label_texts
from evae.models.contract_evae import EvaeError, check_unique, look_up, near_matches
from evae.models.genes_evae import ensembl_id, gene_columns
from evae.models.randomness_evae import Randomness, draw_uniform


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """How controls and cells are read and worked on; the fields are arguments of `Pipeline.predict`."""

    seed: int = 0
    batch_size: int = 256
    cell_type_key: str | None = "cell_type"
    perturbation_key: str = "perturbation"
    batch_key: str | None = None
    control: str | None = None
    layer: str | None = None
    progress: bool = True


def listed(given: str | Sequence[str], kind: str) -> list[str]:
    """One name or several as a list without repetition."""
    names = [given] if isinstance(given, str) else [str(n) for n in given]
    if not names:
        raise EvaeError(f"no {kind} was named; name at least one.")
    check_unique(names, kind)
    return names


def pairs_asked_for(
    processor: Any,
    controls: ad.AnnData | None,
    perturbation: str | Sequence[str] | None,
    cell_type: str | Sequence[str] | None,
    n_cells: int | Mapping[Pair, int] | None,
    cell_type_key: str | None,
    any_cell_type: bool,
    told: Collection[str] = (),
) -> dict[Pair, int]:
    """How many cells to draw of every (cell type, perturbation); the arguments are those of `Pipeline.predict`.

    Args:
        any_cell_type: whether the controls may be of a cell type that training did not see.
        told: perturbations whose effects the user gives, which training need not have seen.

    Raises:
        EvaeError: too little is said, or too much, or an unknown name.
    """
    if isinstance(n_cells, Mapping):
        if perturbation is not None or cell_type is not None:
            raise EvaeError("n_cells names the pairs; leave perturbation and cell_type out.")
        if not n_cells:
            raise EvaeError("no (cell type, perturbation) pair was given; name at least one.")
        cell_types, perturbations = ([pair[i] for pair in n_cells] for i in (0, 1))
        _check_names(processor, [p for p in perturbations if p not in told], cell_types, any_cell_type)
        return {pair: _whole(n, 0) for pair, n in n_cells.items()}
    if perturbation is None:
        raise EvaeError("no perturbation was named; name at least one.")
    perturbations = listed(perturbation, "perturbation")
    cell_types = wanted_cell_types(processor.cell_types, controls, cell_type, cell_type_key)
    _check_names(processor, [p for p in perturbations if p not in told], cell_types, any_cell_type)
    n_cells = None if n_cells is None else _whole(n_cells, 1)
    if n_cells is None and controls is None:
        raise EvaeError("without controls, say how many cells to draw with n_cells.")
    counts = dict.fromkeys(cell_types, n_cells or 0)
    if controls is not None and n_cells is None:
        labels = cell_type_labels(controls, cell_types, cell_type_key)
        counts = {c: int((labels == c).sum()) for c in cell_types}
    return {(c, p): counts[c] for c in cell_types for p in perturbations}


def _whole(n: Any, least: int) -> int:
    """A number of cells."""
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise EvaeError(f"n_cells is {n!r}, a {type(n).__name__}; give a whole number.")
    if n < least:
        raise EvaeError(f"n_cells is {n}; give at least {max(1, least)}.")
    return int(n)


def _check_names(processor: Any, perturbations: list[str], cell_types: list[str], any_cell_type: bool) -> None:
    processor.perturbation_ids(perturbations)
    if not any_cell_type:
        look_up(cell_types, processor.cell_types, "cell type")


def wanted_cell_types(
    known: Sequence[str], controls: ad.AnnData | None, given: str | Sequence[str] | None, key: str | None
) -> list[str]:
    """The cell types to predict: those given, else those of the controls.

    Raises:
        EvaeError: neither says which.
    """
    if given is not None:
        names = listed(given, "cell type")
    elif controls is None:
        raise EvaeError(f"without controls, name the cell_type. {near_matches('', known)}")
    elif key is None:
        raise EvaeError("without a column of cell types, name the cell_type that the controls are of.")
    elif key not in controls.obs:
        raise EvaeError(
            f"the controls have no obs column '{key}'; name the cell_type, or their column as cell_type_key."
        )
    else:
        names = label_codes(controls.obs[key])[1]
    return names


def choose_controls(controls: ad.AnnData, processor: Any, key: str, label: str | None) -> ad.AnnData:
    """The control cells among those given; warns (UserWarning) where others were left out: they would leak.

    Args:
        controls: all of them are taken where they have no obs column `key`.
        key: obs column of the perturbation.
        label: the label of controls; the model's if None.

    Raises:
        EvaeError: no cells, no control among them, or a label without a column.
    """
    if controls.n_obs == 0:
        raise EvaeError("the controls hold no cells; give unperturbed cells, or leave the controls out.")
    if key not in controls.obs:
        if label is not None:
            raise EvaeError(f"the controls have no obs column '{key}'. {near_matches(key, list(controls.obs))}")
        return controls
    label = label or str(processor.control)
    rows = control_rows(label_texts(controls.obs[key]), label, key, "the controls")
    if len(rows) == controls.n_obs:
        return controls
    warnings.warn(left_out(len(rows), controls.n_obs, label, key), stacklevel=5)  # where `predict` is called
    chosen = controls[rows]
    return chosen.to_memory() if chosen.isbacked else chosen


def control_rows(labels: np.ndarray, label: str, key: str, source: str) -> np.ndarray:
    """The rows of controls among the labels (cells,) of the obs column `key`; raises `EvaeError` if there are none."""
    rows = np.flatnonzero(labels == label)
    if not len(rows):
        raise EvaeError(
            f"no cell of {source} has the control label '{label}' in obs column '{key}'; name the label with "
            f'control="NAME". {near_matches(label, sorted(set(labels) - {""}))}'
        )
    return rows


def left_out(n_controls: int, n_cells: int, label: str, key: str) -> str:
    """What to say where only some of the cells given as controls are controls."""
    return (
        f"{n_controls:,} of {number_of(n_cells, 'cell')} are controls ('{label}' in obs column '{key}'); the other "
        f"{n_cells - n_controls:,} were left out"
    )


def cell_type_labels(controls: ad.AnnData, cell_types: Sequence[str], key: str | None) -> np.ndarray:
    """The cell type of every control, str (cells,); the one wanted where there is no such column.

    Raises:
        EvaeError: no control of a wanted cell type, or several wanted and nothing to tell them apart.
    """
    if key is None or key not in controls.obs:
        if len(cell_types) > 1:
            raise EvaeError(
                f"the controls have no obs column '{key}', so they stand for one cell type; name one "
                "cell_type, or give cell_type_key, their column."
            )
        return np.full(controls.n_obs, cell_types[0], dtype=object)
    labels = label_texts(controls.obs[key])
    for name in cell_types:
        if not (labels == name).any():
            raise EvaeError(
                f"no control has '{name}' in obs column '{key}'. {near_matches(name, sorted(set(labels) - {''}))} "
                f"To use all controls as '{name}', set cell_type_key=None."
            )
    return labels


def planned_cells(n_cells: Mapping[Pair, int], processor: Any) -> pd.DataFrame:
    """The obs table of the cells to draw, one row a cell, pairs in the given order."""
    if not sum(n_cells.values()) or min(n_cells.values()) < 0:
        raise EvaeError("no cell was asked for; give numbers of cells above 0.")
    columns = {
        "perturbation": [p for _, p in n_cells],
        "cell_type": [c for c, _ in n_cells],
        "support": processor.supports(list(n_cells)),
    }
    repeats = np.array(list(n_cells.values()))
    obs = pd.DataFrame(
        {
            name: pd.Categorical(np.repeat(np.array(values, dtype=object), repeats), pd.unique(pd.Series(values)))
            for name, values in columns.items()
        }
    )
    obs.index = pd.Index([f"predicted-{i}" for i in range(len(obs))])
    return obs


def keep_own_columns(obs: pd.DataFrame, controls: ad.AnnData | None, own: Mapping[str | None, str]) -> None:
    """Add the columns of labels under the names that they have in the controls.

    Args:
        obs: the table of the cells to draw; changed.
        controls: None keeps nothing.
        own: name of the column in the controls -> in `obs`. A name that `obs` uses already is left as it is.
    """
    for key, column in own.items():
        if key is not None and controls is not None and key in controls.obs and key not in obs:
            obs[key] = obs[column]


def planned_genes(processor: Any, cells: ad.AnnData | None) -> pd.DataFrame:
    """The var table of cells over the model's panel, with the names of genes that the user's own cells have.

    So `anndata.concat([cells, predicted])` has genes in common. Genes that the cells do not measure are named in the
    same way, by symbol or by Ensembl id. The column `gene_symbol`, where the index holds other names, and the column
    `ensembl_id`, where the model knows ids, tell the rest.
    """
    panel, ids = processor.genes, processor.ensembl_ids
    columns = {} if ids is None else {"ensembl_id": ids}
    if cells is not None:
        own = [str(name) for name in cells.var_names]
        by_id = sum(bool(ensembl_id(name)) for name in own) > len(own) / 2
        position = processor.gene_positions(gene_columns(own, cells.var)).tolist()
        others = [i or g for g, i in zip(panel, ids, strict=True)] if by_id and ids is not None else panel
        names = [own[p] if p >= 0 else other for p, other in zip(position, others, strict=True)]
        if names != panel and len(set(names)) == len(names) and not all(name.isdigit() for name in own):
            return pd.DataFrame({"gene_symbol": panel, **columns}, index=pd.Index(names))
    return pd.DataFrame(columns, index=pd.Index(panel))


def whole_counts(counts: Tensor, generator: Randomness) -> sp.csr_matrix:
    """Counts (cells, genes) as whole numbers, CSR float32.

    Heads whose values are expectations (mse, hurdle, the published bin values) give fractions; those are
    rounded up or down at random so that the expectation stays.
    """
    whole = counts.floor()
    fraction = counts - whole
    if bool((fraction > 0).any()):
        whole = whole + (draw_uniform(counts.shape, counts.device, generator) < fraction)
    return sp.csr_matrix(whole.float().cpu().numpy())
