"""Whether the gene that a perturbation is named after fell: its share of the counts, beside control cells.

Of perturbation p and its gene g, over the cell types t in which both controls and cells of p stand,

    observed = sum of counts of g in the cells of p
    expected = sum over t of  (counts of g in controls of t / counts of controls of t) x counts of cells of p in t

It did not fall where observed > REMAINING x expected, and nothing can be told where expected < MIN_EXPECTED. This is
meant for CRISPR interference (as Replogle et al. 2022); a knock-out may leave the transcript as it is.
"""

from itertools import zip_longest

import numpy as np
import scipy.sparse as sp

from evae.common.progress import Bar
from evae.data.preparing.describe import CellLabels
from evae.data.preparing.kept_blocks import Block, all_blocks, kept_counts
from evae.data.preparing.workers import Run
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import parts_of

REMAINING = 0.7  # share of the control cells' expression
MIN_EXPECTED = 20  # counts
LOWERING = ("", "knock-out", "interference")  # kinds


def without_knock_down(
    sources: list[FileCounts], labels: CellLabels, kept: np.ndarray, chunk_size: int, run: Run, bar: Bar
) -> tuple[list[str], int]:
    """Perturbations whose gene did not fall, and the number of those of which this can be told.

    Args:
        sources: the files; they are read where a perturbation is named after a gene.
        labels: of all cells.
        kept: which cells count, (cells,) bool.
        chunk_size: cells read at once.
        run: does the work on them (see `evae.data.preparing.workers`).
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
    place = {gene: i for i, gene in enumerate(genes)}
    own = [[place[gene] for gene in parts.get(name, ()) if gene in place] for name in labels.perturbations]
    targets = np.array([*zip_longest(*own, fillvalue=-1)]).T  # (perturbations, parts)
    at_rest, fallen, of_all = _added(sources, labels, kept, genes, targets, all_blocks(sources, chunk_size), run, bar)
    missed, told = [], 0
    both = of_all[:, 0] > 0  # the cell types with controls
    for p, name in enumerate(labels.perturbations):
        for part, gene in enumerate(targets[p]):
            if gene < 0:
                continue
            rate = np.divide(at_rest[:, gene], of_all[:, 0], out=np.zeros(len(both)), where=both)
            expected = float((rate * of_all[:, p])[both].sum())
            if expected < MIN_EXPECTED:
                continue
            told += 1
            if float(fallen[both, p, part].sum()) > REMAINING * expected:
                missed.append(name)
    return list(dict.fromkeys(missed)), told


def _lowered(part: str, labels: CellLabels) -> str:
    """The gene that should fall, which is the name itself where nothing else is said; "" where none should."""
    treatment = labels.treatments.get(part)
    if treatment is None:
        return part
    return treatment.agent if treatment.kind in LOWERING else ""


def _added(
    sources: list[FileCounts],
    labels: CellLabels,
    kept: np.ndarray,
    genes: list[str],
    targets: np.ndarray,
    blocks: list[Block],
    run: Run,
    bar: Bar,
) -> list[np.ndarray]:
    """The sums over all cells; see `_sums`."""
    columns = []
    for source in sources:
        place = {gene: i for i, gene in enumerate(source.genes)}
        columns.append(np.array([place.get(gene, -1) for gene in genes]))
    kinds, n = len(labels.cell_types), len(labels.perturbations)
    added = [np.zeros(shape) for shape in ((kinds, len(genes)), (kinds, *targets.shape), (kinds, n))]
    advance = bar.start("looking at targets", len(kept))
    tasks = (
        (b, labels.cell_type[b.rows], labels.perturbation[b.rows], kept[b.rows], columns[b.source], targets, kinds)
        for b in blocks
    )
    for block, sums in zip(blocks, run(_sums, tasks), strict=True):
        for total, part in zip(added, sums, strict=True):
            total += part
        advance(block.stop - block.start)
    return added


def _sums(
    sources: list[FileCounts],
    block: Block,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
    kept: np.ndarray,
    columns: np.ndarray,
    targets: np.ndarray,
    kinds: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of counts over the cells of one block.

    Args:
        sources: the files.
        block: which cells.
        cell_type, perturbation: codes of their labels, (cells,).
        kept: which of them count, (cells,) bool.
        columns: of the genes in this file, -1 where it lacks one, (genes,).
        targets: the genes that should fall, -1 for none, (perturbations, parts).
        kinds: how many cell types there are.

    Returns:
        Of every gene in controls, (cell types, genes); of every target in the cells where it should fall, (cell types,
        perturbations, parts); of all genes of the file, (cell types, perturbations).
    """
    whole = kept_counts(sources, block)
    counts = whole.matrix
    n = len(targets)
    group = (cell_type.astype(np.int64) * n + perturbation)[kept]
    of_all = np.bincount(group, weights=whole.full[kept], minlength=kinds * n)
    rest = np.flatnonzero(kept & (perturbation == 0))
    which = sp.csr_matrix((np.ones(len(rest)), (cell_type[rest], rest)), (kinds, len(kept)))
    found = columns >= 0
    at_rest = np.zeros((kinds, len(columns)))
    at_rest[:, found] = (which @ counts).toarray()[:, columns[found]]
    fallen = np.zeros((kinds * n, targets.shape[1]))
    for part, genes in enumerate(targets.T):
        column = np.where(genes >= 0, columns[genes], -1)[perturbation]
        cells = np.flatnonzero(kept & (column >= 0))
        if not len(cells):  # of which scipy would give a sparse matrix
            continue
        values = np.asarray(counts[cells, column[cells]], dtype=float).ravel()
        own = cell_type[cells].astype(np.int64) * n + perturbation[cells]
        fallen[:, part] = np.bincount(own, weights=values, minlength=kinds * n)
    return at_rest, fallen.reshape(kinds, n, -1), of_all.reshape(kinds, n)
