"""Every metric's facts, in one place: tables, figures, reports, model cards and studies read them here.

A metric that is computed elsewhere in this folder has one `Metric` in `METRICS`. The order there is the order in all
tables. `TABLES` says which tables there are, and `shown` what stands where.
"""

from evae.evaluation.metrics.facts_extended import AGREEMENT_METRICS, EXTENDED_METRICS
from evae.evaluation.metrics.metric import Metric, MetricTable, Place

__all__ = ["BY_NAME", "METRICS", "TABLES", "Metric", "MetricTable", "Place", "shown"]

TABLES = (
    MetricTable(
        "paper", "pooled", "Protocol paper: PCA on the evaluated cells, pooled",
        ("table", "figure", "card", "summary", "study"),
    ),
    MetricTable(
        "robust", "pooled", "Protocol robust: PCA fitted elsewhere, matched halves",
        ("table", "brief", "figure", "radar", "card", "summary", "study", "score"),
    ),
    MetricTable("equal depth", "pooled", "Both sides thinned to one depth", ("table", "brief")),
    MetricTable("robust", "pair", "Protocol robust, mean over perturbations", ("table", "study")),
    MetricTable(
        "perturbation", "pair", "Perturbation metrics on pseudobulks, mean over perturbations",
        ("table", "brief", "figure", "radar", "card", "summary", "study", "score"),
    ),
    MetricTable(
        "differential expression", "pair", "Differential expression, mean over perturbations",
        ("table", "brief", "figure", "radar", "card", "summary", "study", "score"),
    ),
    MetricTable(
        "extended", "pair", "Extended metrics of effects, mean over perturbations", ("table", "brief", "study", "score")
    ),
    MetricTable("cell-eval", "pair", "cell-eval itself, mean over perturbations"),
    MetricTable(
        "vcc2026", "pooled", "Virtual Cell Challenge 2026, mean over contexts", ("table", "brief", "study")
    ),
    MetricTable(
        "vcc2026 score", "pooled", "The same as scores: 0 is the mean of other contexts, 1 the real split half",
        ("table", "study"),
    ),
    MetricTable(
        "diversity", "pooled", "Diversity and memorisation", ("table", "brief", "figure", "radar", "study", "score")
    ),
    MetricTable("tokenizer", "training", "Training of tokenizers", ("study",)),
)  # fmt: skip

_DISTANCE = ("paper", "robust")
_DEPTH = ("equal depth",)
_EFFECT = ("perturbation",)
_EFFECT_TOO = ("perturbation", "cell-eval")
_DE = ("differential expression",)
_DE_TOO = ("differential expression", "cell-eval")
_DIVERSITY = ("diversity",)
_TOKENIZER = ("tokenizer",)
_CHALLENGE = ("vcc2026",)
_SCORE = ("vcc2026 score",)

