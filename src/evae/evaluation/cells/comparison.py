"""What is compared: real cells, predicted cells, their controls and the training cells, checked once.

The unit of evaluation is a pair (cell type, perturbation) of the real held-out cells. Controls are real cells
of the same cell type, and stand on both sides: a model is never judged by controls that it generated.
"""

from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from evae.common.messages import number_of
from evae.data.format import Pair
from evae.evaluation.cells.inputs import Data, Progress, Source, open_source, predicted_keys, silent
from evae.evaluation.cells.known import known_cells
from evae.evaluation.cells.normalised import Cells, mean_of
from evae.evaluation.cells.projection import Projection, fit_projection
from evae.evaluation.cells.training_cells import TrainingCells, summarise_training
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import GeneColumns


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
        sources: row of `controls` that each predicted cell started from, (predicted cells,); None where the
            predictions do not say so or started from other cells.
        panel: the genes as the real cells' source names them, with their Ensembl ids; None where it is not known.
    """

    real: Cells
    predicted: Cells
    controls: Cells
    training: TrainingCells | None
    pairs: list[Pair]
    control: str
    notes: list[str] = field(default_factory=list)
    sources: np.ndarray | None = None
    panel: GeneColumns | None = None

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

    @cached_property
    def real_rows(self) -> dict[Pair, np.ndarray]:
        """Rows of `real` of every pair."""
        return group_rows(self.real.cell_type, self.real.perturbation)

    @cached_property
    def predicted_rows(self) -> dict[Pair, np.ndarray]:
        """Rows of `predicted` of every pair."""
        return group_rows(self.predicted.cell_type, self.predicted.perturbation)

    @cached_property
    def control_rows(self) -> dict[str, np.ndarray]:
        """Rows of `controls` of every cell type."""
        return {c: np.flatnonzero(self.controls.cell_type == c) for c in self.cell_types}

    @cached_property
    def n_real(self) -> dict[Pair, int]:
        """Number of real cells of every pair."""
        return {pair: len(rows) for pair, rows in self.real_rows.items()}

    @cached_property
    def control_means(self) -> dict[str, np.ndarray]:
        """Mean expression of the controls of every cell type, (genes,) each."""
        return {c: mean_of(self.controls.matrix[rows]) for c, rows in self.control_rows.items()}

    def reference_projection(self, n_components: int = 30) -> Projection:
        """Components fitted on training cells, on the controls where no training cells were given; fitted once."""
        if n_components not in self._projections:
            cells = self.controls if self.training is None else self.training.reference
            self._projections[n_components] = fit_projection(cells.matrix[:], n_components)
        return self._projections[n_components]

    @cached_property
    def _projections(self) -> dict[int, Projection]:
        return {}


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
    predicted_perturbation_key: str | None = None,
    predicted_cell_type_key: str | None = None,
    control: str = "control",
    scale: str = "auto",
    real_scale: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
    rates: bool = False,
    cache: Path | None = None,
) -> Comparison:
    """Read and check the inputs of an evaluation; see `evaluate` for the arguments.

    Args:
        rates: keep the training cells' mean counts per 10,000 too.
        cache: folder that keeps what is known of real cells in files; None keeps nothing.

    Raises:
        EvaeError: no control cells, no perturbed cells, pairs without predictions, genes that do not match,
            or values that are neither raw counts nor log1p.
    """
    named = (
        (real, "the real cells", real_scale, "real_scale", ""),
        (predicted, "the predicted cells", scale, "scale", "predicted_"),
        (train, "the training cells", "auto", "", ""),
        (controls, "the controls", "auto", "", ""),
    )
    keys = perturbation_key, cell_type_key
    own = predicted_keys(predicted, keys, predicted_perturbation_key, predicted_cell_type_key)
    with ExitStack() as stack:
        sources: list[Source | None] = []
        for data, name, *stated in named:
            here = own if name == "the predicted cells" else keys
            opened = partial(open_source, as_read=name in ("the real cells", "the predicted cells"))
            source = None if data is None else opened(data, name, *here, *stated)
            sources.append(source if source is None else stack.enter_context(closing(source)))
        truth, generated, trained, given = sources
        assert truth is not None
        assert generated is not None
        comparison = _read(truth, generated, trained, given, control, seed, progress, rates, cache)
    for key, taken in zip(keys, own, strict=True):
        if key != taken:
            comparison.notes.append(f"the predicted cells' obs column '{taken}' stands for '{key}' of the real cells")
    return comparison


def _read(
    source: Source,
    generated: Source,
    trained: Source | None,
    given: Source | None,
    control: str,
    seed: int,
    progress: Progress,
    rates: bool,
    cache: Path | None,
) -> Comparison:
    """Check the labels of all sources, then read their values."""
    notes: list[str] = []
    genes = source.genes
    pairs = sorted(pair for pair in group_rows(source.cell_type, source.perturbation) if pair[1] != control)
    if not pairs:
        raise EvaeError(
            f"{source.name} hold no perturbed cells, only '{control}'; check perturbation_key=... and control=..."
        )
    rows = _matching_predictions(generated, pairs, control, genes, notes)
    home, control_rows = _find_controls(source, trained, given, {c for c, _ in pairs}, control, notes)
    wanted, shared = [np.flatnonzero(source.perturbation != control)], home is source
    source, (truth, *own) = known_cells(source, genes, wanted + [control_rows] * shared, progress, cache)
    prediction = generated.cells(genes, rows, progress)
    (control_cells,) = own if shared else known_cells(home, genes, [control_rows], progress, cache)[1]
    generated = generated.settled()
    training = None
    if trained is not None:
        perturbations = sorted({p for _, p in pairs})
        training = summarise_training(trained, source, perturbations, genes, control, seed, progress, rates)
        if training.n_held_out:
            notes.append(
                f"{number_of(training.n_held_out, 'held-out cell was', 'held-out cells were')} found among the "
                "training cells and left out there"
            )
    sources = _sources(generated, rows, home, control_rows)
    comparison = Comparison(truth, prediction, control_cells, training, pairs, control, notes, sources, genes)
    single = sum(n < 2 for n in comparison.n_real.values())
    if single:
        notes.append(
            f"{single} of {number_of(len(pairs), 'pair')} with a single real cell, so no split half and no robust "
            "distances"
        )
    for name, cells in (("real", truth), ("predicted", prediction), ("control", control_cells)):
        if cells.n_empty:
            empty = number_of(cells.n_empty, f"{name} cell has", f"{name} cells have")
            notes.append(f"{empty} no counts over the panel")
    notes.append(
        f"real cells came as {source.scale.name} ({source.scale.reason}), predicted cells as {generated.scale.name} "
        f"({generated.scale.reason}); compared as log1p CP10K"
    )
    doubts = [s.scale.doubt for s in (source, generated, trained, given) if s is not None]
    notes.extend(doubt for doubt in doubts if doubt)
    return comparison


def _matching_predictions(
    generated: Source, pairs: list[Pair], control: str, genes: GeneColumns, notes: list[str]
) -> np.ndarray:
    """The rows of the predicted cells of the evaluated pairs, sorted."""
    rows = group_rows(generated.cell_type, generated.perturbation)
    missing = [pair for pair in pairs if pair not in rows]
    if missing:
        shown = ", ".join(f"{p} in {c}" for c, p in missing[:3])
        cell_types, perturbations = (sorted({pair[i] for pair in rows}) for i in (0, 1))
        c, p = missing[0]
        hint = near_matches(p, perturbations) if p not in perturbations else ""
        if c not in cell_types:
            hint = f"The cell type '{c}' is not among theirs. {near_matches(c, cell_types)}"
        raise EvaeError(
            f"{generated.name} lack {len(missing)} of the {number_of(len(pairs), 'perturbation')} to evaluate "
            f"({shown}); predict them or leave them out of the real cells. {hint}".strip()
        )
    extra = [pair for pair in rows if pair not in set(pairs) and pair[1] != control]
    if extra:
        notes.append(f"left out: {number_of(len(extra), 'predicted pair')} without real cells")
    if any(p == control for _, p in rows):
        notes.append("predicted control cells were ignored: the real controls stand on both sides")
    if generated.columns(genes) is not None:
        notes.append("the genes of the predicted cells were put into the order of the real cells")
    return np.sort(np.concatenate([rows[pair] for pair in pairs]))


def _sources(generated: Source, rows: np.ndarray, home: Source, control_rows: np.ndarray) -> np.ndarray | None:
    """Row among the controls that each predicted cell started from; None where that is not known of all."""
    if generated.origins is None:
        return None
    controls = home.cell_names[control_rows]
    if not controls.is_unique:
        return None
    found = controls.astype(str).get_indexer(generated.origins[rows])
    return None if (found < 0).any() else found


def _find_controls(
    real: Source,
    train: Source | None,
    given: Source | None,
    cell_types: set[str],
    control: str,
    notes: list[str],
) -> tuple[Source, np.ndarray]:
    """Where the controls of the evaluated cell types are: those given, else the real file's, else training's."""
    for source in (given, real, train):
        if source is None:
            continue
        rows = np.flatnonzero((source.perturbation == control) & np.isin(source.cell_type, list(cell_types)))
        found = set(source.cell_type[rows].tolist())
        if found == cell_types:
            taken = number_of(len(rows), "control cell was", "control cells were")
            notes.append(f"the {taken} taken from {source.name}")
            return source, rows
        if source is given:
            lacking = ", ".join(sorted(cell_types - found)[:3])
            raise EvaeError(f"the controls hold no '{control}' cells of {lacking}; add them or check the labels.")
    known = sorted({*real.perturbation.tolist(), *(train.perturbation.tolist() if train else [])})
    raise EvaeError(
        f"no '{control}' cells of every evaluated cell type ({', '.join(sorted(cell_types)[:3])}); pass "
        f"controls=... or name the control's label. {near_matches(control, known)}"
    )
