"""Configuration of the tokenizer, field by field.

The defaults are the published sizes of "Elucidating the Design Space of Generative Models for Single-Cell
Perturbation Prediction" (doi:10.64898/2026.06.15.732063).
"""

import math
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from .contract_evae import EvaeError

HEADS = ("ce-quantile", "hurdle", "mse", "nb")
QUANTIZERS = ("fsq", "vq", "lfq", "gaussian")
CODES = ("fsq", "vq", "lfq", "bins")  # a prior writes codes over these, latents over the others
COUNTS = ("bins", "log1p")  # instead of a quantizer: there is no tokenizer, the prior models the counts of all genes
N_COUNT_BINS = 20
CODERS = ("attention", "mlp")
COUNT_INPUTS = ("counts", "bins", "normalized")
COUNT_EMBEDDINGS = ("mlp", "sinusoidal", "embedding")
DECODER_CONDITIONS = ("none", "perturbation", "cell-type", "both")


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `EvaeError` unless a field has one of the values that exist."""
    if value not in choices:
        raise EvaeError(f"{field} '{value}' does not exist; choose one of {', '.join(choices)}.")


def check_positive(config: PretrainedConfig, *fields: str) -> None:
    """Raise `EvaeError` unless these fields are whole numbers of at least 1."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or value < 1:
            raise EvaeError(f"{field} must be a whole number of at least 1, not {value!r}.")


