"""The training cells as evaluation needs them: means of every pair, and a bounded sample of cells.

The training set may be a thousand times larger than the held-out cells. One pass over it in chunks keeps the
mean expression of every (cell type, perturbation) pair, and at most `MAX_REFERENCE` + `MAX_PER_PERTURBATION`
x perturbations
cells: those that the principal components are fitted on, and those of the evaluated perturbations in other
contexts.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError

from .inputs import Cells, Source

Pair = tuple[str, str]  # (cell type, perturbation)
MAX_REFERENCE = 20_000
MAX_PER_PERTURBATION = 1_000
_JOIN = "\x1f"


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
    """

    means: dict[Pair, np.ndarray]
    counts: dict[Pair, int]
    reference: Cells
    elsewhere: Cells
    control: str

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

    def overall_mean(self, cell_type: str) -> np.ndarray | None:
        """Mean over all perturbations of a cell type, or of all cell types where it has none in training."""
        perturbed = {pair: m for pair, m in self.means.items() if pair[1] != self.control}
        own = [m for (c, _), m in perturbed.items() if c == cell_type]
        found = own or list(perturbed.values())
        return np.mean(found, axis=0) if found else None


def summarise_training(
    source: Source, held_out: Source, perturbations: list[str], genes: np.ndarray, control: str, seed: int = 0
) -> tuple[TrainingCells, int]:
    """Read the training cells once, leaving out cells that are held-out cells (same name and labels).

    Args:
        source: the training cells.
        held_out: the real cells of the evaluation.
        perturbations: the evaluated perturbations.
        genes: the panel.
        control: the control's label.
        seed: of the two samples.

    Returns:
        The summary and the number of cells left out because they are held out.
    """
    usable = np.flatnonzero(~np.isin(_fingerprints(source), _fingerprints(held_out)))
    if len(usable) == 0:
        raise EvaeError(f"{source.name} hold no other cells than the real held-out ones; give the training split.")
    names, codes = np.unique(_joined(source)[usable], return_inverse=True)
    rng = np.random.default_rng(seed)
    reference = np.sort(rng.permutation(usable)[:MAX_REFERENCE])
    chosen = [rng.permutation(usable[source.perturbation[usable] == p])[:MAX_PER_PERTURBATION] for p in perturbations]
    elsewhere = np.sort(np.concatenate(chosen))
    sums = np.zeros((len(names), len(genes)))
    samples: list[list[sp.csr_matrix]] = [[], []]
    start = 0
    for rows, matrix in source.chunks(usable, genes):
        part = codes[start : start + len(rows)]
        start += len(rows)
        indicator = sp.csr_matrix((np.ones(len(rows)), (part, np.arange(len(rows)))), shape=(len(names), len(rows)))
        sums += (indicator @ matrix.astype(np.float64)).toarray()
        for sample, wanted in zip(samples, (reference, elsewhere), strict=True):
            sample.append(matrix[np.isin(rows, wanted, assume_unique=True)])
    n_cells = np.bincount(codes, minlength=len(names))
    pairs: list[Pair] = [(name.split(_JOIN)[0], name.split(_JOIN)[1]) for name in names.tolist()]
    summary = TrainingCells(
        means={pair: sums[i] / n_cells[i] for i, pair in enumerate(pairs)},
        counts={pair: int(n_cells[i]) for i, pair in enumerate(pairs)},
        reference=_gather(samples[0], source, reference, genes),
        elsewhere=_gather(samples[1], source, elsewhere, genes),
        control=control,
    )
    return summary, len(source.perturbation) - len(usable)


def _joined(source: Source) -> np.ndarray:
    """Both labels of each cell as one string."""
    return np.array([f"{c}{_JOIN}{p}" for c, p in zip(source.cell_type, source.perturbation, strict=True)], dtype=str)


def _fingerprints(source: Source) -> np.ndarray:
    """Name and labels of each cell as one string."""
    return np.char.add(np.char.add(source.adata.obs_names.to_numpy(dtype=str), _JOIN), _joined(source))


def _gather(parts: list[sp.csr_matrix], source: Source, rows: np.ndarray, genes: np.ndarray) -> Cells:
    return Cells(sp.vstack(parts, format="csr"), source.perturbation[rows], source.cell_type[rows], genes, source.scale)
