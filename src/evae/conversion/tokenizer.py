"""The authors' VAE as our tokenizer: its configuration from `config.yaml`, its state dict from their tensors.

Theirs has one table of genes, which our encoder and decoder each have; queries, keys and values in one layer; no
positions of the codes. Without a quantizer, two linear layers stand before the mean and the log-variance, which are
fused here.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evae.common.messages import number_of
from evae.conversion.run_folder import Run, Settings
from evae.conversion.weights import Weights, attention, feed_forward, fused, named
from evae.models.configuration_evae import N_COUNT_BINS, EvaeConfig
from evae.models.contract_evae import EvaeError

HEADS = {"cross_entropy": "ce-quantile", "hurdle": "hurdle", "mse": "mse", "nb": "nb"}
INPUTS = {"ce-quantile": "bins", "hurdle": "normalized", "mse": "normalized", "nb": "counts"}
FSQ_LEVELS = {
    16: [5, 3],
    64: [8, 8],
    256: [8, 6, 5],
    512: [8, 8, 8],
    1024: [8, 5, 5, 5],
    2048: [8, 8, 6, 5],
    4096: [7, 5, 5, 5, 5],
}  # by the number of codes, where the levels are not given
LOWEST_DISPERSION = 0.01  # of the nb head


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer, theirs and ours alike."""

    width: int
    n_heads: int
    n_layers: int
    inner: int
    dropout: float

    @classmethod
    def of(cls, settings: Settings, kind: str, width: int = 256) -> "Sizes":
        """From the settings of an encoder, a decoder or a prior's backbone.

        Args:
            settings: of the transformer.
            kind: the only type of transformer that has a counterpart.
            width: where it is not given.

        Raises:
            EvaeError: it has a part that has no counterpart here.
        """
        settings.only("type", kind)
        settings.only("activation", "gelu")
        settings.only("layer_norm_eps", 1e-5)
        return cls(
            width=settings.get("d_model", width),
            n_heads=settings.get("nhead", 8),
            n_layers=settings.get("num_layers", 4),
            inner=settings.get("dim_feedforward", 1024),
            dropout=settings.get("attn_dropout", 0.1),
        )


def tokenizer_fields(run: Run, n_genes: int) -> dict[str, Any]:
    """Fields of our configuration, without the median library size.

    Args:
        run: of a VAE.
        n_genes: genes of the panel.

    Raises:
        EvaeError: the run has a part that has no counterpart here, or another number of genes.
    """
    settings = run.model
    check_genes(settings, n_genes)
    encoder = Sizes.of(settings.part("encoder"), "cross_attention")
    decoder = Sizes.of(settings.part("decoder"), "cross_attention")
    for field in ("width", "n_heads", "inner"):
        one, other = getattr(encoder, field), getattr(decoder, field)
        if one != other:
            raise EvaeError(
                f"the encoder's {field} is {one}, the decoder's {other} in config.yaml, which has no counterpart here; "
                "convert a run where they are equal."
            )
    function = settings.part("input_head").only("type", "mlp", "embedding", "sinusoidal")
    head = HEADS[settings.part("output_head").only("type", *HEADS) if "output_head" in settings.values else "mse"]
    return {
        "n_genes": n_genes,
        "hidden_size": encoder.width,
        "num_attention_heads": encoder.n_heads,
        "intermediate_size": encoder.inner,
        "dropout": encoder.dropout,
        "n_latents": settings.get("num_latent_tokens", 64),
        "count_input": count_input(run, INPUTS[head], f"the head {head}"),
        "count_embedding": function,
        "count_scale": settings.part("input_head").get("scale", 1.0),
        "sparse_encoding": function == "mlp",  # theirs attends to the zeros too, whose tokens are 0 with "mlp" only
        "encoder_layers": encoder.n_layers,
        "decoder_layers": decoder.n_layers,
        "head": head,
        "zero_loss_weight": settings.part("output_head").get("weight_for_bce_loss", 0.1),
        **_quantizer_fields(settings.part("quantizer")),
    }