METRICS = (
    Metric(
        "fd", "FD", "low", "how far the generated cells stand, as a crowd, from the real ones", _DISTANCE,
        ("brief", "figure", "radar", "card", "summary", "study", "score"), "variance",
    ),
    Metric(
        "mmd2_mix_biased", "MMD² biased", "low", "the same for the whole shape of the crowd, as published", _DISTANCE,
        ("figure", "card", "summary", "study"), "variance",
    ),
    Metric(
        "mmd2_mix_unbiased", "MMD² unbiased", "low",
        "the same for the whole shape of the crowd; about 0 for a perfect model", _DISTANCE,
        ("brief", "radar", "card", "score"),
    ),
    Metric(
        "mmd2_median_unbiased", "MMD² median σ", "low", "the same with one kernel, as wide as cells are apart",
        _DISTANCE,
    ),
    Metric(
        "w2", "W2", "low", "how far cells must move to turn one crowd into the other; never 0 on finite samples",
        _DISTANCE, ("figure", "radar", "card", "summary", "study"),
        "mean",  # in high dimension, points near the mean are nearer to all cells than cells are
    ),
    Metric(
        "fd_equal_depth", "FD, equal depth", "low", "FD after both sides are thinned to one depth", _DEPTH,
        ("brief",),
    ),
    Metric("mse_equal_depth", "MSE, equal depth", "low", "of mean expression, after the same thinning", _DEPTH),
    Metric(
        "pearson_delta", "Pearson Δ", "high", "whether genes change on average as they should; 1 exactly, 0 not",
        _EFFECT_TOO, ("brief", "figure", "card", "summary", "study", "score"), "mean", nothing=0.0,
    ),
    Metric(
        "mae", "MAE", "low", "mean absolute error of mean expression", _EFFECT_TOO, ("figure", "card"), "mean",
    ),
    Metric("mse", "MSE", "low", "mean squared error of mean expression", _EFFECT, ("radar", "study"), "mean"),
    Metric("mae_delta", "MAE Δ", "low", "mean absolute error of the shift from control"),
    Metric("mse_delta", "MSE Δ", "low", "mean squared error of the shift from control"),
    Metric(
        "discrimination_l1", "discrimination L1", "high",
        "whether a predicted change is most like that of its own perturbation; 1 always, about 0.5 by chance",
        _EFFECT, ("brief", "figure", "radar", "card", "study"), "mean",
    ),
    Metric("discrimination_l2", "discrimination L2", "high", "the same by Euclidean distance", _EFFECT),
    Metric(
        "discrimination_cosine", "discrimination cosine", "high", "the same by direction alone", _EFFECT, ("radar",),
    ),
    Metric("discrimination_score_l1", "discrimination L1", "high", "cell-eval's own discrimination", ("cell-eval",)),
    Metric("discrimination_score_l2", "discrimination L2", "high", "the same by Euclidean distance"),
    Metric("discrimination_score_cosine", "discrimination cosine", "high", "the same by direction alone"),
    Metric(
        "overlap_at_N", "overlap at N", "high", "share of the truly changed genes among the top predicted", _DE_TOO,
        ("brief", "figure", "radar", "card", "summary", "study"),
    ),
    *(
        Metric(f"overlap_at_{k}", f"overlap at {k}", "high", f"the same among the top {k}")
        for k in (50, 100, 200, 500)
    ),
    Metric(
        "precision_at_N", "precision at N", "high",
        "the same among as many top genes as are predicted to change", _DE,
    ),
    *(
        Metric(f"precision_at_{k}", f"precision at {k}", "high", f"the same among at most {k}")
        for k in (50, 100, 200, 500)
    ),
    Metric(
        "pr_auc", "PR-AUC", "high", "how well predicted significance finds the truly changed genes", _DE_TOO,
        ("figure", "radar", "card", "study", "score"),
    ),
    Metric("roc_auc", "ROC-AUC", "high", "the same against the false alarms; 0.5 by chance", _DE),
    Metric(
        "de_spearman_lfc_sig", "Spearman log FC", "high", "rank correlation of fold changes of truly changed genes",
        _DE_TOO, ("figure", "card"), nothing=0.0,
    ),
    Metric(
        "de_direction_match", "direction match", "high", "share of truly changed genes with the right sign", _DE_TOO,
    ),
    Metric("de_sig_genes_recall", "DE recall", "high", "share of truly changed genes that are predicted to", _DE),
    Metric(
        "de_spearman_sig", "Spearman DE counts", "high", "whether strong perturbations are predicted to be strong",
        _DE_TOO,
    ),
    Metric("de_nsig_counts_real", "DE genes real", None, "number of truly changed genes"),
    Metric("de_nsig_counts_pred", "DE genes predicted", None, "number of genes that are predicted to change"),
    *AGREEMENT_METRICS,
    *EXTENDED_METRICS,
    Metric(
        "variance_ratio", "variance ratio", 1.0,
        "whether cells differ among themselves as real ones do; 0 for mere means", _DIVERSITY,
        ("brief", "figure", "study"), "variance",
    ),
    Metric(
        "zero_fraction_error", "zero-fraction error", "low", "how wrong the share of zeros of a gene is", _DIVERSITY,
        (), "variance",
    ),
    Metric(
        "correlation_error", "correlation error", "low", "how wrong the correlation of two genes is", _DIVERSITY,
        ("figure", "radar"), "variance",
    ),
    Metric(
        "classifier_auc", "classifier AUC", 0.5,
        "whether a classifier tells generated from real; 0.5 not at all, 1 always", _DIVERSITY,
        ("brief", "figure", "radar", "study"), "variance",
    ),
    Metric(
        "nearest_training_ratio", "distance to training", 1.0,
        "how near generated cells are to training cells, over real ones; far below 1 for memorised cells", _DIVERSITY,
    ),
    Metric(
        "copied_fraction", "copied", 0.0, "share of the generated cells that are training cells", _DIVERSITY,
        ("brief",),
    ),
    Metric(
        "pds_cosine", "PDS cosine", "high",
        "how near a predicted shift is to its own real one among all; 0.5 by chance", _CHALLENGE, ("brief",),
    ),
    Metric(
        "expr_mse_unbiased_capped_norm", "MSE unbiased", "low",
        "error of mean expression without sampling noise; 1 for the control copy", _CHALLENGE, ("brief",),
    ),
    Metric(
        "direction_fidelity_yield_raw", "yield", "high",
        "genes called with the right direction, over those called or truly changed", _CHALLENGE, ("brief",),
    ),
    Metric(
        "direction_reach_raw", "reach", "high",
        "share of the truly changed genes down to which the ranking keeps 90 % right directions", _CHALLENGE,
        ("brief",),
    ),
    Metric(
        "sig_jaccard", "Jaccard", "high",
        "overlap of called and truly changed genes; two empty sets agree, so look at the number beside it",
        _CHALLENGE, ("brief",),
    ),
    Metric(
        "truth_sets", "truth sets not empty", None, "perturbations with truly changed genes", _CHALLENGE,
    ),
    Metric(
        "sig_jaccard_changed", "Jaccard, not empty", "high", "the same over those perturbations alone", _CHALLENGE,
    ),
    Metric(
        "lfc_nmae", "log FC error", "low", "error of the fold changes of truly changed genes; 1 for no change",
        _CHALLENGE, ("brief",),
    ),
    *(
        Metric(f"score_{name}", title, "high", f"{title} from 0, the mean of other contexts, to 1, a replicate", _SCORE)
        for name, title in (
            ("pds_cosine", "PDS cosine"),
            ("expr_mse_unbiased_capped_norm", "MSE unbiased"),
            ("direction_fidelity_yield_raw", "yield"),
            ("direction_reach_raw", "reach"),
            ("sig_jaccard", "Jaccard"),
            ("lfc_nmae", "log FC error"),
        )
    ),
    Metric(
        "vcc_score", "score", "high", "mean of the scores, as the challenge ranks", _SCORE, ("study",),
    ),
    Metric("expr_mse_unbiased_capped", "MSE unbiased, numerator", "low", "of one perturbation"),
    Metric("expr_distance_unbiased", "MSE unbiased, denominator", None, "of one perturbation"),
    Metric("reconstruction_loss", "loss", "low", "of a tokenizer on validation cells", _TOKENIZER, ("study",)),
    Metric("codebook_use", "codes used", "high", "share of the codes that occur", _TOKENIZER, ("study",)),
    Metric("codebook_perplexity", "perplexity", "high", "how evenly the codes occur", _TOKENIZER, ("study",)),
    Metric("training_minutes", "training, min", "low", "of all steps, without pauses", _TOKENIZER, ("study",)),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}


def shown(place: Place) -> list[tuple[MetricTable, list[Metric]]]:
    """The tables that are shown in a place, each with those of its metrics that are."""
    found = []
    for table in TABLES:
        metrics = [m for m in METRICS if table.group in m.groups and (place == "table" or place in m.places)]
        if place in table.places and metrics:
            found.append((table, metrics))
    return found
