"""Pictures of raw cells side by side: where they lie, how genes change, how much of a gene they hold.

Values are log1p of counts per 10,000 over the genes that all groups have, as in an evaluation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from evae.common.extras import require
from evae.common.figures import GENERATED, GUIDE, bare
from evae.data.reading.anndata_file import as_anndata
from evae.evaluation.cells.normalised import log1p_cp10k, mean_of
from evae.evaluation.cells.projection import fit_projection, neighbour_map
from evae.evaluation.cells.scale import RAW
from evae.evaluation.report.arrows import EMBEDDINGS, draw_moved, moved_cells
from evae.models.contract_evae import EvaeError, check_raw_counts, near_matches
from evae.models.genes_evae import gene_columns, match_genes
from evae.plot.axes import axes, colours

CellData: TypeAlias = ad.AnnData | str | Path
MOST_POINTS = 2_000  # cells of a group
COMPONENTS = 30
LEAST_CELLS = 10  # of UMAP


def cells(groups: Mapping[str, CellData], ax: Axes | None = None, *, embedding: str = "pca", seed: int = 0) -> Axes:
    """Draw groups of cells on their first two principal components, or in UMAP.

    Args:
        groups: raw counts by name, such as `{"control": controls, "real": real, "predicted": predicted}`; the names
            "real", "predicted" and "control" have colours of their own.
        ax: axes to draw on; those of a new figure if None.
        embedding: "pca", in which distances have a meaning, or "umap" (extra `eval`).
        seed: chooses which cells are drawn where a group has more than 2,000; of UMAP too.

    Returns:
        The axes.

    Raises:
        EvaeError: cells that are not raw counts, or groups that share no gene; for UMAP, fewer than 10 cells.
    """
    if embedding not in EMBEDDINGS:
        raise EvaeError(f"unknown embedding '{embedding}'. {near_matches(embedding, EMBEDDINGS)}")
    if embedding == "umap":
        require("umap", "the embedding umap")
    values, _ = normalised(groups, seed)
    together = sp.vstack(list(values.values()), format="csr")
    places = fit_projection(together, COMPONENTS)(together)
    if embedding == "umap" and len(places) < LEAST_CELLS:
        raise EvaeError(f'UMAP needs {LEAST_CELLS} cells, not {len(places)}; give more, or embedding="pca".')
    places = neighbour_map(places, seed) if embedding == "umap" else places[:, :2]
    of_group = np.repeat(np.arange(len(values)), [matrix.shape[0] for matrix in values.values()])
    palette = list(colours(values).values())
    mixed = np.random.default_rng(seed).permutation(len(places))  # so that no group hides another
    with axes(ax) as own:
        size = float(np.clip(6_000 / len(places), 3, 14))
        own.scatter(
            places[mixed, 0],
            places[mixed, 1],
            s=size,
            c=[palette[g] for g in of_group[mixed]],
            lw=0,
            alpha=0.5,
            rasterized=True,
        )
        for name, colour, matrix in zip(values, palette, values.values(), strict=True):
            own.scatter([], [], s=20, color=colour, label=f"{name} ({matrix.shape[0]:,})")
        if embedding == "umap":
            bare(own)
        axis = "UMAP {}" if embedding == "umap" else "PC {}, log1p CP10K"
        own.set(xlabel=axis.format(1), ylabel=axis.format(2))
        own.legend(loc="best", handletextpad=0.2)
        return own


def fold_changes(
    predicted: CellData, real: CellData, controls: CellData, ax: Axes | None = None, *, n_named: int = 8
) -> Axes:
    """Draw the change of every gene's mean over the controls, predicted against real.

    Args:
        predicted, real: perturbed cells, raw counts: of one perturbation and cell type.
        controls: unperturbed cells of that cell type, raw counts.
        ax: axes to draw on; those of a new figure if None.
        n_named: genes to name, those of the largest real change whose names do not cover one another.

    Returns:
        The axes, with the correlation of the changes (Pearson delta) in the title.

    Raises:
        EvaeError: cells that are not raw counts, or that share no gene.
    """
    values, genes = normalised({"the predicted": predicted, "the real": real, "the controls": controls}, most=None)
    of_model, of_cells, base = (mean_of(matrix) for matrix in values.values())
    x, y = of_cells - base, of_model - base
    with axes(ax) as own:
        span = [min(x.min(), y.min(), 0.0), max(x.max(), y.max(), 0.0)]
        own.plot(span, span, color=GUIDE, lw=1, zorder=1)
        own.scatter(x, y, s=9, color=GENERATED, lw=0, alpha=0.6, zorder=2)
        outline = [withStroke(linewidth=2, foreground="white")]
        for g in _far_apart(np.argsort(-np.abs(x), kind="stable"), y, n_named, (span[1] - span[0]) / 22):
            left = x[g] > np.mean(span)  # names stay inside
            own.annotate(
                genes[g], (x[g], y[g]), (-4 if left else 4, 0), textcoords="offset points", fontsize=8,
                ha="right" if left else "left", va="center", path_effects=outline,
            )  # fmt: skip
        both_vary = x.std() > 0 and y.std() > 0
        found = f"Pearson Δ {np.corrcoef(x, y)[0, 1]:.2f}" if both_vary else "no change to correlate"
        own.set(xlabel="real change of the mean, log1p CP10K", ylabel="predicted change", title=found)
        return own


def gene(groups: Mapping[str, CellData], name: str, ax: Axes | None = None) -> Axes:
    """Draw how much of one gene the cells of groups hold, as violins with their means.

    Args:
        groups: raw counts by name, as for `cells`.
        name: a gene, as the first group names it.
        ax: axes to draw on; those of a new figure if None.

    Returns:
        The axes.

    Raises:
        EvaeError: a gene that the groups do not share, or cells that are not raw counts.
    """
    values, genes = normalised(groups, most=None)
    if name not in genes:
        raise EvaeError(f"no gene '{name}' that all groups have. {near_matches(name, genes)}")
    column = genes.index(name)
    with axes(ax, width=1.2 + 0.9 * len(values), height=3.4) as own:
        columns = [matrix[:, [column]].toarray().ravel() for matrix in values.values()]
        drawn: dict[str, Any] = own.violinplot(columns, showmeans=True, showextrema=False, widths=0.8)
        for body, colour in zip(drawn["bodies"], colours(values).values(), strict=True):
            body.set(facecolor=colour, alpha=0.6)
        drawn["cmeans"].set_color("black")
        own.set_xticks(range(1, len(values) + 1), list(values))
        own.set(ylabel="log1p CP10K")
        own.set_title(name, parse_math=False)
        return own


def counterfactual(
    controls: CellData, predicted: CellData, ax: Axes | None = None, *, perturbation: str | None = None, seed: int = 0
) -> Axes:
    """Draw control cells, what they become, and arrows from the ones to the others, on principal components.

    Args:
        controls: the cells given to `Pipeline.predict` or `Pipeline.counterfactual`, raw counts.
        predicted: what these returned; `obs["source"]` names the control of every cell.
        ax: axes to draw on; those of a new figure if None.
        perturbation: which of the predictions; the first if None.
        seed: of the cells that are drawn, and of their groups.

    Returns:
        The axes.

    Raises:
        EvaeError: predictions without sources, controls that are not their sources, or an unknown name.
    """
    before, after = as_anndata(controls, "the controls"), as_anndata(predicted, "the predictions")
    with axes(ax, height=4.8) as own:
        return draw_moved(own, moved_cells(before, after, perturbation, seed)[0], seed)


def normalised(
    groups: Mapping[str, CellData], seed: int = 0, most: int | None = MOST_POINTS
) -> tuple[dict[str, sp.csr_matrix], list[str]]:
    """Log1p CP10K of every group over the genes that all have, and these genes as the first group names them.

    Args:
        groups: raw counts by name.
        seed: chooses the cells of a group that has more than `most`.
        most: cells of a group; None takes all.
    """
    if not groups:
        raise EvaeError("there are no cells to draw; give groups such as {'control': controls}.")
    found = {name: as_anndata(data, f"the cells '{name}'") for name, data in groups.items()}
    if empty := [name for name, data in found.items() if not data.n_obs]:
        raise EvaeError(f"there are no cells in '{empty[0]}'; leave it out, or check how its cells were chosen.")
    columns = {name: gene_columns([str(g) for g in data.var_names], data.var) for name, data in found.items()}
    panel = next(iter(columns.values()))
    places = np.stack([match_genes(panel, own, f"the cells '{name}'") for name, own in columns.items()])
    shared = np.flatnonzero((places >= 0).all(axis=0))
    if not len(shared):
        raise EvaeError(f"the cells {', '.join(map(repr, found))} share no gene; check their var_names.")
    rng, values = np.random.default_rng(seed), {}
    for own, (name, data) in zip(places, found.items(), strict=True):
        rows = np.sort(rng.permutation(data.n_obs)[:most])
        counts = sp.csr_matrix(data.X[rows])
        check_raw_counts(counts.data, f"the cells '{name}'")
        values[name] = log1p_cp10k(counts, RAW, own[shared])
    return values, [panel.names[g] for g in shared]


def _far_apart(order: np.ndarray, heights: np.ndarray, n: int, gap: float) -> list[int]:
    """The first `n` of an order whose heights differ by at least `gap`, so that no name covers another."""
    taken: list[int] = []
    for g in order:
        if len(taken) < n and all(abs(heights[g] - heights[other]) >= gap for other in taken):
            taken.append(int(g))
    return taken
