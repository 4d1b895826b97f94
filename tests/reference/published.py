"""The published tokenizer and priors, written anew from the shapes of their state dicts, in plain modules.

The names of the modules are those of the published state dict. Every model is given what the published data loader
gives it: bins for the cross-entropy head, normalised log1p values for hurdle and mse, counts for nb.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

EDGES = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 15, 23, 31, 47, 63, 95, 127, 191, 255.0])


def bins_of(counts):
    """The bin, 0 to 19, of every count, as the published data loader gives it: float."""
    return (counts.unsqueeze(-1) > EDGES).sum(-1).float()


def heads_of(x, n_heads):
    return x.reshape(*x.shape[:2], n_heads, -1).transpose(1, 2)


def softmax_attention(query, keys, values, n_heads, causal=False):
    query, keys, values = (heads_of(x, n_heads) for x in (query, keys, values))
    scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """One layer: self-attention, cross-attention if `crosses`, feed-forward; with `told` modulated by a condition."""

    def __init__(self, size, crosses=False, told=False):
        super().__init__()
        d, self.size = size.width, size
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv_proj, self.o_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        if crosses:
            self.norm_cross = nn.LayerNorm(d)
            self.q_cross_proj, self.kv_cross_proj = nn.Linear(d, d), nn.Linear(d, 2 * d)
            self.o_cross_proj = nn.Linear(d, d)
        if told:
            self.adaln_modulation = nn.Linear(d, 6 * d)
        self.ffn = nn.Sequential(
            nn.Linear(d, size.inner), nn.GELU(), nn.Dropout(0.1), nn.Linear(size.inner, d), nn.Dropout(0.1)
        )

    def forward(self, x, context=None, condition=None, causal=False):
        if condition is None:
            scale, shift, gate, scale_2, shift_2, gate_2 = 0, 0, 1, 0, 0, 1
        else:
            scale, shift, gate, scale_2, shift_2, gate_2 = self.adaln_modulation(condition).unsqueeze(1).chunk(6, -1)
        query, keys, values = self.qkv_proj((1 + scale) * self.norm1(x) + shift).chunk(3, -1)
        x = x + gate * self.o_proj(softmax_attention(query, keys, values, self.size.n_heads, causal))
        if context is not None:
            keys, values = self.kv_cross_proj(context).chunk(2, -1)
            query = self.q_cross_proj(self.norm_cross(x))
            x = x + self.o_cross_proj(softmax_attention(query, keys, values, self.size.n_heads))
        return x + gate_2 * self.ffn((1 + scale_2) * self.norm2(x) + shift_2)


class Stack(nn.Module):
    """Layers and a last norm."""

    def __init__(self, size, **kind):
        super().__init__()
        self.layers = nn.ModuleList([Layer(size, **kind) for _ in range(size.n_layers)])
        self.norm_f = nn.LayerNorm(size.width)

    def forward(self, x, **inputs):
        for layer in self.layers:
            x = layer(x, **inputs)
        return self.norm_f(x)


class CountPerceptron(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, width, bias=False), nn.SiLU(), nn.Linear(width, width, bias=False))

    def forward(self, values):
        return self.mlp(values.unsqueeze(-1))


class CountTable(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(20, width)

    def forward(self, values):
        return self.embedding(values.long())


class CountWaves(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.scale, self.proj = scale, nn.Linear(width, width)

    def forward(self, values):
        half = self.proj.in_features // 2
        angles = (values * self.scale).unsqueeze(-1) / 10_000 ** (torch.arange(half) / half)
        return self.proj(torch.cat([angles.sin(), angles.cos()], -1))


FUNCTIONS = {"embedding": CountTable, "mlp": CountPerceptron, "sinusoidal": lambda width: CountWaves(width, 2.0)}


class Counts(nn.Module):
    """Token of a gene: its vector times a function of its value, which is log1p first where values are counts."""

    def __init__(self, function, takes_log):
        super().__init__()
        self.count_proj, self.takes_log = function, takes_log

    def forward(self, values, genes):
        return genes * self.count_proj(torch.log1p(values) if self.takes_log else values)


class Quantizer(nn.Module):
    """Finite scalar quantization from the formula, VQ or LFQ of vector-quantize-pytorch, or a Gaussian."""

    def __init__(self, levels, latent_dim, n_vectors):
        super().__init__()
        self.levels, self.n_vectors = levels, n_vectors
        if n_vectors == "lfq":
            from vector_quantize_pytorch import LFQ

            self._impl = LFQ(codebook_size=2**latent_dim)
        elif n_vectors:
            from vector_quantize_pytorch import VectorQuantize

            self._impl = VectorQuantize(dim=latent_dim, codebook_size=n_vectors)
            self._impl._codebook.embed.normal_(generator=torch.Generator().manual_seed(4))
            self._impl._codebook.cluster_size.uniform_(0, 9, generator=torch.Generator().manual_seed(5))
        elif levels is None:
            self.reparam_proj = nn.Linear(latent_dim, 2 * latent_dim)

    def forward(self, x):
        """Latents for the decoder, codes, and the KL divergence in nats a cell."""
        if self.n_vectors:
            latents, codes, _ = self._impl(x)
            return latents, codes.long(), torch.zeros(())
        if self.levels is None:
            mean, log_variance = self.reparam_proj(x).chunk(2, -1)
            mean, log_variance = mean.clamp(-4, 4), log_variance.clamp(-14, 10)
            kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum((1, 2)).mean()
            return mean, None, kl
        levels = torch.tensor(self.levels)
        half = (levels - 1) * 1.001 / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        digits = ((x + (offset / half).atanh()).tanh() * half - offset).round() + levels // 2
        radix = torch.tensor([1, *self.levels[:-1]]).cumprod(0)
        codes = (digits * radix).sum(-1).long()
        return self.latents(codes), codes, torch.zeros(())

    def latents(self, codes):
        levels, radix = torch.tensor(self.levels), torch.tensor([1, *self.levels[:-1]]).cumprod(0)
        return (codes.unsqueeze(-1) // radix % levels - levels // 2) / (levels // 2)


class Head(nn.Module):
    def __init__(self, kind, width, n_genes):
        super().__init__()
        self.kind = kind
        if kind == "nb":
            self.params, self.theta = nn.Linear(width, 1), nn.Embedding(n_genes, 1)
            self.temperature = 1.5
        else:
            self.proj = nn.Linear(width, {"cross_entropy": 20, "hurdle": 2, "mse": 1}[kind])

    def loss(self, x, values):
        if self.kind == "cross_entropy":
            return F.cross_entropy(self.proj(x).flatten(0, 1), values.long().flatten())
        if self.kind == "mse":
            return ((self.proj(x).squeeze(-1) - values) ** 2).mean()
        if self.kind == "hurdle":
            zero, magnitude = self.proj(x).unbind(-1)
            is_zero = (values == 0).float()
            errors = (magnitude - values) ** 2 * (1 - is_zero)
            return 0.1 * F.binary_cross_entropy_with_logits(zero, is_zero) + errors.sum() / (1 - is_zero).sum()
        mean, theta = values.sum(1, keepdim=True) * self.shares(x), self.dispersion()
        found = torch.distributions.NegativeBinomial(theta, logits=(mean.clamp_min(1e-8) / theta).log())
        return -found.log_prob(values).sum(1).mean()

    def shares(self, x):
        return (self.params(x).squeeze(-1) / self.temperature).softmax(1)

    def dispersion(self):
        return self.theta.weight.squeeze(1).exp().clamp_min(0.01)


class PublishedVAE(nn.Module):
    """The tokenizer.

    Args:
        size: `width`, `n_heads`, `n_layers`, `inner`.
        n_genes, n_latents: as they say.
        head: cross_entropy, hurdle, mse or nb.
        levels: of FSQ; None for a Gaussian of `latent_dim`, or for `n_vectors` learned vectors, or "lfq".
        counts: the function of the count: embedding, mlp or sinusoidal.
    """

    def __init__(self, size, n_genes, n_latents, head, levels=None, latent_dim=4, n_vectors=0, counts="mlp"):
        super().__init__()
        d, k = size.width, latent_dim if levels is None else len(levels)
        self.register_buffer("log_lib_prior_mu", torch.tensor(4.0))
        self.register_buffer("log_lib_prior_std", torch.tensor(0.5))
        self.gene_tokens, self.latent_tokens = nn.Embedding(n_genes, d), nn.Embedding(n_latents, d)
        takes_log = counts == "mlp" and head in ("cross_entropy", "nb")
        self.count_proj_in = Counts(FUNCTIONS[counts](d), takes_log)
        self.encoder, self.decoder = Stack(size, crosses=True), Stack(size, crosses=True)
        self.quantizer_proj_in, self.quantizer_proj_out = nn.Linear(d, k), nn.Linear(k, d)
        self.quantizer = Quantizer(levels, latent_dim, n_vectors)
        self.output_head = Head(head, d, n_genes)

    def tokens(self, values):
        """Latent tokens of the encoder, (cells, latents, width)."""
        latents = self.latent_tokens.weight.expand(len(values), -1, -1)
        return self.encoder(latents, context=self.count_proj_in(values, self.gene_tokens.weight))

    def decode(self, latents):
        genes = self.gene_tokens.weight.expand(len(latents), -1, -1)
        return self.decoder(genes, context=self.quantizer_proj_out(latents))

    def forward(self, values, kl_weight=0.0):
        """The loss, what the head reads, latents and codes."""
        latents, codes, kl = self.quantizer(self.quantizer_proj_in(self.tokens(values)))
        features = self.decode(latents)
        loss = self.output_head.loss(features, values) + kl_weight * kl
        return SimpleNamespace(loss=loss, features=features, latents=latents, codes=codes)


class PublishedPrior(nn.Module):
    """What the three priors share; with `vae` over its codes or latents, without over the values of genes.

    Args:
        kind: autoregressive, masked_diffusion or flow_matching.
        size: of the backbone.
        n_perturbations, n_cell_types: sizes of the vocabularies.
        vae: the frozen tokenizer.
        n_genes: without a tokenizer.
        n_features: length of a perturbation's feature vector; 0 for learned perturbations.
        counts: without a tokenizer, the function of the count: embedding, mlp or sinusoidal.
        sees_time: whether masked diffusion is told the time.
    """

    def __init__(
        self, kind, size, n_perturbations, n_cell_types, vae=None, n_genes=0, n_features=0, counts="embedding",
        sees_time=True,
    ):  # fmt: skip
        super().__init__()
        d, self.kind, self.over_codes = size.width, kind, vae is not None
        n_codes = (vae.quantizer.n_vectors or math.prod(vae.quantizer.levels or [0])) if self.over_codes else 20
        if self.over_codes:
            self.vae = vae
            n_latents = vae.latent_tokens.num_embeddings
            if kind == "flow_matching":
                self.input_proj = nn.Linear(vae.quantizer_proj_in.out_features, d)
            else:
                self.token_embed = nn.Embedding(n_codes + 1, d)
            if kind != "autoregressive":
                self.pos_embed = nn.Embedding(n_latents, d)
        else:
            self.gene_tokens = nn.Embedding(n_genes, d)
            takes_log = kind != "flow_matching" and counts == "mlp"
            self.count_proj_in = Counts(FUNCTIONS[counts](d), takes_log)
            if kind == "masked_diffusion":
                self.mask_embed = nn.Parameter(torch.empty(d))
        if kind == "flow_matching":
            self.output_proj = nn.Linear(d, vae.quantizer_proj_in.out_features if self.over_codes else 1)
        elif kind == "masked_diffusion":
            self.logits_proj = nn.Linear(d, n_codes)
        else:
            self.output_head = nn.ModuleDict({"proj": nn.Linear(d, n_codes)})
        self.time_mlp = None
        if kind == "flow_matching" or (kind == "masked_diffusion" and sees_time):
            self.time_mlp = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.time_scale = 1000.0 if kind == "masked_diffusion" else 1.0
        self.pert_proj = nn.Linear(n_features, d) if n_features else nn.Embedding(n_perturbations, d)
        self.celltype_embed = nn.Embedding(n_cell_types, d)
        self.transformer = Stack(size, told=True)

    def condition(self, perturbation, cell_type, time=None):
        found = self.pert_proj(perturbation) + self.celltype_embed(cell_type)
        if self.time_mlp is None:
            return found
        half = self.time_mlp[0].in_features // 2
        frequencies = 10_000 ** -(torch.arange(half) / (half - 1))
        angles = self.time_scale * time.unsqueeze(1) * frequencies
        return found + self.time_mlp(torch.cat([angles.sin(), angles.cos()], 1))

    def autoregressive_logits(self, codes, condition):
        """Logits (cells, codes, vocabulary), each of the code given those before it."""
        if self.over_codes:
            begin = torch.full_like(codes[:, :1], self.token_embed.num_embeddings - 1)
            x = self.token_embed(torch.cat([begin, codes[:, :-1]], 1))
        else:
            before = torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], 1)
            x = self.count_proj_in(before.float(), self.gene_tokens.weight)
        return self.output_head["proj"](self.transformer(x, condition=condition, causal=True))

    def denoised_logits(self, codes, masked, condition):
        """Logits (cells, codes, vocabulary) of all codes given those that are not masked."""
        if self.over_codes:
            mask = self.token_embed.num_embeddings - 1
            x = self.token_embed(torch.where(masked, mask, codes)) + self.pos_embed.weight
        else:
            x = self.count_proj_in(codes.float(), self.gene_tokens.weight)
            x = torch.where(masked.unsqueeze(-1), self.mask_embed + self.gene_tokens.weight, x)
        return self.logits_proj(self.transformer(x, condition=condition))

    def velocity(self, z, condition):
        """Velocity at `z`, (cells, latents, width), or (cells, genes) without a tokenizer."""
        if self.over_codes:
            x = self.input_proj(z) + self.pos_embed.weight
        else:
            x = self.count_proj_in(z, self.gene_tokens.weight)
        velocity = self.output_proj(self.transformer(x, condition=condition))
        return velocity if self.over_codes else velocity.squeeze(-1)


def draw_weights(model, seed=0):
    """Draw every weight at a scale at which all parts of the model matter; zeros would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        is_norm = "norm" in name and weight.dim() == 1
        gain = 2.0 if name.startswith(("encoder", "quantizer")) else 0.5 if "adaln" in name else 1.0
        scale = 0.3 if weight.dim() < 2 else gain * weight.shape[1] ** -0.5
        table = name.endswith(("tokens.weight", "embed.weight")) or "embedding" in name
        start = 1.0 if is_norm and name.endswith("weight") else 0.0
        weight.data = start + (1.0 if table else scale) * drawn
    return model.eval().requires_grad_(False)
