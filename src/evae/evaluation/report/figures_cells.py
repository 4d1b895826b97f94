"""Figures of cells and genes: control, real and generated cells in one embedding, and the genes that move most."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from evae.common.figures import BACKGROUND, CONTROL, GENERATED, GUIDE, REAL, bare, new_figure
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.projection import neighbour_map, sample_rows
from evae.evaluation.systems.baselines import model_system, real_system

MAX_POINTS = 4_000
MAX_ARROWS = 40
MAX_NAMED = 6
TOP_PERTURBATIONS = 4
TOP_GENES = 12


def plot_cells(comparison: Comparison) -> Figure:
    """Principal components: control, real and generated cells, and the shift of every perturbation's mean."""
    clouds = _projected(comparison)
    figure = new_figure(14.2, 4.2)
    axes = figure.subplots(1, len(clouds) + 1)
    _clouds(axes[:-1], clouds, "PC")
    _arrows(axes[-1], comparison)
    _legend(figure)
    return figure


def plot_umap(comparison: Comparison, seed: int = 0) -> Figure | None:
    """UMAP of control, real and generated cells together; None where umap-learn is not installed."""
    if find_spec("umap") is None:
        return None
    clouds = _projected(comparison)
    together = np.concatenate([cloud.places for cloud in clouds])
    if len(together) < 10:
        return None
    embedded = np.split(neighbour_map(together, seed), np.cumsum([len(c.places) for c in clouds])[:-1])
    figure = new_figure(10.8, 4.2)
    clouds = [replace(cloud, places=places) for cloud, places in zip(clouds, embedded, strict=True)]
    _clouds(figure.subplots(1, len(clouds)), clouds, "UMAP")
    _legend(figure)
    return figure


def plot_top_genes(comparison: Comparison) -> Figure:
    """The genes that move most under the strongest perturbations: real against predicted shift."""
    shifts = _shifts(comparison)
    strongest = sorted(shifts, key=lambda pair: -float(np.abs(shifts[pair][0]).sum()))[:TOP_PERTURBATIONS]
    figure = new_figure(2.9 * len(strongest) + 0.4, 3.9)
    axes = figure.subplots(1, len(strongest), squeeze=False)[0]
    several = len(comparison.cell_types) > 1
    for ax, pair in zip(axes, strongest, strict=True):
        draw_top_genes(ax, comparison.genes, *shifts[pair])
        ax.set_title(f"{pair[1]} · {pair[0]}" if several else pair[1])
    figure.supxlabel("shift of mean log1p CP10K from control", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, handletextpad=0.2)
    return figure


def draw_top_genes(ax: Axes, genes: np.ndarray, real: np.ndarray, predicted: np.ndarray) -> None:
    """The genes that truly move most: the real and the predicted shift of each, (genes,), joined by a line."""
    top = np.argsort(-np.abs(real), kind="stable")[:TOP_GENES]
    y = np.arange(len(top))[::-1]
    ax.hlines(y, real[top], predicted[top], color=BACKGROUND, lw=2, zorder=1)
    ax.plot(real[top], y, "o", color=REAL, ms=6.5, label="real", zorder=3)
    ax.plot(predicted[top], y, "o", color=GENERATED, ms=5, label="predicted", zorder=4)
    ax.axvline(0, color=GUIDE, lw=0.8, zorder=0)
    ax.set_yticks(y, genes[top], fontsize=8)
    ax.grid(axis="x")
    ax.margins(x=0.12)


@dataclass(frozen=True)
class Cloud:
    """Cells of one kind in an embedding.

    Attributes:
        name: what they are.
        color: of their points.
        n_cells: how many there are; no more than `MAX_POINTS` of them are drawn.
        places: of those drawn, (cells, dimensions).
    """

    name: str
    color: str
    n_cells: int
    places: np.ndarray

    @property
    def title(self) -> str:
        """How many cells of which kind."""
        drawn = f"{len(self.places):,} of " if len(self.places) < self.n_cells else ""
        return f"{drawn}{self.n_cells:,} {self.name}"


def _projected(comparison: Comparison) -> list[Cloud]:
    """The control, the real and the generated cells on principal components fitted elsewhere."""
    projection = comparison.reference_projection()
    rng = np.random.default_rng(0)
    kinds = (
        ("control cells", CONTROL, comparison.controls),
        ("real perturbed cells", REAL, comparison.real),
        ("generated cells", GENERATED, comparison.predicted),
    )
    return [
        Cloud(name, color, len(cells), projection(cells.matrix[sample_rows(len(cells), MAX_POINTS, rng)]))
        for name, color, cells in kinds
    ]


