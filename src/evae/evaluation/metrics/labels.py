"""How metrics and tables are called and numbers are written where people read them."""

import math
from typing import NamedTuple

import pandas as pd


class Label(NamedTuple):
    """A metric's heading and its best value: "low", "high", or the number that is right."""

    text: str
    best: str

    @property
    def heading(self) -> str:
        """The heading with the direction that is better."""
        return f"{self.text} {({'low': '↓', 'high': '↑'}).get(self.best, '→' + self.best)}"


METRIC_LABELS = {
    "w2": Label("W2", "low"),
    "mmd2_mix_biased": Label("MMD² biased", "low"),
    "mmd2_mix_unbiased": Label("MMD² unbiased", "low"),
    "mmd2_median_unbiased": Label("MMD² median σ", "low"),
    "fd": Label("FD", "low"),
    "pearson_delta": Label("Pearson Δ", "high"),
    "mae": Label("MAE", "low"),
    "mse": Label("MSE", "low"),
    "mae_delta": Label("MAE Δ", "low"),
    "mse_delta": Label("MSE Δ", "low"),
    "discrimination_l1": Label("discrimination L1", "high"),
    "discrimination_l2": Label("discrimination L2", "high"),
    "discrimination_cosine": Label("discrimination cosine", "high"),
    "discrimination_score_l1": Label("discrimination L1", "high"),
    "discrimination_score_l2": Label("discrimination L2", "high"),
    "discrimination_score_cosine": Label("discrimination cosine", "high"),
    "variance_ratio": Label("variance ratio", "1"),
    "zero_fraction_error": Label("zero-fraction error", "low"),
    "correlation_error": Label("correlation error", "low"),
    "classifier_auc": Label("classifier AUC", "0.5"),
    "nearest_training_ratio": Label("distance to training", "1"),
    "copied_fraction": Label("copied", "0"),
    **{f"overlap_at_{k}": Label(f"overlap at {k}", "high") for k in ("N", 50, 100, 200, 500)},
    **{f"precision_at_{k}": Label(f"precision at {k}", "high") for k in ("N", 50, 100, 200, 500)},
    "pr_auc": Label("PR-AUC", "high"),
    "roc_auc": Label("ROC-AUC", "high"),
    "de_spearman_lfc_sig": Label("Spearman log FC", "high"),
    "de_spearman_sig": Label("Spearman DE counts", "high"),
    "de_direction_match": Label("direction match", "high"),
    "de_sig_genes_recall": Label("DE recall", "high"),
    "de_nsig_counts_real": Label("DE genes real", "-"),
    "de_nsig_counts_pred": Label("DE genes predicted", "-"),
    "reconstruction_loss": Label("loss", "low"),
    "codebook_use": Label("codes used", "high"),
    "codebook_perplexity": Label("perplexity", "high"),
    "training_minutes": Label("training, min", "low"),
}

DISTRIBUTION_COLUMNS = ("w2", "mmd2_mix_biased", "mmd2_mix_unbiased", "mmd2_median_unbiased", "fd")

# (group, level): title, metrics shown
TABLES: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("paper", "pooled"): ("Protocol paper: PCA on the evaluated cells, pooled", DISTRIBUTION_COLUMNS),
    ("robust", "pooled"): ("Protocol robust: PCA fitted elsewhere, matched halves", DISTRIBUTION_COLUMNS),
    ("robust", "pair"): ("Protocol robust, mean over perturbations", DISTRIBUTION_COLUMNS),
    ("perturbation", "pair"): (
        "Perturbation metrics on pseudobulks, mean over perturbations",
        ("pearson_delta", "mae", "mse", "discrimination_l1", "discrimination_l2", "discrimination_cosine"),
    ),
    ("differential expression", "pair"): (
        "Differential expression, mean over perturbations",
        ("overlap_at_N", "precision_at_N", "pr_auc", "roc_auc", "de_spearman_lfc_sig",
         "de_direction_match", "de_sig_genes_recall", "de_spearman_sig"),
    ),
    ("cell-eval", "pair"): (
        "cell-eval itself, mean over perturbations",
        ("pearson_delta", "mae", "discrimination_score_l1", "overlap_at_N", "pr_auc", "de_spearman_lfc_sig",
         "de_direction_match", "de_spearman_sig"),
    ),
    ("honesty", "pooled"): (
        "Diversity and honesty",
        ("variance_ratio", "zero_fraction_error", "correlation_error", "classifier_auc",
         "nearest_training_ratio", "copied_fraction"),
    ),
}  # fmt: skip

# What a reader sees first: (group, level, metric), and what the number says.
BRIEF: dict[tuple[str, str, str], str] = {
    ("robust", "pooled", "fd"): "how far the generated cells stand, as a crowd, from the real ones",
    ("robust", "pooled", "mmd2_mix_unbiased"): "the same for the whole shape of the crowd; about 0 for a perfect model",
    (
        "perturbation",
        "pair",
        "pearson_delta",
    ): "whether genes change on average as they should; 1 exactly, 0 not",
    ("perturbation", "pair", "discrimination_l1"): "whether a predicted change is most like that of its own "
    "perturbation; 1 always, about 0.5 by chance",
    ("differential expression", "pair", "overlap_at_N"): "share of the truly changed genes among the top predicted",
    ("honesty", "pooled", "variance_ratio"): "whether cells differ among themselves as real ones do; 0 for mere means",
    ("honesty", "pooled", "classifier_auc"): "whether a classifier tells generated from real; 0.5 not at all, 1 always",
    ("honesty", "pooled", "copied_fraction"): "share of the generated cells that are training cells",
}


def format_number(value: float, significant: int = 3) -> str:
    """Three significant digits, without exponents where they can be helped."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    value = float(f"{value:.{significant}g}")
    digits = max(significant - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{min(digits, 5)}f}" if abs(value) >= 1e-5 else f"{value:.0e}"


def cell_text(row: pd.Series | None) -> str:
    """A value with its spread over seeds, and the number of defined pairs where some are not."""
    if row is None or math.isnan(row["value"]):
        return "–"
    text = format_number(row["value"])
    if row["level"] == "pooled" and not math.isnan(row["sd"]):
        text += f" ±{format_number(row['sd'], significant=2)}"
    if row["n_valid"] < row["n_pairs"]:
        text += f" ({int(row['n_valid'])}/{int(row['n_pairs'])})"
    return text


def cells_text(rows: dict[str, pd.Series]) -> str:
    """Mean number of cells on either side, "real / generated"."""
    row = next(iter(rows.values()))
    return f"{row['n_real']:.0f} / {row['n_generated']:.0f}"
