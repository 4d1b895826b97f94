"""What stands beside an encoder in every table: PCA, UMAP, and profiles of differential expression.

All work on log1p CP10K of the 2,000 most variable genes (fewer where the screen has fewer), read in chunks. PCA is
fitted on a sample and projects all cells. UMAP embeds a sample. Differential expression is of a sample as well.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtri

from evae.data.preparing.hvg import highly_variable_scores
from evae.data.reading.anndata_counts import Counts
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.cells.projection import fit_projection
from evae.evaluation.metrics.differential import ControlRanks
from evae.models.contract_evae import EvaeError
from evae.reversion.screen import TREATED, UNTREATED, Screen
from evae.reversion.sources import Blocks, Embedding, in_memory
from evae.reversion.sums import Place

BASELINES = ("pca", "umap", "de")
N_GENES = 2_000
BLOCK_CELLS = 4_096
FIT_CELLS = 20_000  # that PCA is fitted on
UMAP_CELLS = 30_000
DE_CELLS = 100  # of a group; of the reference ten times as many
LARGEST_Z = 37.0  # where the normal tail leaves float64


@dataclass(frozen=True)
class Expression:
    """The expression of a screen over its variable genes, read anew in chunks at every use.

    Attributes:
        source: the counts.
        genes: names of the variable genes.
        columns: their columns in the source; None for all.
        screen: the labels.
        seed: of the samples.
    """

    source: Counts
    genes: list[str]
    columns: np.ndarray | None
    screen: Screen
    seed: int

    @classmethod
    def of(cls, source: Counts, screen: Screen, n_genes: int = N_GENES, seed: int = 0) -> "Expression":
        """Find the variable genes: two passes, unless there are few genes anyway."""
        if source.n_genes <= n_genes:
            return cls(source, source.genes, None, screen, seed)
        scores = highly_variable_scores(lambda: (b for _, b in source.blocks(BLOCK_CELLS)), source.n_genes)
        columns = np.sort(np.argsort(-scores, kind="stable")[:n_genes])
        return cls(source, [source.genes[c] for c in columns], columns, screen, seed)

    def blocks(self) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """Pairs (indices of the cells, log1p CP10K (cells, genes))."""
        for start, counts in self.source.blocks(BLOCK_CELLS):
            yield np.arange(start, start + counts.shape[0]), log1p_cp10k(counts, "raw counts", self.columns)

    def cells(self, rows: np.ndarray) -> sp.csr_matrix:
        """The cells of the sorted `rows`."""
        parts = []
        for own, matrix in self.blocks():
            low, high = np.searchsorted(rows, [own[0], own[-1] + 1])
            parts.append(matrix[rows[low:high] - own[0]])
        return sp.vstack(parts, format="csr")


def pca(expression: Expression, n_components: int) -> Embedding:
    """Principal components fitted on a sample of at most `FIT_CELLS` cells of all groups; all cells are projected."""
    screen = expression.screen
    used = np.flatnonzero(screen.codes >= 0)
    rng = np.random.default_rng(expression.seed)
    fit = np.sort(rng.choice(used, min(FIT_CELLS, len(used)), replace=False))
    project = fit_projection(expression.cells(fit), n_components)

    def blocks() -> Blocks:
        for rows, matrix in expression.blocks():
            yield rows, project(matrix)

    about = f"{len(project.components)} components of {len(expression.genes):,} genes, fitted on {len(fit):,} cells"
    return Embedding("pca", len(project.components), screen.n_cells, blocks, about)


def umap(expression: Expression, n_components: int, n_pca: int) -> Embedding:
    """UMAP of the principal components of at most `UMAP_CELLS` cells, the same share of every group.

    The origin of a UMAP means nothing, so the map is centred, as principal components are.

    Raises:
        EvaeError: umap-learn is not installed, or there are too few cells.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise EvaeError("the UMAP baseline needs umap-learn: pip install 'evae[eval]', or leave it out.") from None
    screen = expression.screen
    groups = max(1, int((screen.sizes() > 0).sum()))
    rows = screen.sample(max(2, UMAP_CELLS // groups), expression.seed)
    matrix = expression.cells(rows)
    components = fit_projection(matrix, n_pca)(matrix).astype(np.float32)
    if len(components) < n_components + 3:
        raise EvaeError(f"UMAP needs more than {n_components + 2} cells; leave the baseline out.")
    fitted = UMAP(
        n_components=n_components,
        n_neighbors=min(15, len(components) - 1),
        random_state=expression.seed,
        n_jobs=1,
    ).fit_transform(components)
    placed = np.asarray(fitted, dtype=np.float64)
    about = f"{n_components} dimensions, fitted on {components.shape[1]} components of {len(rows):,} cells"
    return in_memory("umap", rows, placed - placed.mean(axis=0), about)


def differential_profiles(expression: Expression) -> Place:
    """Profiles of differential expression of every (arm, target) against the treated control cells.

    A profile holds the signed normal score of the Mann-Whitney test of every gene, so the anchor's is the way from
    stress back to rest, and a target's cosine distance to it says how far it goes that way. The targeted gene itself
    is left out.

    Raises:
        EvaeError: no control cell is treated.
    """
    since, screen = time.monotonic(), expression.screen
    reference = np.isin(screen.codes, [screen.group(TREATED, t) for t in screen.targets if t in screen.names.controls])
    rng = np.random.default_rng(expression.seed)
    pool = np.flatnonzero(reference)
    if not len(pool):
        raise EvaeError("differential expression needs treated control cells to compare with; leave the baseline out.")
    against = np.sort(rng.choice(pool, min(10 * DE_CELLS, len(pool)), replace=False))
    sample = screen.sample(DE_CELLS, expression.seed)
    rows = np.union1d(sample, against)
    matrix = expression.cells(rows)
    ranks = ControlRanks(matrix[np.searchsorted(rows, against)])
    own = matrix[np.searchsorted(rows, sample)]
    codes = screen.codes[sample]
    profiles = np.full((screen.n_groups, len(expression.genes)), np.nan)
    present = np.unique(codes)
    for low in range(0, len(present), 64):
        groups = present[low : low + 64]
        chosen = np.flatnonzero(np.isin(codes, groups))
        fold, p_value = ranks.test(own[chosen], np.searchsorted(groups, codes[chosen]), len(groups))
        score = np.minimum(-ndtri(p_value / 2), LARGEST_Z)
        profiles[groups] = np.sign(fold) * score
    column = {gene: g for g, gene in enumerate(expression.genes)}
    for target in screen.targets:
        if target in column:
            profiles[[screen.group(UNTREATED, target), screen.group(TREATED, target)], column[target]] = 0.0
    sizes = np.bincount(codes, minlength=screen.n_groups).reshape(2, -1)
    about = (
        f"{len(expression.genes):,} genes, at most {DE_CELLS} cells a group against {len(against):,} treated controls"
    )
    centroids = profiles.reshape(2, len(screen.targets), -1)
    n_skipped = int((screen.codes >= 0).sum() - sizes.sum())
    separation = dict.fromkeys(("ch_condition", "ch_target_treated", "ch_target_untreated"), float("nan"))
    no_nulls = np.empty((0, *sizes.shape))  # its tests would have to be made anew for every shuffle
    return Place(
        "de", centroids, sizes, no_nulls, separation, profiles.shape[1], n_skipped, about, time.monotonic() - since
    )
