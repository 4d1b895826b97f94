"""Configurations of the priors, field by field.

The defaults are the published sizes of "Elucidating the Design Space of Generative Models for Single-Cell
Perturbation Prediction" (doi:10.64898/2026.06.15.732063).
"""

from typing import Any

from transformers.configuration_utils import PretrainedConfig

from .configuration_evae import CODES, COUNTS, EvaeConfig, check_choice, check_positive
from .contract_evae import EvaeError


class EvaePriorConfig(PretrainedConfig):
    """Fields that all priors share: a frozen tokenizer, the sizes of the vocabularies, and a DiT backbone.

    Args:
        tokenizer_config: configuration of the nested tokenizer, as `EvaeConfig` or as its dictionary.
        n_perturbations: number of perturbations, including the control.
        n_perturbation_features: how many of the perturbations, the last ones, have a feature vector instead of a
            learned embedding.
        perturbation_feature_size: length of a feature vector.
        perturbation_feature_source: what the feature vectors are, in words.
        perturbation_kinds: kinds of perturbation in the order of their ids, such as interference; none if empty.
        dose_unit: the unit of doses, "" for none.
        dose_range: the lowest and the highest dose of training; None where perturbations have no doses.
        further_doses: the same of doses that no number converts to `dose_unit`, each `{"unit": ..., "range": ...}`.
        time_range: likewise of the time after treatment, hours.
        n_cell_types: number of cell types seen in training.
        cell_type_context: represent a cell type by the mean tokenizer embedding of its control cells instead of a
            learned embedding. Cell types unseen in training can then be predicted.
        hidden_size: width of the backbone.
        num_hidden_layers: number of layers.
        num_attention_heads: number of attention heads a layer.
        intermediate_size: width of the feed-forward layers.
        dropout: dropout rate of the feed-forward layers.
        modulation_activation: activation of the condition before the linear layer of the modulation: "silu" (as in DiT)
            or "none" (published).
        layer_norm_eps: added to the variance in every layer norm of the backbone (published: 1e-5).
        token_product: a token is the product of its value's embedding and its position's, not their sum (published:
            without latents). A masked code's stays the sum. The flow embeds a value by a perceptron then.
        time_frequencies: number of frequencies of the time embedding (published: half the width).
        time_scale: factor of the time, which is in [0, 1], before its sines (published: 1000 with masked diffusion,
            1 with flow).
        time_endpoint: whether the slowest frequency is 1/10,000 (published: yes) or would come after the last one.
        condition_dropout: fraction of training cells whose perturbation, cell type, or both are replaced by the null
            condition. Classifier-free guidance needs more than 0. With `source_cells` or `condition_on_effect` it is
            that of the perturbation alone.
        source_cells: how many control cells the prior reads before it writes a cell: 0 for none, 1 for the control
            cell that optimal transport pairs with the training cell, more for a random set of its cell type's controls.
        source_tokens: number of tokens that a source cell becomes.
        condition_on_effect: tell the prior the known mean effect of the perturbation: its shift of the tokenizer's
            latents in other cell types.
        condition_on_batch: tell the prior the experimental batch of a cell (plate, donor), of which training knew
            `n_batches`; an unknown one is the null.
        n_batches: number of batches.
        batch_dropout: fraction of training cells whose batch is not told.
        cell_type_dropout: with `source_cells` or `condition_on_effect`, fraction of training cells whose cell type is
            not named, as is that of a cell type whose perturbed cells training never saw.
        source_dropout: fraction of training cells without source cells.
        effect_dropout: fraction of training cells without a known effect.
        control_id: id of the control among the perturbations; guidance can then lead away from it.
        n_effects: number of perturbations, combinations included, whose effects the checkpoint holds.
        guidance_scale: strength of classifier-free guidance where `sample` is not told another; 1 is none.
        guidance_curve: what it was chosen by at the end of training: scale -> distance of the means of drawn and
            validation cells' latents.
        sampling_temperature: divides the logits where `sample` is not told another temperature; 1 is none. The flow has
            none.
    """

    sub_configs = {"tokenizer_config": EvaeConfig}  # noqa: RUF012

    def __init__(
        self,
        tokenizer_config: EvaeConfig | dict[str, Any] | None = None,
        n_perturbations: int = 1,
        n_perturbation_features: int = 0,
        perturbation_feature_size: int = 0,
        perturbation_feature_source: str = "",
        perturbation_kinds: list[str] | None = None,
        dose_unit: str = "",
        dose_range: list[float] | None = None,
        further_doses: list[dict[str, Any]] | None = None,
        time_range: list[float] | None = None,
        n_cell_types: int = 1,
        cell_type_context: bool = False,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        intermediate_size: int = 1536,
        dropout: float = 0.0,
        modulation_activation: str = "silu",
        layer_norm_eps: float = 1e-6,
        token_product: bool = False,
        time_frequencies: int = 128,
        time_scale: float = 1000.0,
        time_endpoint: bool = False,
        condition_dropout: float = 0.1,
        source_cells: int = 0,
        source_tokens: int = 4,
        condition_on_effect: bool = False,
        condition_on_batch: bool = False,
        n_batches: int = 0,
        batch_dropout: float = 0.2,
        cell_type_dropout: float = 0.5,
        source_dropout: float = 0.1,
        effect_dropout: float = 0.2,
        control_id: int = -1,
        n_effects: int = 0,
        guidance_scale: float = 1.0,
        guidance_curve: dict[str, float] | None = None,
        sampling_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if tokenizer_config is None:
            tokenizer_config = EvaeConfig()
        elif isinstance(tokenizer_config, dict):
            tokenizer_config = EvaeConfig(**tokenizer_config)
        self.tokenizer_config = tokenizer_config
        self.n_perturbations = n_perturbations
        self.n_perturbation_features = n_perturbation_features
        self.perturbation_feature_size = perturbation_feature_size
        self.perturbation_feature_source = perturbation_feature_source
        self.perturbation_kinds = list(perturbation_kinds or [])
        self.dose_unit = dose_unit
        self.dose_range, self.time_range = (None if span is None else list(span) for span in (dose_range, time_range))
        self.further_doses = [dict(own) for own in further_doses or []]
        self.n_cell_types = n_cell_types
        self.cell_type_context = cell_type_context
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.modulation_activation = modulation_activation
        self.layer_norm_eps = layer_norm_eps
        self.token_product = token_product
        self.time_frequencies = time_frequencies
        self.time_scale = time_scale
        self.time_endpoint = time_endpoint
        self.condition_dropout = condition_dropout
        self.source_cells = source_cells
        self.source_tokens = source_tokens
        self.condition_on_effect = condition_on_effect
        self.condition_on_batch = condition_on_batch
        self.n_batches = n_batches
        self.batch_dropout = batch_dropout
        self.cell_type_dropout = cell_type_dropout
        self.source_dropout = source_dropout
        self.effect_dropout = effect_dropout
        self.control_id = control_id
        self.n_effects = n_effects
        self.guidance_scale = guidance_scale
        self.guidance_curve = dict(guidance_curve or {})
        self.sampling_temperature = sampling_temperature
        self.head_width = kwargs.pop("head_width", hidden_size // max(num_attention_heads, 1))  # see check_size
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        check_positive(self, "n_perturbations", "n_cell_types", "hidden_size", "num_hidden_layers")
        check_positive(self, "num_attention_heads", "intermediate_size", "time_frequencies", "source_tokens")
        check_choice("modulation_activation", modulation_activation, ("silu", "none"))
        if hidden_size % num_attention_heads:
            raise EvaeError(f"hidden_size {hidden_size} must be a multiple of num_attention_heads.")
        for span in (*self.dose_ranges.values(), self.time_range):
            if span is not None and not (len(span) == 2 and 0 < span[0] <= span[1]):
                raise EvaeError(f"a range of doses or times is {span}; give the lowest and the highest, above 0.")
        if source_cells < 0:
            raise EvaeError(f"source_cells is {source_cells}; give 0 (none) or more.")
        if self.reads_controls and tokenizer_config.quantizer in COUNTS:
            raise EvaeError(
                "source cells and effects are latents of a tokenizer, which this prior lacks; train a tokenizer, or "
                "set model.source_cells=0 and model.condition_on_effect=false."
            )

    @property
    def reads_controls(self) -> bool:
        """Whether a prediction depends on the control cells, by source cells or by known effects."""
        return bool(self.source_cells or self.condition_on_effect)

    @property
    def dose_ranges(self) -> dict[str, list[float] | None]:
        """The unit of every family of doses -> the lowest and the highest of training."""
        return {self.dose_unit: self.dose_range} | {own["unit"]: own["range"] for own in self.further_doses}

    @property
    def reads_treatments(self) -> bool:
        """Whether perturbations have doses, times or kinds."""
        return bool(self.perturbation_kinds or any(self.dose_ranges.values()) or self.time_range)

    @property
    def treatment_size(self) -> int:
        """How many numbers say what a treatment is: kind, dose, time, and a dose in each further unit."""
        return 3 + len(self.further_doses)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, without the path the tokenizer was loaded from, which is of no use elsewhere."""
        output = super().to_dict()
        for origin in ("_name_or_path", "auto_map"):
            output["tokenizer_config"].pop(origin, None)
        return output


class EvaeARConfig(EvaePriorConfig):
    """Configuration of the autoregressive prior `EvaeARForCausalLM`; fields as in `EvaePriorConfig`.

    The vocabulary is the tokenizer's codes and a BOS token, which begins every sequence. Its id is the number of codes.
    """

    model_type = "evae_ar"

    def __init__(self, tokenizer_config: EvaeConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        for derived in ("vocab_size", "bos_token_id", "is_decoder"):
            kwargs.pop(derived, None)
        super().__init__(tokenizer_config=tokenizer_config, **kwargs)
        self.bos_token_id = self.tokenizer_config.codebook_size
        self.vocab_size = self.bos_token_id + 1
        self.is_decoder = True
        if self.tokenizer_config.quantizer not in CODES:
            raise EvaeError(
                "the autoregressive prior needs codes: train the tokenizer with quantizer 'fsq', 'vq' or 'lfq'."
            )


class EvaeMDLMConfig(EvaePriorConfig):
    """Configuration of the masked diffusion prior `EvaeMDLMModel`; further fields as in `EvaePriorConfig`.

    The vocabulary is the tokenizer's codes and a mask token. Its id is the number of codes.

    Args:
        time_conditioned: whether the network is conditioned on the diffusion time, as in MDLM, or not, as in RADD.
        sampling_steps: default number of steps of `sample`.
    """

    model_type = "evae_mdlm"

    def __init__(
        self,
        tokenizer_config: EvaeConfig | dict[str, Any] | None = None,
        time_conditioned: bool = True,
        sampling_steps: int = 32,
        **kwargs: Any,
    ) -> None:
        for derived in ("vocab_size", "mask_token_id"):
            kwargs.pop(derived, None)
        self.time_conditioned = time_conditioned
        self.sampling_steps = sampling_steps
        super().__init__(tokenizer_config=tokenizer_config, **kwargs)
        self.mask_token_id = self.tokenizer_config.codebook_size
        self.vocab_size = self.mask_token_id + 1
        check_positive(self, "sampling_steps")
        if self.tokenizer_config.quantizer not in CODES:
            raise EvaeError(
                "the masked diffusion prior needs codes: train the tokenizer with quantizer 'fsq', 'vq' or 'lfq'."
            )


class EvaeFlowConfig(EvaePriorConfig):
    """Configuration of the flow prior `EvaeFlowModel`; further fields as in `EvaePriorConfig`.

    Args:
        sampling_steps: default number of steps of `sample`.
        start_from: where paths begin: "noise", or with `source_cells` at the latents of the "source" cell (their mean,
            if there are several) with a little noise.
    """

    model_type = "evae_flow"

    def __init__(
        self,
        tokenizer_config: EvaeConfig | dict[str, Any] | None = None,
        sampling_steps: int = 32,
        start_from: str = "noise",
        **kwargs: Any,
    ) -> None:
        self.sampling_steps, self.start_from = sampling_steps, start_from
        if tokenizer_config is None:
            tokenizer_config = EvaeConfig(quantizer="gaussian")
        super().__init__(tokenizer_config=tokenizer_config, **kwargs)
        if start_from not in ("noise", "source"):
            raise EvaeError(f"start_from is '{start_from}'; give noise or source.")
        if start_from == "source" and not self.source_cells:
            raise EvaeError("start_from=source needs a source cell; set model.source_cells=1.")
        check_positive(self, "sampling_steps")
        if self.tokenizer_config.quantizer not in ("gaussian", "log1p"):
            raise EvaeError("the flow prior needs latents: train the tokenizer with quantizer 'gaussian'.")


EvaeARConfig.register_for_auto_class()
EvaeMDLMConfig.register_for_auto_class()
EvaeFlowConfig.register_for_auto_class()