def _clouds(axes: Sequence[Axes], clouds: Sequence[Cloud], dimension: str) -> None:
    """Each cloud in its colour over the others in grey, one panel each, on the same scale."""
    everything = np.concatenate([cloud.places for cloud in clouds])[:, :2]
    size = float(np.clip(9_000 / len(everything), 2, 14))
    low, high = np.quantile(everything, [0.002, 0.998], axis=0)
    pad = (high - low) * 0.06 + 1e-9
    for ax, own in zip(axes, clouds, strict=True):
        below = np.concatenate([cloud.places for cloud in clouds if cloud is not own])
        ax.scatter(below[:, 0], below[:, 1], s=size, color=BACKGROUND, lw=0, rasterized=True)
        ax.scatter(own.places[:, 0], own.places[:, 1], s=size, color=own.color, lw=0, alpha=0.55, rasterized=True)
        ax.set_title(own.title, color=own.color)
        ax.set_xlim(low[0] - pad[0], high[0] + pad[0])
        ax.set_ylim(low[1] - pad[1], high[1] + pad[1])
        ax.set_xlabel(f"{dimension} 1")
        bare(ax)
    axes[0].set_ylabel(f"{dimension} 2")


def _legend(figure: Figure) -> None:
    """What the colours of the clouds, and the grey below them, stand for."""
    names = (
        ("control cells (real)", CONTROL),
        ("real perturbed cells", REAL),
        ("generated cells", GENERATED),
        ("in each panel: all cells of the other two kinds", BACKGROUND),
    )
    handles = [Line2D([], [], marker="o", ls="", color=color, ms=5, label=name) for name, color in names]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(names), handletextpad=0.2, columnspacing=1.6)


def _arrows(ax: Axes, comparison: Comparison) -> None:
    """From each cell type's controls to the mean of every perturbation, real and predicted."""
    projection = comparison.reference_projection()
    plane = projection.components[:2]
    shifts = _shifts(comparison)
    planar = {pair: (real @ plane.T, predicted @ plane.T) for pair, (real, predicted) in shifts.items()}
    strongest = sorted(planar, key=lambda pair: -float(np.linalg.norm(planar[pair][0])))
    for pair in strongest[:MAX_ARROWS]:
        for shift, color in zip(planar[pair], (REAL, GENERATED), strict=True):
            arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "alpha": 0.8}
            ax.annotate("", shift, (0, 0), arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9})
    ends = np.concatenate([np.array(list(planar.values())).reshape(-1, 2), np.zeros((1, 2))])
    low, high = ends.min(axis=0), ends.max(axis=0)
    middle, reach = (low + high) / 2, float((high - low).max()) * 0.62 + 1e-9
    # the same scale on both axes: an arrow's length is an effect's size
    ax.set_xlim(middle[0] - reach, middle[0] + reach)
    ax.set_ylim(middle[1] - reach, middle[1] + reach)
    ax.set_box_aspect(1)
    for pair in _far_apart(strongest[:MAX_ARROWS], planar, (high - low)):
        _name_arrow(ax, _short(pair, comparison), *planar[pair][0])
    ax.plot(0, 0, "o", color="black", ms=5)
    ax.set(title="shift of the mean from control", xlabel="along PC 1, log1p CP10K", ylabel="along PC 2, log1p CP10K")
    ax.grid()
    marks = (("real", REAL, "-", ""), ("predicted", GENERATED, "-", ""), ("mean of the controls", "black", "", "o"))
    handles = [Line2D([], [], color=c, ls=line, marker=m, ms=5, label=name) for name, c, line, m in marks]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3, fontsize=8, columnspacing=1.2)


def _name_arrow(ax: Axes, text: str, x: float, y: float) -> None:
    """A name beside the end of an arrow, on the side that the arrow points to."""
    side, offset = ("left", 4) if x >= 0 else ("right", -4)
    name = ax.annotate(text, (x, y), xytext=(offset, 0), textcoords="offset points", fontsize=8, ha=side, va="center")
    name.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _short(pair: Pair, comparison: Comparison) -> str:
    """What tells a pair from the others: its cell type, its perturbation, or both."""
    if len({p for _, p in comparison.pairs}) == 1 and len(comparison.cell_types) > 1:
        return pair[0]
    return pair[1] if len(comparison.cell_types) == 1 else f"{pair[1]} · {pair[0]}"


def _far_apart(ranked: list[Pair], planar: dict[Pair, tuple[np.ndarray, np.ndarray]], span: np.ndarray) -> list[Pair]:
    """The strongest pairs whose names do not run into each other."""
    chosen: list[Pair] = []
    for pair in ranked:
        clear = all(abs((planar[pair][0] - planar[c][0])[1]) > 0.07 * span[1] for c in chosen)
        if clear and len(chosen) < MAX_NAMED:
            chosen.append(pair)
    return chosen


def _shifts(comparison: Comparison) -> dict[Pair, tuple[np.ndarray, np.ndarray]]:
    """(real, predicted) mean shift from the control of every pair, (genes,) each."""
    real, model, control = real_system(comparison), model_system(comparison), comparison.control_means
    return {p: (real.mean(p) - control[p[0]], model.mean(p) - control[p[0]]) for p in comparison.pairs}
