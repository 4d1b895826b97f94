"""Which figures an evaluation gives, and their file names."""

from pathlib import Path
from typing import TYPE_CHECKING

from .figures_cells import draw_cells, draw_top_genes, draw_umap
from .figures_metrics import draw_metrics, draw_per_perturbation, draw_radar
from .style import look, save

if TYPE_CHECKING:
    from .result import EvaluationResult

# group, level, metrics, title, file
METRIC_FIGURES = (
    (
        "robust",
        "pooled",
        ("fd", "mmd2_mix_biased", "w2"),
        "Distance between generated and real cells (robust, pooled)",
        "distances_robust.png",
    ),
    (
        "paper",
        "pooled",
        ("fd", "mmd2_mix_biased", "w2"),
        "Distance between generated and real cells (paper, pooled)",
        "distances_paper.png",
    ),
    (
        "perturbation",
        "pair",
        ("pearson_delta", "discrimination_l1", "mae"),
        "Perturbation effect on pseudobulks, mean over perturbations",
        "perturbation_metrics.png",
    ),
    (
        "differential expression",
        "pair",
        ("overlap_at_N", "pr_auc", "de_spearman_lfc_sig"),
        "Differential expression, mean over perturbations",
        "differential_expression.png",
    ),
    (
        "honesty",
        "pooled",
        ("variance_ratio", "classifier_auc", "correlation_error"),
        "Diversity and honesty",
        "honesty.png",
    ),
)


def write_figures(result: "EvaluationResult", folder: Path) -> list[Path]:
    """Draw every figure that the result has numbers for; returns the paths of the PNG files."""
    summary = result.summary()
    written: list[Path] = []
    with look():
        for group, level, metrics, title, name in METRIC_FIGURES:
            part = summary[(summary["group"] == group) & (summary["level"] == level)]
            if not part.empty:
                written.append(save(draw_metrics(part, metrics, title), folder / name))
        if (result.records["group"] == "perturbation").any():
            written.append(save(draw_per_perturbation(result.records), folder / "per_perturbation.png"))
        radar = draw_radar(summary)
        if radar is not None:
            written.append(save(radar, folder / "radar.png"))
        written.append(save(draw_cells(result.comparison), folder / "cells_pca.png"))
        umap = draw_umap(result.comparison)
        if umap is not None:
            written.append(save(umap, folder / "cells_umap.png"))
        written.append(save(draw_top_genes(result.comparison), folder / "top_genes.png"))
    return written
