"""The authors' priors as ours: autoregressive, masked diffusion and flow, over a VAE's codes or over counts.

What differs and is folded into the weights: the weights of the layer norms go into the modulation, whose parts change
their order (theirs scale, shift, gate); the last norm is not modulated; the sines of the time stand before the cosines.
What the configuration says: the condition goes into the modulation as it is, the epsilon of the norms, and the
frequencies of the time. Without latents, a token is the product of its gene's vector and a function of its count.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evae.conversion.names import Names
from evae.conversion.run_folder import Run, Settings
from evae.conversion.tokenizer import Sizes, check_genes, count_input
from evae.conversion.weights import Weights, attention, feed_forward, named
from evae.models.configuration_evae import COUNTS, N_COUNT_BINS
from evae.models.contract_evae import EvaeError

MODEL_TYPES = {"autoregressive": "evae_ar", "masked_diffusion": "evae_mdlm", "flow_matching": "evae_flow"}
LOG = 10_000.0  # period of the slowest sine of the time


def has_latents(run: Run) -> bool:
    """Whether the prior stands over a VAE."""
    return bool(run.model.get("vae_path", ""))


def counts_fields(run: Run, n_genes: int) -> dict[str, Any]:
    """Fields of our tokenizer's configuration where the prior models counts."""
    check_genes(run.model, n_genes)
    if run.kind == "flow_matching":
        run.model.part("input_head").only("type", "mlp")
        return {"n_genes": n_genes, "quantizer": "log1p", "count_input": count_input(run, "normalized", "the flow")}
    return {"n_genes": n_genes, "quantizer": "bins", "count_input": count_input(run, "bins", "a prior over counts")}


def prior_fields(run: Run) -> dict[str, Any]:
    """Fields of our configuration that do not depend on the names of perturbations and cell types."""
    sizes = Sizes.of(run.model.part("transformer"), "dit")
    fields = {
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.n_heads,
        "num_hidden_layers": sizes.n_layers,
        "intermediate_size": sizes.inner,
        "dropout": sizes.dropout,
        "condition_dropout": 0.0,
        "modulation_activation": "none",
        "layer_norm_eps": 1e-5,
        "token_product": not has_latents(run),
        "time_frequencies": sizes.width // 2,
        "time_endpoint": True,
    }
    if run.kind == "autoregressive":
        return fields
    fields["sampling_steps"] = run.model.get("num_sample_steps", 128)
    if run.kind == "flow_matching":
        return fields | {"time_scale": 1.0}
    run.model.only("time_embedding_max_period", LOG)
    scale = run.model.get("time_embedding_scale", 1000.0)
    return fields | {"time_scale": scale, "time_conditioned": run.model.get("time_conditioned", True)}


def prior_state(weights: Weights, config: Any, run: Run, names: Names) -> dict[str, Tensor]:
    """State dict of our prior, without its tokenizer.

    Args:
        weights: of the prior.
        config: our configuration.
        run: theirs.
        names: of perturbations and cell types, with the feature vectors where the run has such.

    Raises:
        EvaeError: a tensor is missing or of another shape.
    """
    width = config.hidden_size
    state = _conditions(weights, run.model, names, width)
    state |= _time(weights, width) if _sees_time(config) else {}
    state |= _values(weights, config, run.model) | _output(weights, config)
    modulation = []
    for index in range(config.num_hidden_layers):
        block = weights.under(f"transformer.layers.{index}.")
        state |= attention(block, ("", "qkv_proj", "o_proj"), f"blocks.{index}.attention", width)
        state |= feed_forward(block, f"blocks.{index}.feed_forward", width, config.intermediate_size)
        modulation += _modulation(block, width)
    weight, bias = weights.norm("transformer.norm_f", width)
    unmodulated = torch.zeros(width, width, dtype=torch.float64)
    modulation += [(unmodulated, bias), (unmodulated, weight - 1)]
    return state | named("modulation", (torch.cat([w for w, _ in modulation]), torch.cat([b for _, b in modulation])))


def _sees_time(config: Any) -> bool:
    return config.model_type == "evae_flow" or bool(getattr(config, "time_conditioned", False))