def _quantizer_fields(settings: Settings) -> dict[str, Any]:
    if settings.only("type", "fsq", "vq", "lfq", "noquant") == "noquant":
        return {
            "quantizer": "gaussian",
            "latent_dim": settings.get("latent_dim", 32),
            "kl_weight": settings.get("beta_kl", 1e-6),
        }
    kind = settings.get("type", "fsq")
    n_codes = settings.get("codebook_size", 256 if kind == "lfq" else 512)
    if kind == "lfq":
        weight = settings.get("entropy_loss_weight", 0.1)
        return {"quantizer": "lfq", "lfq_bits": n_codes.bit_length() - 1, "entropy_weight": weight}
    if kind == "vq":
        return {
            "quantizer": "vq",
            "vq_codes": n_codes,
            "latent_dim": settings.get("codebook_dim", 32),
            "commitment_weight": settings.get("commitment_weight", 1.0),
        }
    levels = settings.get("fsq_level", FSQ_LEVELS.get(n_codes, []))
    if not levels:
        raise EvaeError(
            f"config.yaml has {number_of(n_codes, 'code')} and no quantizer.fsq_level; write the levels there."
        )
    return {"quantizer": "fsq", "fsq_levels": levels}


def check_genes(settings: Settings, n_genes: int) -> None:
    """Raise `EvaeError` unless the run has as many genes as the file that names them."""
    wanted = settings.get("num_genes", n_genes)
    if wanted != n_genes:
        raise EvaeError(
            f"the run has {number_of(wanted, 'gene')}, the file names {n_genes}; give the names of the run's genes, "
            "in its order."
        )


def count_input(run: Run, wanted: str, reader: str) -> str:
    """What the model reads, "counts", "bins" or "normalized", by the settings of its data; it must be `wanted`."""
    data = run.settings.part("dataset")
    if not data.values:
        return wanted
    if data.only("use_binning", "none", "quantile") == "quantile":
        found = "bins"
    else:
        kinds = {(False, False): "counts", (True, True): "normalized"}
        found = kinds.get((data.get("apply_normalize", True), data.get("apply_log1p", True)), "half-normalized counts")
    if found != wanted:
        raise EvaeError(
            f"by dataset in config.yaml the run reads {found}; {reader} has a counterpart here for {wanted} only."
        )
    return found


def tokenizer_state(weights: Weights, config: EvaeConfig, settings: Settings) -> dict[str, Tensor]:
    """State dict of our tokenizer.

    Args:
        weights: of the VAE.
        config: our configuration.
        settings: theirs, of the model.

    Raises:
        EvaeError: a tensor is missing or of another shape, or the VAE has a part that has no counterpart here.
    """
    told = "its decoder is told the perturbation or the cell type, which has no counterpart here"
    for prefix in ("pert_proj_dec.", "celltype_embed_dec.", "gene_tokens_proj."):
        weights.refuse(
            prefix, told if prefix != "gene_tokens_proj." else "its decoder has another width than its encoder"
        )
    for prefix in ("pert_classifier.", "pert_regressor."):
        weights.leave_out(prefix, "a head that only training used")
    width = config.hidden_size
    genes = weights.take("gene_tokens.weight", config.n_genes, width)
    state = {
        "encoder.embedding.gene_embedding.weight": genes,
        **_count_function(weights.under("count_proj_in.count_proj."), config),
        "encoder.latent_tokens": weights.take("latent_tokens.weight", config.n_latents, width),
        "decoder.gene_queries": genes,
        "decoder.positions": torch.zeros(config.n_latents, width),
    }
    for coder, n_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for index in range(n_layers):
            state |= _block(weights.under(f"{coder}.layers.{index}."), f"{coder}.layers.{index}", config)
        state |= named(f"{coder}.norm", weights.norm(f"{coder}.norm_f", width))
    latent = weights.linear("quantizer_proj_in", config.latent_width, width)
    if config.quantizer == "gaussian":
        reparametrized = weights.linear("quantizer.reparam_proj", 2 * config.latent_dim, config.latent_dim)
        latent = fused(reparametrized, latent)
    weights.leave_out("quantizer._impl.mask", "powers of two, which are computed")
    if config.quantizer == "vq":
        state |= _codebook(weights.under("quantizer._impl._codebook."), config)
    state |= named("to_latent", latent)
    state |= named("decoder.from_latent", weights.linear("quantizer_proj_out", width, config.latent_width))
    return state | _head(weights, config, settings.part("output_head"))


