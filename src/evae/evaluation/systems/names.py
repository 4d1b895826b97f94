"""How the systems of an evaluation are called in tables and in result.json."""

MODEL = "model"
SPLIT_HALF = "real split half"
CONTROL_COPY = "control copy"
PERTURBATION_MEAN = "perturbation mean"
OVERALL_MEAN = "mean of all perturbations"
ADDITIVE_SHIFT = "additive shift"
LINEAR = "linear"
MARGINAL_RESAMPLE = "marginal resample"
COLLAPSED = "mean-collapsed model"
OTHER_CONTEXTS = "other contexts"
SCVI_SHIFT = "scVI latent shift"
CONTEXT_MEAN = "mean of other contexts"
SHRUNKEN_TRANSFER = "shrunken transfer"
TOKENIZER_ALONE = "tokenizer alone"

OF_THE_MODEL = (MODEL, COLLAPSED)  # these change with the model that is evaluated; all others are of the data
