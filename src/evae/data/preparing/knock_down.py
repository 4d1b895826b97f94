"""Whether the gene that a perturbation is named after fell: its share of the counts, beside control cells.

Of perturbation p and its gene g, over the cell types t in which both controls and cells of p stand,

    observed = sum of counts of g in the cells of p
    expected = sum over t of  (counts of g in controls of t / counts of controls of t) x counts of cells of p in t

It did not fall where observed > REMAINING x expected, and nothing can be told where expected < MIN_EXPECTED. This is
meant for CRISPR interference (as Replogle et al. 2022); a knock-out may leave the transcript as it is.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from evae.common.progress import Bar
from evae.data.preparing.describe import CellLabels
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import parts_of

REMAINING = 0.7  # share of the control cells' expression
MIN_EXPECTED = 20  # counts
LOWERING = ("", "knock-out", "interference")  # kinds
CELLS = 16_384  # read at once


def without_knock_down(
    sources: list[FileCounts], labels: CellLabels, kept: np.ndarray, bar: Bar
) -> tuple[list[str], int]:
    """Perturbations whose gene did not fall, and the number of those of which this can be told.

    Args:
        sources: the files; each is read once, where a perturbation is named after a gene.
        labels: of all cells.
        kept: which cells count, (cells,) bool.
        bar: shows how far it is.
    """
    control, *names = labels.perturbations
    parts = {
        name: [_lowered(part, labels) for part in parts_of(name, {*names, *labels.treatments}, control)]
        for name in names
    }
    genes = sorted({gene for some in parts.values() for gene in some} & set().union(*(s.genes for s in sources)))
    if not genes:
        return [], 0
    of_gene, of_all = _sums(sources, labels, kept, genes, bar)
    place = {gene: i for i, gene in enumerate(genes)}
    missed, told = [], 0
    for p, name in enumerate(labels.perturbations):
        for gene in parts.get(name, ()):
            if gene not in place:
                continue
            counts, totals = of_gene[:, :, place[gene]], of_all  # (cell types, perturbations)
            rate = np.divide(counts[:, 0], totals[:, 0], out=np.zeros(len(counts)), where=totals[:, 0] > 0)
            both = totals[:, 0] > 0
            expected = float((rate * totals[:, p])[both].sum())
            if expected < MIN_EXPECTED:
                continue
            told += 1
            if float(counts[both, p].sum()) > REMAINING * expected:
                missed.append(name)
    return list(dict.fromkeys(missed)), told


def _lowered(part: str, labels: CellLabels) -> str:
    """The gene that should fall, which is the name itself where nothing else is said; "" where none should."""
    treatment = labels.treatments.get(part)
    if treatment is None:
        return part
    return treatment.agent if treatment.kind in LOWERING else ""


def _sums(
    sources: list[FileCounts], labels: CellLabels, kept: np.ndarray, genes: list[str], bar: Bar
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the genes, (cell types, perturbations, genes), and of all genes, (cell types, perturbations)."""
    shape = (len(labels.cell_types), len(labels.perturbations))
    group = np.ravel_multi_index((labels.cell_type, labels.perturbation), shape)
    n_groups = shape[0] * shape[1]
    of_gene, of_all = np.zeros((n_groups, len(genes))), np.zeros(n_groups)
    advance = bar.start("looking at targets", len(kept))
    for rows, block, columns in _blocks(sources, genes):
        groups = np.where(kept[rows], group[rows], n_groups)
        which = sp.csr_matrix((np.ones(len(groups)), (groups, np.arange(len(groups)))), (n_groups + 1, len(groups)))
        of_all += np.asarray(which @ np.asarray(block.sum(1))).ravel()[:n_groups]
        found = columns >= 0
        of_gene[:, found] += (which @ block[:, columns[found]]).toarray()[:n_groups]
        advance(len(groups))
    return of_gene.reshape(*shape, -1), of_all.reshape(shape)


def _blocks(sources: list[FileCounts], genes: list[str]) -> Iterator[tuple[slice, sp.csr_matrix, np.ndarray]]:
    """Cells over all files, their counts, and where the genes stand in these, -1 where absent."""
    first = 0
    for source in sources:
        place = {gene: i for i, gene in enumerate(source.genes)}
        columns = np.array([place.get(gene, -1) for gene in genes])
        for start, stop in source.ranges(CELLS):
            yield slice(first + start, first + stop), source.block(start, stop), columns
        first += source.n_cells
