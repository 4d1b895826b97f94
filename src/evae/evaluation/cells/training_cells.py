"""The training cells as evaluation needs them: means of every pair, and a bounded sample of cells.

The training set may be a thousand times larger than the held-out cells. One pass over it in blocks keeps the
mean expression of every (cell type, perturbation) pair and, in temporary files, at most `MAX_REFERENCE` +
`MAX_ELSEWHERE` cells: those that the principal components are fitted on, and those of the evaluated
perturbations. Of all other cells only labels and a hash of their names are held.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.data.format import Pair
from evae.evaluation.cells.inputs import Progress, Source, silent
from evae.evaluation.cells.normalised import Cells, StoredRows
from evae.evaluation.cells.scale import RAW
from evae.models.contract_evae import EvaeError
from evae.models.genes_evae import GeneColumns

MAX_REFERENCE = 20_000
MAX_ELSEWHERE = 100_000
MAX_PER_PERTURBATION = 1_000
_HASHED = 65_536  # cells whose names are hashed at a time


@dataclass(frozen=True)
class TrainingCells:
    """Summary of the training set over the evaluated gene panel.

    Attributes:
        means: mean log1p CP10K of each (cell type, perturbation), controls included, (genes,) each.
        counts: number of training cells behind each mean.
        reference: a random sample of training cells: the principal components are fitted on it, and
            memorisation is looked for among it.
        elsewhere: cells of the evaluated perturbations in training, at most `MAX_PER_PERTURBATION` of each.
        control: the control's label.
        n_held_out: cells left out because they are held-out cells.
        rates: mean counts per 10,000 of each pair, (genes,) each; empty unless asked for.
    """

    means: dict[Pair, np.ndarray]
    counts: dict[Pair, int]
    reference: Cells
    elsewhere: Cells
    control: str
    n_held_out: int = 0
    rates: dict[Pair, np.ndarray] = field(default_factory=dict)

    def perturbation_mean(self, perturbation: str) -> np.ndarray | None:
        """Mean of a perturbation over training cell types, each of the same weight; None if never seen."""
        found = [m for (_, p), m in self.means.items() if p == perturbation]
        return np.mean(found, axis=0) if found else None

    @property
    def cell_types(self) -> set[str]:
        """Cell types of the training set."""
        return {c for c, _ in self.means}

    def shifts(self, cell_types: set[str] | None = None) -> dict[str, np.ndarray]:
        """Mean shift of every perturbation from control over (these) cell types that hold both."""
        found: dict[str, list[np.ndarray]] = {}
        for (c, p), mean in self.means.items():
            if p != self.control and (cell_types is None or c in cell_types) and (c, self.control) in self.means:
                found.setdefault(p, []).append(mean - self.means[(c, self.control)])
        return {p: np.mean(shifts, axis=0) for p, shifts in found.items()}

    def mean_shift(self, cell_type: str) -> np.ndarray | None:
        """Mean shift of all perturbations from control, each of the same weight; None without any.

        Of the cell type itself, or of all cell types where it has no perturbed cells in training.
        """
        found = self.shifts({cell_type}) or self.shifts()
        return np.mean(list(found.values()), axis=0) if found else None

    def overall_mean(self, cell_type: str) -> np.ndarray | None:
        """Mean over all perturbations of a cell type, or of all cell types where it has none in training."""
        perturbed = {pair: m for pair, m in self.means.items() if pair[1] != self.control}
        own = [m for (c, _), m in perturbed.items() if c == cell_type]
        found = own or list(perturbed.values())
        return np.mean(found, axis=0) if found else None


def summarise_training(
    source: Source,
    held_out: Source,
    perturbations: list[str],
    genes: GeneColumns,
    control: str,
    seed: int = 0,
    progress: Progress = silent,
    rates: bool = False,
) -> TrainingCells:
    """Read the training cells once, leaving out cells that are held-out cells (same name and labels).

    Args:
        source: the training cells.
        held_out: the real cells of the evaluation.
        perturbations: the evaluated perturbations.
        genes: the panel.
        control: the control's label.
        seed: of the two samples.
        progress: shows how far the reading is.
        rates: keep mean counts per 10,000 too.
    """
    usable = np.flatnonzero(~pd.Series(_cell_hashes(source)).isin(_cell_hashes(held_out)))
    if len(usable) == 0:
        raise EvaeError(f"{source.name} hold no other cells than the real held-out ones; give the training split.")
    codes, pairs = _pair_codes(source, usable)
    rng = np.random.default_rng(seed)
    reference = np.sort(rng.permutation(usable)[:MAX_REFERENCE])
    limit = max(1, min(MAX_PER_PERTURBATION, MAX_ELSEWHERE // len(perturbations)))
    chosen = [rng.permutation(usable[source.perturbation[usable] == p])[:limit] for p in perturbations]
    elsewhere = np.sort(np.concatenate(chosen))
    sums = np.zeros((len(pairs), len(genes)))
    linear = np.zeros_like(sums) if rates else None
    samples = StoredRows(len(genes)), StoredRows(len(genes))
    totals = np.zeros(len(source))
    for rows, matrix, totals_of_rows in source.blocks(usable, genes, progress):
        totals[rows] = totals_of_rows
        part = codes[rows]
        indicator = sp.csr_matrix((np.ones(len(rows)), (part, np.arange(len(rows)))), shape=(len(pairs), len(rows)))
        block = (indicator @ matrix.astype(np.float64)).tocoo()
        sums[block.row, block.col] += block.data
        if linear is not None:
            block = (indicator @ matrix.astype(np.float64).expm1()).tocoo()
            linear[block.row, block.col] += block.data
        for sample, wanted in zip(samples, (reference, elsewhere), strict=True):
            chosen_rows = np.isin(rows, wanted, assume_unique=True)
            if chosen_rows.any():
                sample.append(matrix[chosen_rows])
    n_cells = np.bincount(codes[usable], minlength=len(pairs))
    sums /= n_cells[:, None]
    known = totals if source.scale.name == RAW else None

    def kept(matrix: StoredRows, rows: np.ndarray) -> Cells:
        labels = source.perturbation[rows], source.cell_type[rows]
        names = np.asarray(genes.names, dtype=object)
        return Cells(matrix, *labels, names, totals=None if known is None else known[rows])

    return TrainingCells(
        means=dict(zip(pairs, sums, strict=True)),
        counts=dict(zip(pairs, n_cells.tolist(), strict=True)),
        reference=kept(samples[0], reference),
        elsewhere=kept(samples[1], elsewhere),
        control=control,
        n_held_out=len(source) - len(usable),
        rates={} if linear is None else dict(zip(pairs, linear / n_cells[:, None], strict=True)),
    )


def _pair_codes(source: Source, rows: np.ndarray) -> tuple[np.ndarray, list[Pair]]:
    """Which pair each of all cells belongs to, and the pairs that `rows` hold, sorted; -1 for pairs without."""
    types, type_names = pd.factorize(source.cell_type, sort=True)
    labels, label_names = pd.factorize(source.perturbation, sort=True)
    codes = types * len(label_names) + labels
    held = np.unique(codes[rows])
    position = np.full(len(type_names) * len(label_names), -1)
    position[held] = np.arange(len(held))
    pairs = [(str(type_names[c // len(label_names)]), str(label_names[c % len(label_names)])) for c in held]
    return position[codes], pairs


def _cell_hashes(source: Source) -> np.ndarray:
    """A 64-bit hash of name and labels of each cell, (cells,)."""
    parts = []
    for start in range(0, len(source), _HASHED):  # strings are large, hashes are not
        part = slice(start, start + _HASHED)
        labels = {"perturbation": source.perturbation[part], "cell_type": source.cell_type[part]}
        names = pd.Index(source.read_names(start, min(start + _HASHED, len(source))))
        frame = pd.DataFrame(labels, index=names.astype(str))
        parts.append(pd.util.hash_pandas_object(frame).to_numpy())
    return np.concatenate(parts)
