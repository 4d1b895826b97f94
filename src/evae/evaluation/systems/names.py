"""How the systems of an evaluation are called in tables and in result.json."""

from collections.abc import Iterable

MODEL = "model"
SPLIT_HALF = "real split half"
CONTROL_COPY = "control copy"
PERTURBATION_MEAN = "perturbation mean"
OVERALL_MEAN = "mean of all perturbations"
ADDITIVE_SHIFT = "additive shift"
MEAN_SHIFT = "mean of all shifts"
LINEAR = "linear"
MARGINAL_RESAMPLE = "marginal resample"
COLLAPSED = "mean-collapsed model"
OTHER_CONTEXTS = "other contexts"
SCVI_SHIFT = "scVI latent shift"
SCGEN_SHIFT = "scGen latent shift"
CONTEXT_MEAN = "mean of other contexts"
SHRUNKEN_TRANSFER = "shrunken transfer"
TOKENIZER_ALONE = "tokenizer alone"
INTERPOLATED = "interpolated duplicate"
CEILING = "ceiling of cell-eval"
SUM_OF_SINGLES = "sum of singles"
NEAREST = "nearest in features"
KERNEL_RIDGE = "kernel ridge on features"
BILINEAR = "bilinear"
NEAREST_DOSE = "nearest dose"
LATENT_ADDITIVE = "latent additive"

# These change with the model that is evaluated; all others are of the data.
OF_THE_MODEL = (MODEL, COLLAPSED, TOKENIZER_ALONE)
# These know nothing of the perturbation, and these are its real cells again.
UNINFORMED = (CONTROL_COPY, OVERALL_MEAN, MEAN_SHIFT)
REAL_AGAIN = (SPLIT_HALF, INTERPOLATED, CEILING)


def rivals(systems: Iterable[str]) -> list[str]:
    """The baselines and other models among systems: what is neither the model's nor the real cells again."""
    return [system for system in systems if system not in (*OF_THE_MODEL, *REAL_AGAIN)]


MEANINGS = {
    MODEL: "the predictions themselves",
    CONTROL_COPY: "real controls of the cell type, unchanged: what a model reaches that ignores the perturbation",
    COLLAPSED: "every cell is the mean of the model's cells: what its means alone are worth",
    PERTURBATION_MEAN: "every cell is the perturbation's mean over the training cell types",
    OVERALL_MEAN: "every cell is the mean over all perturbations in training",
    ADDITIVE_SHIFT: "real controls, shifted by the perturbation's mean effect in the training cell types",
    MEAN_SHIFT: "real controls, shifted by the mean effect of all perturbations in training",
    LINEAR: "every cell is the mean that a linear model across perturbations predicts",
    MARGINAL_RESAMPLE: "each gene drawn by itself from the perturbation's training cells: right distributions, "
    "no correlation between genes",
    OTHER_CONTEXTS: "the perturbation's real cells in other cell types or batches",
    SUM_OF_SINGLES: "real controls, shifted by the effects of the parts of a combination, one on top of the other",
    NEAREST: "for a perturbation that was never seen: real controls, shifted by the mean effect of the five training "
    "perturbations with the most similar feature vectors",
    KERNEL_RIDGE: "for a perturbation that was never seen: real controls, shifted by what kernel ridge regression on "
    "feature vectors predicts",
    BILINEAR: "for a perturbation that was never seen: real controls, shifted by a linear model over components of "
    "genes and of perturbations (feature vectors, or the target genes' own components)",
    NEAREST_DOSE: "for a dose that was never seen: real controls, shifted by the effect of the same agent at the "
    "nearest dose in training, on the log scale",
    CONTEXT_MEAN: "real controls, scaled by the mean response of other cell types or batches to all perturbations",
    SHRUNKEN_TRANSFER: "real controls, changed by a part of the perturbation's effect in other cell types or batches",
    SCVI_SHIFT: "controls, shifted by the perturbation's mean effect in scVI's latent space",
    SCGEN_SHIFT: "controls, shifted by the perturbation's mean effect in scGen's latent space; decoded means",
    LATENT_ADDITIVE: "real controls, moved by a neural network's latent vector of the perturbation",
    TOKENIZER_ALONE: "the real cells, encoded and drawn back: about the best that a prior over these codes reaches",
    INTERPOLATED: "mean of the other half of the real cells where genes surely change, else the mean of all "
    "perturbations: what a noisy replicate is good for",
    CEILING: "one half of the real cells against the other, raised by the Spearman-Brown formula to what all of them "
    "would reach: an upper bound for scores that are reliabilities",
    SPLIT_HALF: "one half of the real cells against the other: the best to be hoped for with so many cells",
}