def _modulation(block: Weights, width: int) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of shift, scale and gate of both parts of a block.

    (1 + g) (w n + c) + b is n (1 + (w - 1 + w g)) + (c + c g + b), with w and c those of the norm.
    """
    found = []
    weights, biases = block.linear("adaln_modulation", 6 * width, width)
    for number, norm in enumerate(("norm1", "norm2")):
        (w, c), part = block.norm(norm, width), slice(3 * width * number, 3 * width * (number + 1))
        (scale, scale_0), (shift, shift_0), gate = zip(
            weights[part].split(width), biases[part].split(width), strict=True
        )
        column = (w.unsqueeze(1), c.unsqueeze(1))
        found += [
            (column[1] * scale + shift, c + c * scale_0 + shift_0),
            (column[0] * scale, w - 1 + w * scale_0),
            gate,
        ]
    return found


def is_told_by_features(settings: Settings) -> bool:
    """Whether a prior knows a perturbation by a feature vector, and not by a learned one."""
    source = settings.only("pert_cond_source", "projected", "learned")
    return bool(settings.get("do_pert_cond", True)) and source == "projected"


def _conditions(weights: Weights, settings: Settings, names: Names, width: int) -> dict[str, Tensor]:
    """Rows of perturbations and cell types, and last a null row of zeros: theirs have no null condition."""
    n_perturbations, n_cell_types = len(names.perturbations), len(names.cell_types)
    perturbations = torch.zeros(len(names.units), width, dtype=torch.float64)
    if is_told_by_features(settings):
        features = names.features_of_units(settings.get("pert_emb_dim", 0))
        weight, bias = weights.linear("pert_proj", width, features.shape[1])
        perturbations = features.double() @ weight.T + bias
    elif settings.get("do_pert_cond", True):
        perturbations = weights.take("pert_proj.weight", n_perturbations, width)
    cell_types = torch.zeros(n_cell_types, width, dtype=torch.float64)
    if settings.get("do_celltype_cond", False):
        cell_types = weights.take("celltype_embed.weight", n_cell_types, width)
    null = torch.zeros(1, width, dtype=torch.float64)
    return {
        "condition.perturbation.weight": torch.cat([perturbations, null]),
        "condition.cell_type.weight": torch.cat([cell_types, null]),
    }


def _time(weights: Weights, width: int) -> dict[str, Tensor]:
    weight, bias = weights.linear("time_mlp.0", width, width)
    sines, cosines = weight.chunk(2, dim=1)
    up = torch.cat([cosines, sines], dim=1), bias
    return named("time_embedding.up", up) | named("time_embedding.down", weights.linear("time_mlp.2", width, width))


def _values(weights: Weights, config: Any, settings: Settings) -> dict[str, Tensor]:
    """Embeddings of codes, latents or counts, and of positions."""
    width, tokenizer = config.hidden_size, config.tokenizer_config
    n_tokens = tokenizer.n_latents
    if tokenizer.quantizer in COUNTS:
        state = {"position_embedding.weight": weights.take("gene_tokens.weight", n_tokens, width)}
        counts = weights.under("count_proj_in.count_proj.")
        if config.model_type == "evae_flow":
            state["token_embedding.0.weight"] = counts.take("mlp.0.weight", width, 1)
            return state | {"token_embedding.2.weight": counts.take("mlp.2.weight", width, width)}
        bins = _bins(counts, settings.part("input_head"), width)
        begin = bins[:1]  # a sequence begins with a count of 0
        last = weights.take("mask_embed", width).unsqueeze(0) if config.model_type == "evae_mdlm" else begin
        return state | {"token_embedding.weight": torch.cat([bins, last])}
    positions = torch.zeros(n_tokens, width)
    if config.model_type != "evae_ar":
        positions = weights.take("pos_embed.weight", n_tokens, width)
    state = {"position_embedding.weight": positions}
    if config.model_type == "evae_flow":
        shape = (n_tokens, tokenizer.latent_width)
        state |= named("token_embedding", weights.linear("input_proj", width, shape[1]))
        return state
    return state | {"token_embedding.weight": weights.take("token_embed.weight", tokenizer.codebook_size + 1, width)}


def _bins(counts: Weights, settings: Settings, width: int) -> Tensor:
    """The function of the count, (bins, width): a table, a perceptron, or a projection of sines and cosines."""
    kind = settings.only("type", "embedding", "mlp", "sinusoidal")
    if kind == "embedding":
        return counts.take("embedding.weight", N_COUNT_BINS, width)
    bins = torch.arange(N_COUNT_BINS, dtype=torch.float64).unsqueeze(1)
    if kind == "mlp":
        up, down = counts.take("mlp.0.weight", width, 1), counts.take("mlp.2.weight", width, width)
        return F.silu(torch.log1p(bins) @ up.T) @ down.T
    half = width // 2
    angles = bins * settings.get("scale", 1.0) / 10_000 ** (torch.arange(half, dtype=torch.float64) / half)
    weight, bias = counts.linear("proj", width, width)
    return torch.cat([angles.sin(), angles.cos()], dim=1) @ weight.T + bias


def _output(weights: Weights, config: Any) -> dict[str, Tensor]:
    width, tokenizer = config.hidden_size, config.tokenizer_config
    if config.model_type == "evae_flow":
        shape = (tokenizer.n_latents, tokenizer.latent_width)
        state = {"scale.mean": torch.zeros(shape), "scale.std": torch.ones(shape)}
        return state | named("velocity_head", weights.linear("output_proj", shape[1], width))
    theirs = "output_head.proj" if config.model_type == "evae_ar" else "logits_proj"
    return named("lm_head", weights.linear(theirs, tokenizer.codebook_size, width))


def model_type(run: Run) -> str:
    """Our type of the run's prior.

    Raises:
        EvaeError: a model that has no counterpart here.
    """
    if run.kind not in MODEL_TYPES:
        raise EvaeError(
            f"model.type in config.yaml is '{run.kind}', which has no counterpart here; convert a run of vae, "
            f"{', '.join(MODEL_TYPES)}."
        )
    return MODEL_TYPES[run.kind]