class EvaeConfig(PretrainedConfig):
    """Configuration of the tokenizer `EvaeModel`, an FSQ-VAE (or Gaussian VAE) of a cell's counts.

    Args:
        n_genes: genes in the panel.
        hidden_size: width of the attention layers and of the gene embedding.
        num_attention_heads: heads of every attention layer.
        intermediate_size: width of the feed-forward layers; of the hidden layers where a coder is an MLP.
        dropout: dropout rate of the feed-forward layers.
        n_latents: latent tokens a cell, which is the length of its code sequence.
        count_input: what the encoder reads, each as log1p: "counts", "bins" (the number of the count's bin), or
            "normalized" (counts scaled to `median_library_size`). Published: the values that the head is compared
            with, which are bins for "ce-quantile", normalized counts for "hurdle" and "mse", counts for "nb".
        count_embedding: function of what the encoder reads that scales a gene's vector: "mlp", "sinusoidal" (of log1p
            values with `count_input` "normalized", else of the values themselves) or "embedding" (a learned vector a
            bin, with `count_input` "bins"). The last two, which only an attention encoder has, count from their value
            at 0 unless `sparse_encoding` is false (published).
        count_scale: factor of what "sinusoidal" reads.
        encoder: "attention" (learned latent tokens attend to the expressed genes) or "mlp".
        encoder_layers: layers of the encoder.
        decoder: "attention" (gene queries attend to the latent tokens) or "mlp".
        decoder_layers: layers of the decoder.
        decoder_self_attention: whether gene queries also attend to each other (published: yes).
        gene_offsets: whether an attention decoder has an output bias per gene, which starts at the gene's marginal
            distribution over cells (published: no). An MLP decoder always has one.
        share_keys_values: whether all layers of an attention encoder use the keys and values of the first, which makes
            further layers cheap (published: no).
        loss_genes: number of genes, drawn at random in every training step, over which the loss is taken; 0 takes all
            (published). The gradient is an unbiased estimate of that over all genes. Genes must not attend to each
            other. For the nb head, see `NegativeBinomialHead`.
        quantizer: "fsq" (finite scalar quantization), "vq" (learned vectors), "lfq" (signs) or "gaussian" (continuous
            latents). A prior without a tokenizer has "bins" (counts in 20 bins) or "log1p" (of counts, or with
            `count_input` "normalized" of these). Then `n_latents` is `n_genes`, and besides only `sample_within_bins`,
            `condition_on_library` and `median_library_size` matter.
        fsq_levels: levels of each latent dimension; their product is the number of codes.
        latent_dim: dimensions of a latent token with the quantizers "vq" and "gaussian".
        vq_codes: number of codes of the quantizer "vq".
        lfq_bits: dimensions of a latent token with the quantizer "lfq"; the number of codes is 2 to this power.
        entropy_weight: weight of the entropies that the quantizer "lfq" adds to the loss.
        commitment_weight: weight of the mean squared distance between the latents and the vectors of their codes, with
            the quantizer "vq".
        kl_weight: weight of the Gaussian quantizer's KL divergence (nats a cell).
        standardize_latents: standardize every latent value over cells before quantization, so that all codes are in
            use from the first step (published: no).
        head: output head, one of "ce-quantile", "hurdle", "mse", "nb".
        zero_loss_weight: weight of the hurdle head's zero/nonzero cross-entropy.
        sample_within_bins: whether the ce-quantile head draws an integer count uniformly from a bin, instead of giving
            the bin's published representative value.
        decoder_conditions: what the decoder is told of a cell besides its codes: "none", its "perturbation",
            "cell-type" or "both". Cells can then be decoded for labels of the training cells only.
        classification_weight: weight in the loss of the cross-entropy of a linear classifier of perturbations over the
            encoder's mean latent token; 0 for no classifier.
        regression_weight: weight of 1 - cosine between a linear function of the same and the feature vector of the
            perturbation; 0 for none. Cells whose perturbation has no vector do not count.
        perturbation_names, cell_type_names: in the order of their ids; taken from the dataset where labels are used.
        n_features: values of a perturbation's feature vector; taken from the feature table.
        count_splitting: train the encoder to reconstruct one random part of a cell's molecules from the other
            (published: no). The two parts have independent noise, so the codes learn the cell's state and not the
            noise of single genes. This is done to half of each batch; the other half trains the decoder on whole
            cells. Needs `condition_on_library`.
        condition_on_library: whether decoder and prior are conditioned on the library size (published: no). The codes
            then need not carry it, and generated cells follow the library sizes asked for.
        sparse_encoding: encode only the expressed genes and one token for all zeros, which is exact and faster (see
            coders_evae.py).
        median_library_size: counts a cell that the hurdle and mse heads normalise to.
    """

    model_type = "evae"

    def __init__(
        self,
        n_genes: int = 2000,
        hidden_size: int = 256,
        num_attention_heads: int = 8,
        intermediate_size: int = 1024,
        dropout: float = 0.1,
        n_latents: int = 64,
        count_input: str = "counts",
        count_embedding: str = "mlp",
        count_scale: float = 1.0,
        encoder: str = "attention",
        encoder_layers: int = 4,
        decoder: str = "attention",
        decoder_layers: int = 4,
        decoder_self_attention: bool = True,
        gene_offsets: bool = False,
        share_keys_values: bool = False,
        loss_genes: int = 0,
        quantizer: str = "fsq",
        fsq_levels: list[int] | tuple[int, ...] = (8, 8, 8),
        latent_dim: int = 32,
        vq_codes: int = 512,
        commitment_weight: float = 1.0,
        lfq_bits: int = 9,
        entropy_weight: float = 0.1,
        kl_weight: float = 1e-6,
        standardize_latents: bool = False,
        head: str = "ce-quantile",
        zero_loss_weight: float = 0.1,
        sample_within_bins: bool = False,
        decoder_conditions: str = "none",
        classification_weight: float = 0.0,
        regression_weight: float = 0.0,
        perturbation_names: list[str] | tuple[str, ...] = (),
        cell_type_names: list[str] | tuple[str, ...] = (),
        n_features: int = 0,
        count_splitting: bool = False,
        condition_on_library: bool = False,
        sparse_encoding: bool = True,
        median_library_size: float = 10_000.0,
        **kwargs: Any,
    ) -> None:
        self.n_genes = n_genes
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.n_latents = n_genes if quantizer in COUNTS else n_latents
        self.count_input = count_input
        self.count_embedding = count_embedding
        self.count_scale = count_scale
        self.encoder = encoder
        self.encoder_layers = encoder_layers
        self.decoder = decoder
        self.decoder_layers = decoder_layers
        self.decoder_self_attention = decoder_self_attention
        self.gene_offsets = gene_offsets
        self.share_keys_values = share_keys_values
        self.loss_genes = loss_genes
        self.quantizer = quantizer
        self.fsq_levels = list(fsq_levels)
        self.latent_dim = latent_dim
        self.vq_codes = vq_codes
        self.commitment_weight = commitment_weight
        self.lfq_bits = lfq_bits
        self.entropy_weight = entropy_weight
        self.kl_weight = kl_weight
        self.standardize_latents = standardize_latents
        self.head = head
        self.zero_loss_weight = zero_loss_weight
        self.sample_within_bins = sample_within_bins
        self.decoder_conditions = decoder_conditions
        self.classification_weight = classification_weight
        self.regression_weight = regression_weight
        self.perturbation_names = list(perturbation_names)
        self.cell_type_names = list(cell_type_names)
        self.n_features = n_features
        self.count_splitting = count_splitting
        self.condition_on_library = condition_on_library
        self.sparse_encoding = sparse_encoding
        self.median_library_size = median_library_size
        self.head_width = kwargs.pop("head_width", hidden_size // max(num_attention_heads, 1))  # see check_size
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        check_choice("count_input", self.count_input, COUNT_INPUTS)
        check_choice("count_embedding", self.count_embedding, COUNT_EMBEDDINGS)
        check_choice("encoder", self.encoder, CODERS)
        check_choice("decoder", self.decoder, CODERS)
        check_choice("quantizer", self.quantizer, QUANTIZERS + COUNTS)
        check_choice("head", self.head, HEADS)
        check_choice("decoder_conditions", self.decoder_conditions, DECODER_CONDITIONS)
        check_positive(self, "n_genes", "hidden_size", "num_attention_heads", "intermediate_size", "n_latents")
        layered = [f"{coder}_layers" for coder in ("encoder", "decoder") if getattr(self, coder) == "attention"]
        check_positive(self, "latent_dim", "vq_codes", "lfq_bits", *layered)
        if self.hidden_size % self.num_attention_heads:
            raise EvaeError(f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads.")
        if not isinstance(self.loss_genes, int) or self.loss_genes < 0:
            raise EvaeError(f"loss_genes must be a whole number of at least 0, not {self.loss_genes!r}.")
        if self.loss_genes and self.decoder == "attention" and self.decoder_self_attention:
            raise EvaeError("loss_genes needs decoder_self_attention: false, or decoder: mlp.")
        if self.count_splitting and not self.condition_on_library:
            raise EvaeError("count_splitting needs condition_on_library: true.")
        if not self.fsq_levels or min(self.fsq_levels) < 3:
            raise EvaeError(f"fsq_levels must be whole numbers of at least 3, not {self.fsq_levels}.")
        if self.count_embedding != "mlp" and self.encoder == "mlp":
            raise EvaeError(f"count_embedding '{self.count_embedding}' needs encoder: attention.")
        if self.count_embedding == "embedding" and self.count_input != "bins":
            raise EvaeError("count_embedding 'embedding' has a vector a bin; it needs count_input: bins.")
        if self.count_embedding == "sinusoidal" and self.hidden_size % 2:
            raise EvaeError(f"count_embedding 'sinusoidal' needs an even hidden_size, not {self.hidden_size}.")
        for weight in ("classification_weight", "regression_weight"):
            value = getattr(self, weight)
            if not isinstance(value, int | float) or not value >= 0:
                raise EvaeError(f"{weight} is {value!r}; give a number of 0 or more.")

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes of the quantizer, or of count bins."""
        sizes = {"bins": N_COUNT_BINS, "vq": self.vq_codes, "lfq": 2**self.lfq_bits}
        return sizes.get(self.quantizer, math.prod(self.fsq_levels))

    def get_text_config(self, *args: Any, **kwargs: Any) -> "EvaeConfig":
        """Itself: transformers would take the field `decoder` for the configuration of one."""
        return self

    @property
    def penalty_weight(self) -> float:
        """Weight in the loss of what the quantizer adds: KL divergence, distance to the codes, or entropies."""
        weights = {"gaussian": self.kl_weight, "lfq": self.entropy_weight}
        return weights.get(self.quantizer, self.commitment_weight)

    @property
    def latent_width(self) -> int:
        """Values a latent token holds: FSQ dimensions, `latent_dim`, or a gene's count."""
        if self.quantizer in COUNTS:
            return 1
        return {"fsq": len(self.fsq_levels), "lfq": self.lfq_bits}.get(self.quantizer, self.latent_dim)

    @property
    def embedding_size(self) -> int:
        """Values of a cell's embedding: all latents before quantization."""
        return self.n_latents * self.latent_width

    @property
    def decoder_context_width(self) -> int:
        """Values of the decoder's further inputs: the log library size, whether the cell is whole, its labels."""
        told = self.hidden_size if self.decoder_conditions != "none" else 0
        return int(self.condition_on_library) + int(self.count_splitting) + told

    @property
    def training_labels(self) -> tuple[str, ...]:
        """The names of the labels that a training batch must hold."""
        told, has_heads = self.decoder_conditions, self.classification_weight or self.regression_weight
        perturbation = ("perturbation_ids",) if has_heads or told in ("perturbation", "both") else ()
        return perturbation + (("cell_type_ids",) if told in ("cell-type", "both") else ())


EvaeConfig.register_for_auto_class()