def _count_function(weights: Weights, config: EvaeConfig) -> dict[str, Tensor]:
    width, ours = config.hidden_size, "encoder.embedding"
    if config.count_embedding == "embedding":
        return {f"{ours}.bins.weight": weights.take("embedding.weight", N_COUNT_BINS, width)}
    if config.count_embedding == "sinusoidal":
        return named(f"{ours}.waves", weights.linear("proj", width, width))
    up, down = weights.take("mlp.0.weight", width, 1), weights.take("mlp.2.weight", width, width)
    return {f"{ours}.up.weight": up, f"{ours}.down.weight": down}


def _codebook(weights: Weights, config: EvaeConfig) -> dict[str, Tensor]:
    """Counts of the codes and sums of their latents, of which ours makes the vectors."""
    counts = weights.take("cluster_size", 1, config.vq_codes)[0]
    vectors = weights.take("embed", 1, config.vq_codes, config.latent_dim)[0]
    weights.leave_out("embed_avg", "it follows from the vectors and how often each was used")
    weights.leave_out("initted", "the vectors are there")
    if counts.sum() <= 0:
        raise EvaeError(f"no code of {weights.source} was ever used; convert another checkpoint.")
    few, total = 1e-5, counts.sum()
    smoothed = (counts + few) / (total + len(counts) * few) * total
    return {"quantizer.code_counts": counts, "quantizer.code_sums": vectors * smoothed.unsqueeze(1)}


def _block(weights: Weights, ours: str, config: EvaeConfig) -> dict[str, Tensor]:
    width = config.hidden_size
    within = attention(weights, ("", "qkv_proj", "o_proj"), f"{ours}.self_attention", width)
    across = ("q_cross_proj", "kv_cross_proj", "o_cross_proj")
    state = within | attention(weights, across, f"{ours}.cross_attention", width)
    for theirs, norm in (("norm1", "self_norm"), ("norm_cross", "cross_norm"), ("norm2", "feed_forward_norm")):
        state |= named(f"{ours}.{norm}", weights.norm(theirs, width))
    return state | feed_forward(weights, f"{ours}.feed_forward", width, config.intermediate_size)


def _head(weights: Weights, config: EvaeConfig, settings: Settings) -> dict[str, Tensor]:
    width = config.hidden_size
    if config.head == "nb":
        lowest = settings.get("min_theta", LOWEST_DISPERSION)
        if lowest < LOWEST_DISPERSION:
            raise EvaeError(
                f"output_head.min_theta in config.yaml is {lowest}, here a dispersion is at least {LOWEST_DISPERSION}; "
                "convert a run with such a bound."
            )
        weight, bias = weights.linear("output_head.params", 1, width)
        temperature = settings.get("temperature", 1.0)
        dispersion = weights.take("output_head.theta.weight", config.n_genes, 1).flatten()
        state = named("decoder.output", (weight / temperature, bias / temperature))
        return state | {"head.log_dispersion": dispersion.clamp_min(math.log(lowest))}
    n_outputs = {"ce-quantile": N_COUNT_BINS, "hurdle": 2, "mse": 1}[config.head]
    weight, bias = weights.linear("output_head.proj", n_outputs, width)
    if config.head == "hurdle":  # their logit is of a zero, ours of a nonzero count
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        weight, bias = weight * sign.unsqueeze(1), bias * sign
    return named("decoder.output", (weight, bias))
