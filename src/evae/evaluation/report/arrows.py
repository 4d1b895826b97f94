"""Counterfactuals as a picture: control cells, the same cells after a perturbation, and arrows between them.

A cell and its counterfactual differ by chance as well, so single arrows are drawn faintly, for a few cells. The bold
arrows are means: the controls are put into groups of neighbours (k-means on their principal components), and an arrow
leads from the mean of a group to the mean of what its cells become.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from sklearn.cluster import KMeans

from evae.common.extras import require
from evae.common.figures import CONTROL, GENERATED, GUIDE, bare, look, new_figure, save
from evae.common.messages import number_of
from evae.data.reading.anndata_file import as_anndata
from evae.evaluation.cells import Comparison
from evae.evaluation.cells.normalised import log1p_cp10k
from evae.evaluation.cells.projection import fit_projection, neighbour_map
from evae.evaluation.cells.scale import RAW
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import gene_columns, match_genes

EMBEDDINGS = ("pca", "umap")
MOST_PANELS = 4
MOST_POINTS = 3_000  # cells of a panel
MOST_REPORTED = 1_000  # the same in a report
LEAST_POINTS = 10  # cells, below which there is no picture in a report
COMPONENTS = 30
CELLS_A_GROUP = 60
MOST_GROUPS = 8
MOST_NAMED = 6  # cell types
SINGLE_ARROWS = 40


@dataclass(frozen=True)
class Moved:
    """Control cells and what they become under one perturbation.

    Attributes:
        name: of the perturbation.
        before, after: log1p CP10K of the same cells, (cells, genes).
        cell_type: (cells,).
    """

    name: str
    before: sp.csr_matrix
    after: sp.csr_matrix
    cell_type: np.ndarray


def plot_counterfactual(
    controls: ad.AnnData | str | Path,
    predicted: ad.AnnData | str | Path,
    file: str | Path,
    *,
    perturbation: str | Sequence[str] | None = None,
    embedding: str = "pca",
    layer: str | None = None,
    seed: int = 0,
) -> Path:
    """Draw control cells, their counterfactuals, and arrows from the ones to the others, as a PNG.

    Args:
        controls: the cells given to `Pipeline.predict` or `Pipeline.counterfactual`, raw counts.
        predicted: what these returned; `obs["source"]` names the control of every cell.
        file: the PNG to write.
        perturbation: one or several, a panel each; the first 4 of the predictions if None.
        embedding: "pca", in which lengths have a meaning, or "umap" (extra `eval`).
        layer: the layer of `controls` that holds raw counts, or "raw"; X if None.
        seed: of the cells that are drawn, their groups, and UMAP.

    Returns:
        the path of the PNG.

    Raises:
        EvaeError: predictions without sources, controls that are not their sources, or an unknown name.
    """
    if embedding not in EMBEDDINGS:
        raise EvaeError(f"unknown embedding '{embedding}'. {near_matches(embedding, EMBEDDINGS)}")
    if embedding == "umap":
        require("umap", "the embedding umap")
    before, after = as_anndata(controls, "the controls", layer), as_anndata(predicted, "the predictions")
    moved = moved_cells(before, after, perturbation, seed)
    with look():
        return save(_figure(moved, embedding, seed), Path(file))


def draw_counterfactuals(comparison: Comparison, seed: int = 0) -> Figure | None:
    """The same picture of compared cells, of the perturbations with most predicted cells; None without sources.

    In UMAP where umap-learn is installed, else on principal components.
    """
    if comparison.sources is None:
        return None
    names, counts = np.unique(comparison.predicted.perturbation.astype(str), return_counts=True)
    rng, moved = np.random.default_rng(seed), []
    for name in names[np.argsort(-counts, kind="stable")][:MOST_PANELS]:
        rows = np.flatnonzero(comparison.predicted.perturbation == name)
        rows = np.sort(rng.permutation(rows)[:MOST_REPORTED])
        before, after = comparison.controls.matrix[comparison.sources[rows]], comparison.predicted.matrix[rows]
        moved.append(Moved(name, before, after, comparison.predicted.cell_type[rows]))
    if sum(len(one.cell_type) for one in moved) < LEAST_POINTS:
        return None
    return _figure(moved, "umap" if find_spec("umap") else "pca", seed)


def moved_cells(
    controls: ad.AnnData, predicted: ad.AnnData, perturbation: str | Sequence[str] | None, seed: int
) -> list[Moved]:
    """Controls and what they become, for each perturbation; raises as `plot_counterfactual` does."""
    if "source" not in predicted.obs:
        raise EvaeError("the predictions name no source cells; predict with a prior of model.source_cells=1.")
    if not controls.obs_names.is_unique:
        raise EvaeError("the names of the controls are not unique, so sources cannot be found; make them unique.")
    names = controls.obs_names.get_indexer(predicted.obs["source"].astype(str))
    if (names < 0).any():
        raise EvaeError("the controls are not the source cells of the predictions; give the cells predicted from.")
    known = [str(name) for name in predicted.obs["perturbation"].unique()]
    given = [perturbation] if isinstance(perturbation, str) else list(perturbation or known[:MOST_PANELS])
    panel, own = (gene_columns([str(g) for g in cells.var_names], cells.var) for cells in (predicted, controls))
    places = match_genes(panel, own, "the controls")
    shared, rng, found = np.flatnonzero(places >= 0), np.random.default_rng(seed), []
    for name in given:
        if name not in known:
            raise EvaeError(f"no predicted cell of '{name}'. {near_matches(name, known)}")
        rows = np.flatnonzero(predicted.obs["perturbation"].astype(str) == name)
        rows = np.sort(rng.permutation(rows)[:MOST_POINTS])
        found.append(
            Moved(
                name,
                before=log1p_cp10k(sp.csr_matrix(controls.X[names[rows]]), RAW, places[shared]),
                after=log1p_cp10k(sp.csr_matrix(predicted.X[rows]), RAW, shared),
                cell_type=predicted.obs["cell_type"].astype(str).to_numpy()[rows],
            )
        )
    return found


def draw_moved(ax: Axes, one: Moved, seed: int) -> Axes:
    """Draw one perturbation on principal components of its own cells."""
    together = sp.vstack([one.before, one.after], format="csr")
    before, after = np.split(fit_projection(together, COMPONENTS)(together), 2)
    _panel(ax, one, before[:, :2], after[:, :2], _groups(before, one.cell_type, seed))
    ax.set(xlabel="PC 1, log1p CP10K", ylabel="PC 2, log1p CP10K")
    return ax


def _figure(moved: Sequence[Moved], embedding: str, seed: int) -> Figure:
    """A panel a perturbation, all in one embedding."""
    together = sp.vstack([part for one in moved for part in (one.before, one.after)], format="csr")
    components = fit_projection(together, COMPONENTS)(together)
    places = components[:, :2] if embedding == "pca" else neighbour_map(components, seed)
    ends = np.cumsum([len(one.cell_type) for one in moved for _ in range(2)])[:-1]
    parts, high = np.split(places, ends), np.split(components, ends)
    figure = new_figure(4.6 * len(moved) + 0.4, 5.2)
    axes = figure.subplots(1, len(moved), squeeze=False, sharex=True, sharey=True)[0]
    for number, (ax, one) in enumerate(zip(axes, moved, strict=True)):
        _panel(ax, one, parts[2 * number], parts[2 * number + 1], _groups(high[2 * number], one.cell_type, seed))
        if embedding == "umap":
            bare(ax)
            ax.set_xlabel("UMAP 1")
        else:
            ax.set_xlabel("PC 1, log1p CP10K")
    axes[0].set_ylabel("PC 2, log1p CP10K" if embedding == "pca" else "UMAP 2")
    _legend(figure)
    return figure


def _panel(ax: Axes, one: Moved, before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> None:
    size = float(np.clip(6_000 / max(len(before), 1), 3, 14))
    for cloud, color in ((before, CONTROL), (after, GENERATED)):
        ax.scatter(cloud[:, 0], cloud[:, 1], s=size, color=color, lw=0, alpha=0.3, rasterized=True)
    some = np.linspace(0, len(before) - 1, min(SINGLE_ARROWS, len(before))).astype(int)
    for start, stop in zip(before[some], after[some], strict=True):
        ax.plot(*np.stack([start, stop]).T, color=GUIDE, lw=0.6, zorder=2)
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": "black", "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    outline: list[AbstractPathEffect] = [withStroke(linewidth=3.5, foreground="white")]
    for group in np.unique(groups):
        own = groups == group
        drawn = ax.annotate("", after[own].mean(0), before[own].mean(0),
                            arrowprops={**arrow, "mutation_scale": 12, "path_effects": outline}, zorder=4)  # fmt: skip
        drawn.set_zorder(4)
    kinds = np.unique(one.cell_type)
    for kind in kinds if 1 < len(kinds) <= MOST_NAMED else ():
        x, y = before[one.cell_type == kind].mean(0)
        name = ax.text(x, y, kind, color=CONTROL, fontsize=8, fontweight="bold", ha="center", va="center", zorder=5)
        name.set_path_effects(outline)
    ax.set_title(f"{one.name} · {number_of(len(before), 'cell')}")
    ax.set_aspect("equal", adjustable="box")
    ax.margins(0.05)


def _groups(components: np.ndarray, cell_type: np.ndarray, seed: int) -> np.ndarray:
    """Groups of neighbours within each cell type, (cells,)."""
    groups, taken = np.zeros(len(components), dtype=np.int64), 0
    for name in np.unique(cell_type):
        own = np.flatnonzero(cell_type == name)
        share = max(1, round(MOST_GROUPS * len(own) / len(components)))
        n = int(np.clip(len(own) // CELLS_A_GROUP, 1, share))
        groups[own] = taken + KMeans(n, n_init=1, random_state=seed).fit_predict(components[own])
        taken += n
    return groups


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], marker="o", ls="", color=CONTROL, ms=5, label="control cells"),
        Line2D([], [], marker="o", ls="", color=GENERATED, ms=5, label="the same after the perturbation, predicted"),
        Line2D([], [], color="black", lw=1.6, marker=">", ms=5, markevery=[1], label="mean of neighbouring cells"),
        Line2D([], [], color=GUIDE, lw=1, label="some single cells"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handletextpad=0.4, columnspacing=1.6)
