"""The facts of the extended metrics, see `facts`."""

from evae.evaluation.metrics.metric import Metric

_DE = ("differential expression",)
_OWN = ("extended",)

AGREEMENT_METRICS = (
    *(
        Metric(f"top_de_overlap_{k}", f"top {k} DE", "high", f"share of the {k} surest changed genes found", groups)
        for k, groups in ((20, ()), (50, ()), (100, _DE))
    ),
    *(
        Metric(f"top_de_agreement_{k}", f"top {k} DE, direction", "high", f"the same {k}, with the right direction")
        for k in (20, 50)
    ),
    Metric(
        "top_de_agreement_100", "top 100 DE, direction", "high",
        "share of the 100 surest changed genes found, with the right direction", _DE, ("score", "study"),
    ),
    *(
        Metric(f"top_fold_overlap_{k}", f"top {k} fold", "high", f"share of the {k} largest fold changes found", groups)
        for k, groups in ((20, ()), (50, ()), (100, _DE))
    ),
    Metric(
        "hit_average_precision", "hits AP", "high", "whether perturbations that act are predicted to; by chance: share",
        _DE, ("score", "study"),
    ),
    Metric("hit_roc_auc", "hits AUC", "high", "the same against those that do not act; 0.5 by chance", _DE),
)  # fmt: skip

EXTENDED_METRICS = (
    Metric(
        "pearson_delta_centred", "Pearson Δ centred", "high",
        "whether genes change as they should beyond the mean of all perturbations; 0 for that mean", _OWN,
        ("brief", "score", "study"), "mean", nothing=0.0,
    ),
    Metric(
        "pearson_delta_centred_20", "Pearson Δ centred, top 20", "high", "the same over the 20 surest changed genes",
        _OWN, ("study",), "mean", nothing=0.0,
    ),
    Metric(
        "centroid_accuracy", "centroid accuracy", "high",
        "share of other perturbations that a prediction is farther from than from its own; 0.5 by chance", _OWN,
        ("score", "study"), "mean",
    ),
    Metric(
        "weighted_mse", "weighted MSE", "low", "error of mean expression where genes surely change", _OWN, ("study",),
        "mean",
    ),
    Metric(
        "weighted_r2_delta", "weighted R² Δ", "high",
        "share of the effect beyond the mean of all perturbations that is explained, where genes surely change", _OWN,
        ("score", "study"), "mean",
    ),
    Metric(
        "mse_unbiased", "MSE unbiased", "low", "error of mean expression without sampling noise; 0 exact", _OWN,
        ("brief", "score", "study"), "mean",
    ),
    Metric(
        "rank_rmse", "rank RMSE", "low", "share of predictions nearer to a perturbation than its own; 0.5 by chance",
        _OWN,
    ),
    Metric(
        "rank_cosine", "rank cosine", "low", "the same by the direction of fold changes", _OWN, ("score", "study"),
    ),
    Metric(
        "normalised_retrieval", "retrieval", "high",
        "share of all real perturbations that are less like a prediction than its own; about 0.5 by chance", _OWN,
        ("brief", "score", "study"), "mean",
    ),
    Metric(
        "e_distance", "E-distance", "low", "how far cells stand from the real ones of the same perturbation", _OWN,
        ("brief", "score", "study"), "variance",
    ),
    Metric(
        "e_test_rejected", "E-test", "low",
        "share of perturbations whose cells a permutation test tells from real ones; 0.05 by chance", _OWN, ("study",),
        "variance",
    ),
    Metric("e_test_p", "E-test p", None, "p-value of that test for one perturbation"),
    Metric(
        "variance_recovered", "variance recovered", "high", "of genes over cells; 1 exact, 0 for mere means", _OWN,
        ("score", "study"), "variance",
    ),
    Metric(
        "correlation_recovered", "correlation recovered", "high",
        "of genes over cells, as a correlation of correlations", _OWN, ("score", "study"), "variance",
    ),
    Metric(
        "look_alike", "look-alikes", "low",
        "share of pairs of perturbations whose predictions are less than half as far apart as they should be", _OWN,
        ("brief", "score", "study"), "mean",
    ),
    Metric(
        "effect_spread", "spread of effects", 1.0,
        "how different predicted perturbations are, over how different real ones are", _OWN, ("study",), "mean",
    ),
)  # fmt: skip
