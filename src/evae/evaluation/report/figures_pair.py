"""The figure of one pair of cell type and perturbation: its genes, those that move most, and its cells."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from evae.common.figures import BACKGROUND, BASELINE, GENERATED, GUIDE, REAL, TEXT, bare, new_figure
from evae.evaluation.cells import Pair
from evae.evaluation.cells.comparison import Comparison
from evae.evaluation.cells.normalised import mean_of
from evae.evaluation.cells.projection import sample_rows
from evae.evaluation.report.figures_cells import draw_top_genes

MAX_POINTS = 1_000  # cells of each kind
N_NAMED = 5


def plot_pair(comparison: Comparison, pair: Pair) -> Figure:
    """Real against predicted shifts of all genes, the genes that move most, and the cells on principal components."""
    control = comparison.control_means[pair[0]]
    real = mean_of(comparison.real.matrix[comparison.real_rows[pair]]) - control
    predicted = mean_of(comparison.predicted.matrix[comparison.predicted_rows[pair]]) - control
    figure = new_figure(12.6, 4.0)
    genes, top, cells = figure.subplots(1, 3)
    _all_genes(genes, comparison.genes, real, predicted)
    draw_top_genes(top, comparison.genes, real, predicted)
    top.set(title="the genes that move most", xlabel="shift of mean log1p CP10K from control")
    _cells(cells, comparison, pair)
    return figure


def _all_genes(ax: Axes, genes: np.ndarray, real: np.ndarray, predicted: np.ndarray) -> None:
    """A dot a gene, the diagonal, and the names of the genes that are missed by most."""
    everything = np.concatenate([real, predicted])
    low, high = float(everything.min()), float(everything.max())
    pad = 0.08 * (high - low) + 1e-6
    ax.axline((0, 0), slope=1, color=GUIDE, lw=1, zorder=1)
    ax.axhline(0, color=GUIDE, lw=0.6, zorder=0)
    ax.axvline(0, color=GUIDE, lw=0.6, zorder=0)
    ax.plot(real, predicted, "o", ms=3.5, mew=0, color=BASELINE, alpha=0.6, zorder=2, rasterized=True)
    named = _far_apart(np.argsort(-np.abs(predicted - real), kind="stable"), predicted, 0.045 * (high - low))
    ax.plot(real[named], predicted[named], "o", ms=5, mew=0, color=GENERATED, zorder=3)
    for gene in named:
        right = real[gene] < (low + high) / 2
        text = ax.annotate(
            str(genes[gene]), (real[gene], predicted[gene]), xytext=(5 if right else -5, 0), fontsize=7.5, color=TEXT,
            textcoords="offset points", ha="left" if right else "right", va="center",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), title="all genes")
    ax.set(xlabel="real shift, log1p CP10K", ylabel="predicted shift, log1p CP10K")
    ax.set_box_aspect(1)


def _far_apart(ranked: np.ndarray, heights: np.ndarray, least: float) -> list[int]:
    """The first genes of a ranking whose names do not run into each other."""
    chosen: list[int] = []
    for gene in ranked[: 4 * N_NAMED].tolist():
        if len(chosen) < N_NAMED and all(abs(heights[gene] - heights[other]) > least for other in chosen):
            chosen.append(gene)
    return chosen


def _cells(ax: Axes, comparison: Comparison, pair: Pair) -> None:
    """Controls in grey, and over them the real and the generated cells of the pair."""
    projection, rng = comparison.reference_projection(), np.random.default_rng(0)
    kinds = (
        ("controls", BACKGROUND, comparison.controls, comparison.control_rows[pair[0]], 1.0),
        ("real", REAL, comparison.real, comparison.real_rows[pair], 0.55),
        ("generated", GENERATED, comparison.predicted, comparison.predicted_rows[pair], 0.55),
    )
    for name, color, cells, rows, alpha in kinds:
        places = projection(cells.matrix[rows[sample_rows(len(rows), MAX_POINTS, rng)]])
        ax.scatter(places[:, 0], places[:, 1], s=9, lw=0, color=color, alpha=alpha, label=name, rasterized=True)
    ax.set(title="cells", xlabel="PC 1", ylabel="PC 2")
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, markerscale=2, handletextpad=0.1, columnspacing=1.2
    )
    bare(ax)
