"""Which plots a report has: file, caption, and what draws each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from evae.common.figures import look, save
from evae.evaluation.report.arrows import draw_counterfactuals
from evae.evaluation.report.figures_cells import plot_cells, plot_top_genes, plot_umap
from evae.evaluation.report.figures_metrics import plot_metrics, plot_per_perturbation, plot_radar
from evae.evaluation.report.tables import EvaluationNumbers


@dataclass(frozen=True)
class Plot:
    """One plot of a report.

    Attributes:
        file: its name in the folder `plots`.
        caption: below it.
        draw: makes the figure; None where the numbers do not give one.
    """

    file: str
    caption: str
    draw: Callable[[EvaluationNumbers], Figure | None]


PLOTS = (
    Plot(
        "distances_robust.png",
        "Distances in the robust protocol. Dots are systems; the green line is what two halves of the real cells reach "
        "with as many cells.",
        lambda n: plot_metrics(n, "robust", "pooled", "Distance between generated and real cells (robust, pooled)"),
    ),
    Plot(
        "distances_paper.png",
        "Distances in the published protocol: components fitted on the compared cells.",
        lambda n: plot_metrics(n, "paper", "pooled", "Distance between generated and real cells (paper, pooled)"),
    ),
    Plot(
        "perturbation_metrics.png",
        "Perturbation effects on pseudobulks. The split half has half of the cells, so a good prediction may pass it.",
        lambda n: plot_metrics(
            n, "perturbation", "pair", "Perturbation effect on pseudobulks, mean over perturbations"
        ),
    ),
    Plot(
        "differential_expression.png",
        "Recovery of differentially expressed genes.",
        lambda n: plot_metrics(
            n, "differential expression", "pair", "Differential expression, mean over perturbations"
        ),
    ),
    Plot(
        "diversity.png",
        "Diversity and memorisation: a mean-collapsed or memorising model shows here.",
        lambda n: plot_metrics(n, "diversity", "pooled", "Diversity and memorisation"),
    ),
    Plot(
        "per_perturbation.png",
        "Correlation of the predicted with the real shift, perturbation by perturbation.",
        plot_per_perturbation,
    ),
    Plot(
        "radar.png",
        "Metrics on one scale, from the control copy (0) to the real cells' own agreement (1); what lies far outside "
        "is drawn at the edge. Beside the model stand the two baselines with the highest mean. Metrics in which half "
        "of the real cells is no better than the control copy are left out.",
        plot_radar,
    ),
    Plot(
        "cells_pca.png",
        "Control, real and generated cells on principal components fitted elsewhere, one panel each; grey are the "
        "cells of the other two. On the right, arrows from the mean of the controls (black) to the mean of each "
        "perturbation; both axes have one scale, so the length of an arrow is the size of an effect in this plane.",
        lambda n: plot_cells(n.comparison),
    ),
    Plot(
        "cells_umap.png",
        "UMAP of control, real and generated cells together; grey are the cells of the other two.",
        lambda n: plot_umap(n.comparison),
    ),
    Plot(
        "counterfactuals.png",
        "The control cells that predictions started from, and what they become. Bold arrows lead from the mean of "
        "neighbouring controls to the mean of what these become; the thin lines are some single cells.",
        lambda n: draw_counterfactuals(n.comparison),
    ),
    Plot(
        "top_genes.png",
        "The genes that move most under the strongest perturbations.",
        lambda n: plot_top_genes(n.comparison),
    ),
)


def write_plots(numbers: EvaluationNumbers, folder: Path) -> list[tuple[Path, str]]:
    """Draw every plot that there are numbers for as PNG; returns their paths and captions."""
    written = []
    with look():
        for plot in PLOTS:
            figure = plot.draw(numbers)
            if figure is not None:
                written.append((save(figure, folder / plot.file), plot.caption))
    return written
