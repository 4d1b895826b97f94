"""Encoders and decoders of the tokenizer: attention (as published) and perceptrons (for a CPU).

Sparse encoding is exact: all genes with count 0 share one token, the zero vector, so the encoder attends over the
expressed genes and ONE token for all zeros with the attention bias log(number of zeros).
"""

import torch
from torch import Tensor, nn

from .configuration_evae import EvaeConfig
from .layers_evae import CountEmbedding, CrossBlock, Perceptron

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


class EvaeEncoder(nn.Module):
    """Counts to latent tokens (cells, latents, hidden_size)."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = CountEmbedding(config.n_genes, config.hidden_size)
        self.latent_tokens = nn.Parameter(torch.empty(config.n_latents, config.hidden_size))
        self.layers = nn.ModuleList([CrossBlock(config) for _ in range(config.encoder_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)

    def init_weights(self) -> None:
        # small latent tokens and count features of order one: else cells hardly differ at the start
        init.normal_(self.latent_tokens, std=0.02)
        init.normal_(self.embedding.up.weight, std=1.0)
        # here, because transformers passes over modules without parameters of their own such as CountEmbedding
        init.normal_(self.embedding.gene_embedding.weight, std=1.0)

    def forward(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        """Encode (cells, tokens) counts and genes; where sparse, count 0 is padding and its genes are folded."""
        tokens = self.embedding(gene_ids, counts)
        bias = None
        if self.config.sparse_encoding:
            tokens = torch.cat([tokens.new_zeros(len(tokens), 1, tokens.shape[-1]), tokens], dim=1)
            bias = _zero_token_bias(counts, self.config.n_genes, tokens.dtype)
        latents = self.latent_tokens.expand(len(counts), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens, bias)
        return self.norm(latents)


def _zero_token_bias(counts: Tensor, n_genes: int, dtype: torch.dtype) -> Tensor:
    """Attention bias (cells, 1, 1, 1 + tokens): log(number of zeros) for the zero token, -inf for padding."""
    expressed = counts > 0
    precision = torch.promote_types(dtype, torch.float32)
    zeros = (n_genes - expressed.sum(1, keepdim=True)).to(precision).log()  # -inf where every gene is expressed
    padding = torch.zeros_like(counts, dtype=precision).masked_fill(~expressed, float("-inf"))
    return torch.cat([zeros, padding], dim=1)[:, None, None, :].to(dtype)


class EvaeMLPEncoder(nn.Module):
    """Counts to latent tokens by a perceptron over the log1p counts; reads the expressed genes only."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.genes = nn.EmbeddingBag(config.n_genes, config.intermediate_size, mode="sum")
        self.body = Perceptron(
            config.intermediate_size,
            config.n_latents * config.hidden_size,
            config.intermediate_size,
            config.encoder_layers,
            config.dropout,
        )

    def forward(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        weights = torch.log1p(counts.to(self.genes.weight.dtype))
        features = self.genes(gene_ids, per_sample_weights=weights)
        return self.body(features).unflatten(-1, (self.config.n_latents, self.config.hidden_size))


class EvaeDecoder(nn.Module):
    """Latent tokens to the head's numbers, (cells, genes, n_outputs)."""

    def __init__(self, config: EvaeConfig, n_outputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.from_latent = nn.Linear(config.latent_width, width)
        self.positions = nn.Parameter(torch.empty(config.n_latents, width))
        n_context = config.decoder_context_width
        self.context = nn.Linear(n_context, width) if n_context else None
        self.gene_queries = nn.Parameter(torch.empty(config.n_genes, width))
        self.layers = nn.ModuleList(
            [CrossBlock(config, config.decoder_self_attention) for _ in range(config.decoder_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_outputs)

    def init_weights(self) -> None:
        init.normal_(self.positions, std=0.02)
        init.normal_(self.gene_queries, std=1.0)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """`latents` (cells, latents, latent_width), `context` (cells, decoder_context_width)."""
        memory = self.from_latent(latents) + self.positions
        if self.context is not None:
            memory = torch.cat([memory, self.context(context).unsqueeze(1)], dim=1)
        genes = self.gene_queries.expand(len(latents), -1, -1)
        for layer in self.layers:
            genes = layer(genes, memory)
        return self.output(self.norm(genes))


class EvaeMLPDecoder(nn.Module):
    """Latents to the head's numbers by a perceptron."""

    def __init__(self, config: EvaeConfig, n_outputs: int) -> None:
        super().__init__()
        self.n_genes = config.n_genes
        self.body = Perceptron(
            config.n_latents * config.latent_width + config.decoder_context_width,
            config.n_genes * n_outputs,
            config.intermediate_size,
            config.decoder_layers,
            config.dropout,
        )

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        return self.body(torch.cat([latents.flatten(1), context], dim=1)).unflatten(-1, (self.n_genes, -1))
