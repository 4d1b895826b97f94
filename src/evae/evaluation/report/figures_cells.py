"""Figures of cells and genes: real and generated cells in one embedding, and the genes that move most."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from evae.common.figures import BACKGROUND, GENERATED, GUIDE, REAL, bare, new_figure
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.cells.projection import sample_rows
from evae.evaluation.systems.baselines import model_system, real_system

MAX_POINTS = 4_000
MAX_ARROWS = 40
MAX_NAMED = 6
TOP_PERTURBATIONS = 4
TOP_GENES = 12


def plot_cells(comparison: Comparison) -> Figure:
    """Principal components: real cells, generated cells, and the shift of every perturbation's centre."""
    real, generated = _projected(comparison)
    figure = new_figure(11.2, 3.9)
    axes = figure.subplots(1, 3)
    _two_clouds(axes[0], axes[1], real, generated)
    _arrows(axes[2], comparison)
    for ax in axes:
        bare(ax)
        ax.set_xlabel("PC 1")
    axes[0].set_ylabel("PC 2")
    return figure


def plot_umap(comparison: Comparison, seed: int = 0) -> Figure | None:
    """UMAP of real and generated cells together; None where umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        return None
    real, generated = _projected(comparison)
    both = np.concatenate([real, generated])
    if len(both) < 10:
        return None
    neighbours = min(15, len(both) - 1)
    embedded = np.asarray(UMAP(n_neighbors=neighbours, min_dist=0.3, random_state=seed, n_jobs=1).fit_transform(both))
    figure = new_figure(7.6, 3.9)
    axes = figure.subplots(1, 2)
    _two_clouds(axes[0], axes[1], embedded[: len(real)], embedded[len(real) :])
    for ax in axes:
        bare(ax)
        ax.set_xlabel("UMAP 1")
    axes[0].set_ylabel("UMAP 2")
    return figure


def plot_top_genes(comparison: Comparison) -> Figure:
    """The genes that move most under the strongest perturbations: real against predicted shift."""
    shifts = _shifts(comparison)
    strongest = sorted(shifts, key=lambda pair: -float(np.abs(shifts[pair][0]).sum()))[:TOP_PERTURBATIONS]
    figure = new_figure(2.9 * len(strongest) + 0.4, 3.9)
    axes = figure.subplots(1, len(strongest), squeeze=False)[0]
    several = len(comparison.cell_types) > 1
    for ax, pair in zip(axes, strongest, strict=True):
        real, predicted = shifts[pair]
        top = np.argsort(-np.abs(real), kind="stable")[:TOP_GENES]
        y = np.arange(len(top))[::-1]
        ax.hlines(y, real[top], predicted[top], color=BACKGROUND, lw=2, zorder=1)
        ax.plot(real[top], y, "o", color=REAL, ms=6.5, label="real", zorder=3)
        ax.plot(predicted[top], y, "o", color=GENERATED, ms=5, label="predicted", zorder=4)
        ax.axvline(0, color=GUIDE, lw=0.8, zorder=0)
        ax.set_yticks(y, comparison.genes[top], fontsize=8)
        ax.set_title(f"{pair[1]} · {pair[0]}" if several else pair[1])
        ax.grid(axis="x")
        ax.margins(x=0.12)
    figure.supxlabel("shift of mean log1p CP10K from control", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, handletextpad=0.2)
    return figure


def _projected(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    projection = comparison.reference_projection()
    rng = np.random.default_rng(0)
    real, predicted = (
        projection(cells.matrix[sample_rows(len(cells), MAX_POINTS, rng)])
        for cells in (comparison.real, comparison.predicted)
    )
    return real, predicted


def _two_clouds(left: Axes, right: Axes, real: np.ndarray, generated: np.ndarray) -> None:
    """Each cloud in colour over the other in grey, on the same scale."""
    size = float(np.clip(9_000 / (len(real) + len(generated)), 2, 14))
    for ax, above, below, color, title in (
        (left, real, generated, REAL, "real cells"),
        (right, generated, real, GENERATED, "generated cells"),
    ):
        ax.scatter(below[:, 0], below[:, 1], s=size, color=BACKGROUND, lw=0, rasterized=True)
        ax.scatter(above[:, 0], above[:, 1], s=size, color=color, lw=0, alpha=0.55, rasterized=True)
        ax.set_title(f"{len(above):,} {title}", color=color)
    both = np.concatenate([real, generated])[:, :2]
    low, high = np.quantile(both, [0.002, 0.998], axis=0)
    pad = (high - low) * 0.06 + 1e-9
    for ax in (left, right):
        ax.set_xlim(low[0] - pad[0], high[0] + pad[0])
        ax.set_ylim(low[1] - pad[1], high[1] + pad[1])


def _arrows(ax: Axes, comparison: Comparison) -> None:
    """From each cell type's controls to the centre of every perturbation, real and predicted."""
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
    for pair in _far_apart(strongest[:MAX_ARROWS], planar, (high - low)):
        end = planar[pair][0]
        side, offset = ("left", 4) if end[0] >= 0 else ("right", -4)
        name = ax.annotate(
            _short(pair, comparison),
            end,
            xytext=(offset, 0),
            textcoords="offset points",
            fontsize=8,
            ha=side,
            va="center",
        )
        name.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.plot(0, 0, "o", color="black", ms=5)
    ax.set_title("shift of the mean from control")
    ax.text(0.02, 0.02, "real", color=REAL, transform=ax.transAxes, fontweight="bold")
    ax.text(0.13, 0.02, "predicted", color=GENERATED, transform=ax.transAxes, fontweight="bold")


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
