"""A training step of every option of the design space beside the same step in plain modules, `--rows design`.

The plain modules are those of tests/reference/published.py, written to the published shapes without any short cut.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark_rows import TOY, Bench, Row
from benchmark_steps import training_step, update_step
from evae.models import EvaeFlowConfig, EvaeFlowModel

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference" / "published.py"
PERTURBATIONS, CELL_TYPES, FEATURES = 90, 18, 1280
HEADS = {"ce-quantile": "cross_entropy", "hurdle": "hurdle", "mse": "mse", "nb": "nb"}
READS = {"ce-quantile": "bins", "hurdle": "normalized", "mse": "normalized", "nb": "counts"}
LEVELS, WIDTH_OF_LATENT, CODES, BITS = (8, 8, 8), 32, 512, 9
NAMES = {
    "perturbation_names": [f"P{i}" for i in range(PERTURBATIONS)],
    "cell_type_names": [f"T{i}" for i in range(CELL_TYPES)],
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "fsq": {},
    "vq": {"quantizer": "vq", "vq_codes": CODES, "latent_dim": WIDTH_OF_LATENT},
    "lfq": {"quantizer": "lfq", "lfq_bits": BITS},
    "gaussian": {"quantizer": "gaussian", "latent_dim": WIDTH_OF_LATENT},
    "hurdle": {"head": "hurdle"},
    "mse": {"head": "mse"},
    "nb": {"head": "nb"},
    "sinusoidal": {"count_embedding": "sinusoidal"},
    "embedding": {"count_embedding": "embedding"},
    "auxiliary heads": {"classification_weight": 0.1, "regression_weight": 0.1, "n_features": FEATURES, **NAMES},
    "told decoder": {"decoder_conditions": "both", **NAMES},
}
PRIORS = {"ar": "autoregressive", "mdlm": "masked_diffusion", "flow": "flow_matching"}


def design(bench: Bench) -> Iterator[Row]:
    """A row for every option, each named "... training step"."""
    published = load_reference()
    for name, fields in TOKENIZERS.items():
        yield _tokenizer_row(bench, published, name, fields)
    for kind in PRIORS:
        yield _prior_row(bench, published, kind)


def load_reference() -> ModuleType:
    """tests/reference/published.py."""
    spec = importlib.util.spec_from_file_location("published", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tokenizer_row(bench: Bench, published: ModuleType, name: str, fields: dict[str, Any]) -> Row:
    n = bench.size(4, 128)
    counts, (values, genes) = bench.both_forms(n)
    head = fields.get("head", "ce-quantile")
    ours = bench.tokenizer(**{"count_input": READS[head], **fields})
    labels = {"perturbation_ids": torch.arange(n) % PERTURBATIONS, "cell_type_ids": torch.arange(n) % CELL_TYPES}
    labels = {key: ids.to(bench.device) for key, ids in labels.items()}
    told = {key: labels[key] for key in ours.config.training_labels}
    plain = _plain(bench, published, ours.config, fields).to(bench.device)

    def loss() -> Tensor:
        total = counts.sum(1, keepdim=True)
        normalized = torch.log1p(counts * (ours.config.median_library_size / total))
        read = {"bins": published.bins_of, "counts": lambda x: x, "normalized": lambda _: normalized}[READS[head]]
        return plain(read(counts), labels)

    contenders = {
        "ours": training_step(ours, counts=values, gene_ids=genes, **told),
        "plain modules": update_step(plain, loss),
    }
    return Row(f"{name}: tokenizer training step", n, contenders)


def _size(config: Any, n_layers: int) -> SimpleNamespace:
    width, inner = config.hidden_size, config.intermediate_size
    return SimpleNamespace(width=width, n_heads=config.num_attention_heads, n_layers=n_layers, inner=inner)


def _plain(bench: Bench, published: ModuleType, config: Any, fields: dict[str, Any]) -> nn.Module:
    quantizer = fields.get("quantizer", "fsq")
    vae = published.PublishedVAE(
        _size(config, config.encoder_layers), config.n_genes, config.n_latents, HEADS[config.head],
        levels=list(LEVELS) if quantizer == "fsq" else None,
        latent_dim=BITS if quantizer == "lfq" else WIDTH_OF_LATENT,
        n_vectors={"vq": CODES, "lfq": "lfq"}.get(quantizer, 0),
        counts=config.count_embedding,
    )  # fmt: skip
    return PlainTokenizer(vae, fields)


class PlainTokenizer(nn.Module):
    """The published tokenizer in training: the gradient passes the quantizer, and labels are used as `fields` say."""

    def __init__(self, vae: Any, fields: dict[str, Any]) -> None:
        super().__init__()
        self.vae, self.fields = vae, fields
        width = vae.gene_tokens.embedding_dim
        self.classifier, self.regressor = nn.Linear(width, PERTURBATIONS), nn.Linear(width, FEATURES)
        self.register_buffer("targets", torch.randn(PERTURBATIONS, FEATURES))
        self.perturbation, self.cell_type = nn.Embedding(PERTURBATIONS, width), nn.Embedding(CELL_TYPES, width)
        self.told = nn.Linear(width, width)

    def forward(self, values: Tensor, labels: dict[str, Tensor]) -> Tensor:
        tokens = self.vae.tokens(values)
        before = self.vae.quantizer_proj_in(tokens)
        latents, _, kl = self.vae.quantizer(before)
        if self.vae.quantizer.levels is not None:
            latents = latents + before - before.detach()
        memory = self.vae.quantizer_proj_out(latents)
        if "decoder_conditions" in self.fields:
            told = self.perturbation(labels["perturbation_ids"]) + self.cell_type(labels["cell_type_ids"])
            memory = memory + self.told(told).unsqueeze(1)
        genes = self.vae.gene_tokens.weight.expand(len(values), -1, -1)
        loss = self.vae.output_head.loss(self.vae.decoder(genes, context=memory), values) + 1e-6 * kl
        if "n_features" in self.fields:
            pooled, ids = tokens.mean(1), labels["perturbation_ids"]
            loss = loss + 0.1 * F.cross_entropy(self.classifier(pooled), ids)
            loss = loss + 0.1 * (1 - F.cosine_similarity(self.regressor(pooled), self.targets[ids])).mean()
        return loss


def _prior_row(bench: Bench, published: ModuleType, kind: str) -> Row:
    n = bench.size(16, 256)
    fields = {"quantizer": "gaussian", "latent_dim": WIDTH_OF_LATENT} if kind == "flow" else {}
    tokenizer = bench.tokenizer(**fields)
    own = {k: v for k, v in TOY.items() if k != "n_latents"} | {"num_hidden_layers": 2} if bench.quick else {}
    sizes = {"n_perturbations": PERTURBATIONS, "n_cell_types": CELL_TYPES, **own}
    if kind == "flow":
        ours = EvaeFlowModel(EvaeFlowConfig(tokenizer.config, **sizes)).to(bench.device)
    else:
        ours = bench.prior(kind, tokenizer)
    ours.requires_grad_(True)
    config, latents = ours.config, (n, tokenizer.config.n_latents)
    codes = torch.randint(CODES if kind != "flow" else 1, latents, device=bench.device)
    drawn = torch.randn(*latents, WIDTH_OF_LATENT, device=bench.device)
    ids = [torch.arange(n, device=bench.device) % k for k in (PERTURBATIONS, CELL_TYPES)]
    vae = published.PublishedVAE(
        _size(tokenizer.config, 1), 8, latents[1], "cross_entropy", None if kind == "flow" else list(LEVELS),
        WIDTH_OF_LATENT,
    )  # fmt: skip
    size = _size(config, config.num_hidden_layers)
    plain = published.PublishedPrior(PRIORS[kind], size, PERTURBATIONS, CELL_TYPES, vae=vae).to(bench.device)
    plain.vae.requires_grad_(False)

    def loss() -> Tensor:
        time = torch.rand(n, device=bench.device).clamp_min(1e-3)
        condition = plain.condition(*ids, time)
        if kind == "flow":
            noise, t = torch.randn_like(drawn), time[:, None, None]
            return ((plain.velocity((1 - t) * noise + t * drawn, condition) - (drawn - noise)) ** 2).mean()
        if kind == "ar":
            return F.cross_entropy(plain.autoregressive_logits(codes, condition).flatten(0, 1), codes.flatten())
        masked = torch.rand(latents, device=bench.device) < time.unsqueeze(1)
        logits = plain.denoised_logits(codes, masked, condition)
        each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(latents)
        return (each * masked / time.unsqueeze(1)).mean()

    given = {"latents": drawn} if kind == "flow" else {"codes": codes}
    contenders = {
        "ours": training_step(ours, **given, perturbation_ids=ids[0], cell_type_ids=ids[1]),
        "plain modules": update_step(plain, loss),
    }
    return Row(f"{kind}: prior training step", n, contenders)
