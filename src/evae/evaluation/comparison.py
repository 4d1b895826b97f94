"""What is compared: real cells, predicted cells, their controls and the training cells, checked once.

The unit of evaluation is a pair (cell type, perturbation) of the real held-out cells. Controls are real cells
of the
same cell type, and stand on both sides: a model is never judged by controls that it generated.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import numpy as np

from evae.models.contract_evae import EvaeError, near_matches

from .inputs import Cells, Source, open_source
from .training_cells import TrainingCells, summarise_training

Pair: TypeAlias = tuple[str, str]  # (cell type, perturbation)
Data: TypeAlias = ad.AnnData | str | Path


@dataclass(frozen=True)
class Comparison:
    """Everything that the metrics need.

    Attributes:
        real: held-out cells, without controls.
        predicted: generated cells of the same pairs and gene order, without controls.
        controls: real control cells of the evaluated cell types.
        training: means and cells of the training set; None when no training cells were given.
        pairs: the (cell type, perturbation) pairs, sorted.
        control: the control's label.
        notes: what was dropped or assumed, in sentences for the report.
    """

    real: Cells
    predicted: Cells
    controls: Cells
    training: TrainingCells | None
    pairs: list[Pair]
    control: str
    notes: list[str] = field(default_factory=list)

    @property
    def genes(self) -> np.ndarray:
        """The gene panel, (genes,)."""
        return self.real.genes

    @property
    def cell_types(self) -> list[str]:
        """The evaluated cell types, sorted."""
        return sorted({cell_type for cell_type, _ in self.pairs})

    def perturbations(self, cell_type: str) -> list[str]:
        """The evaluated perturbations of a cell type, sorted."""
        return [p for c, p in self.pairs if c == cell_type]


def rows_by_pair(cells: Cells) -> dict[Pair, np.ndarray]:
    """Row indices of every (cell type, perturbation) pair."""
    return group_rows(cells.cell_type, cells.perturbation)


def group_rows(cell_type: np.ndarray, perturbation: np.ndarray) -> dict[Pair, np.ndarray]:
    """Indices of every (cell type, perturbation) pair among labels of shape (cells,)."""
    if len(cell_type) == 0:
        return {}
    types, type_codes = np.unique(cell_type.astype(str), return_inverse=True)
    names, name_codes = np.unique(perturbation.astype(str), return_inverse=True)
    codes = type_codes * len(names) + name_codes
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    groups = np.split(order, starts[1:])
    return {(str(types[codes[g[0]] // len(names)]), str(names[codes[g[0]] % len(names)])): g for g in groups}


def compare(
    predicted: Data,
    real: Data,
    train: Data | None = None,
    controls: Data | None = None,
    *,
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    control: str = "control",
    seed: int = 0,
) -> Comparison:
    """Read and check the inputs of an evaluation; see `evaluate` for the arguments.

    Raises:
        EvaeError: no control cells, no perturbed cells, pairs without predictions, genes that do not match,
            or values that are neither raw counts nor log1p.
    """
    notes: list[str] = []
    source = open_source(real, "the real cells", perturbation_key, cell_type_key)
    generated = open_source(predicted, "the predicted cells", perturbation_key, cell_type_key)
    genes = source.genes
    truth = source.cells(genes, np.flatnonzero(source.perturbation != control))
    pairs = sorted(rows_by_pair(truth))
    if not pairs:
        raise EvaeError(f"{source.name} hold no perturbed cells, only '{control}'; check perturbation_key and control.")
    prediction = _matching_predictions(generated, pairs, control, genes, notes)
    trained = None if train is None else open_source(train, "the training cells", perturbation_key, cell_type_key)
    given = None if controls is None else open_source(controls, "the controls", perturbation_key, cell_type_key)
    control_cells = _find_controls(source, trained, given, {c for c, _ in pairs}, control, genes, notes)
    training = None
    if trained is not None:
        perturbations = sorted({p for _, p in pairs})
        training, n_dropped = summarise_training(trained, source, perturbations, genes, control, seed)
        if n_dropped:
            notes.append(f"{n_dropped} held-out cells were found among the training cells and left out there")
    for name, cells in (("real", truth), ("predicted", prediction), ("control", control_cells)):
        if cells.n_empty:
            notes.append(f"{cells.n_empty} {name} cells have no counts over the panel and stay empty")
    notes.append(f"real cells came as {source.scale}, predicted cells as {generated.scale}; compared as log1p CP10K")
    return Comparison(truth, prediction, control_cells, training, pairs, control, notes)


def _matching_predictions(
    generated: Source, pairs: list[Pair], control: str, genes: np.ndarray, notes: list[str]
) -> Cells:
    """The predicted cells of the evaluated pairs, in the real cells' gene order."""
    rows = group_rows(generated.cell_type, generated.perturbation)
    missing = [pair for pair in pairs if pair not in rows]
    if missing:
        shown = ", ".join(f"{p} in {c}" for c, p in missing[:3])
        known = sorted({p for _, p in rows})
        raise EvaeError(
            f"{generated.name} lack {len(missing)} of the {len(pairs)} perturbations to evaluate ({shown}); "
            f"predict them or leave them out of the real cells. {near_matches(missing[0][1], known)}"
        )
    extra = [pair for pair in rows if pair not in set(pairs) and pair[1] != control]
    if extra:
        notes.append(f"{len(extra)} predicted pairs have no real cells and were left out")
    if any(p == control for _, p in rows):
        notes.append("predicted control cells were ignored: the real controls stand on both sides")
    if not np.array_equal(generated.genes, genes) and set(genes.tolist()) <= set(generated.genes.tolist()):
        notes.append("the genes of the predicted cells were put into the order of the real cells")
    return generated.cells(genes, np.sort(np.concatenate([rows[pair] for pair in pairs])))


def _find_controls(
    real: Source,
    train: Source | None,
    given: Source | None,
    cell_types: set[str],
    control: str,
    genes: np.ndarray,
    notes: list[str],
) -> Cells:
    """Control cells of the evaluated cell types: those given, else the real file's, else from training."""
    for source in (given, real, train):
        if source is None:
            continue
        rows = np.flatnonzero((source.perturbation == control) & np.isin(source.cell_type, list(cell_types)))
        found = set(source.cell_type[rows].tolist())
        if found == cell_types:
            notes.append(f"the {len(rows)} control cells were taken from {source.name}")
            return source.cells(genes, rows)
        if source is given:
            lacking = ", ".join(sorted(cell_types - found)[:3])
            raise EvaeError(f"the controls hold no '{control}' cells of {lacking}; add them or check the labels.")
    known = sorted({*real.perturbation.tolist(), *(train.perturbation.tolist() if train else [])})
    raise EvaeError(
        f"no '{control}' cells of every evaluated cell type ({', '.join(sorted(cell_types)[:3])}); pass "
        f"controls=... or name the control's label. {near_matches(control, known)}"
    )
