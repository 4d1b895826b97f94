"""Encoders and decoders of the tokenizer: attention (as published) and MLP (for a CPU).

Sparse encoding is exact. All genes with count 0 have the same token, the zero vector. So the encoder attends to the
expressed genes and to ONE token for all zeros, with the attention bias log(number of zeros).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_evae import EvaeConfig
from .count_embedding_evae import CountEmbedding
from .device_evae import in_precision, most_numbers, on_accelerator
from .layers_evae import CrossBlock, KeysValues, Perceptron
from .randomness_evae import CellStreams, draw_binomial

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

BUCKET_TOKENS = 2**17  # tokens, with padding, that a bucket may have; 134 MB at width 256


class EvaeEncoder(nn.Module):
    """Counts to latent tokens (cells, latents, hidden_size)."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = CountEmbedding(config)
        self.latent_tokens = nn.Parameter(torch.empty(config.n_latents, config.hidden_size))
        shared = config.share_keys_values  # the first layer's keys and values serve all layers
        self.layers = nn.ModuleList(
            [CrossBlock(config, reads_memory=not (shared and index)) for index in range(config.encoder_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def init_weights(self) -> None:
        # Similar latent tokens make similar queries, and all codes of a cell would be the same for hundreds of steps.
        init.normal_(self.latent_tokens, std=1.0)
        self.embedding.init_weights()

    def forward(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        """Encode counts and genes, (cells, tokens) each; in sparse encoding entries with count 0 are padding."""
        if not self.config.sparse_encoding:
            return self.encode_each(counts, gene_ids)
        counts, gene_ids = F.pad(counts, (1, 0)), F.pad(gene_ids, (1, 0))  # a first token for all zeros
        if not on_accelerator(counts.device):
            return self.encode_distinct(counts, gene_ids)
        width = self.config.hidden_size * len(self.layers)
        at_once = max(1, most_numbers(counts.device, BUCKET_TOKENS * width) // (counts.shape[1] * width))
        if self.training or len(counts) <= at_once:
            return self.encode_each(counts, gene_ids)
        return torch.cat(
            [self.encode_each(*x) for x in zip(counts.split(at_once), gene_ids.split(at_once), strict=True)]
        )

    def encode_each(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        """Encode with a token for every entry of every cell."""
        return self._attend(self._project(self.embedding(gene_ids, counts)), counts)

    def encode_distinct(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        """The same, but cells with the same count of a gene share its token, key and value, which saves work."""
        pairs, pair_ids = distinct_pairs(counts, gene_ids)
        projected = self._project(self.embedding(*pairs))
        return in_buckets(lambda counts, pair_ids: self._attend(projected, counts, pair_ids), counts, pair_ids)

    def _project(self, tokens: Tensor) -> list[KeysValues]:
        """Keys and values of `tokens` (..., width) in every layer that has projections for them, (..., width) each."""
        tokens = in_precision(tokens)
        attentions: list[Any] = [layer.cross_attention for layer in self.layers]
        readers = [attention for attention in attentions if attention.reads_memory]
        return [(reader.k_proj(tokens), reader.v_proj(tokens)) for reader in readers]

    def _attend(self, projected: list[KeysValues], counts: Tensor, pair_ids: Tensor | None = None) -> Tensor:
        """Latent tokens (cells, latents, width) after they attended to the genes.

        Args:
            projected: keys and values of the layers, (cells, tokens, width), or (pairs, width) with `pair_ids`. Layers
                beyond these use the last ones.
            counts: (cells, tokens), to find padding and zeros.
            pair_ids: the row of `projected` for every token, (cells, tokens).
        """
        latents, bias, memory = self.latent_tokens.unsqueeze(0), None, None
        split: Any = self.layers[0].cross_attention.split
        if self.config.sparse_encoding:
            bias = _zero_token_bias(counts, self.config.n_genes, latents.dtype)
        for index, layer in enumerate(self.layers):
            if index < len(projected):
                memory = tuple(split(x if pair_ids is None else F.embedding(pair_ids, x)) for x in projected[index])
            latents = layer(latents, memory, bias)
        return self.norm(latents)


def distinct_pairs(counts: Tensor, gene_ids: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The distinct (gene, count) pairs of a batch.

    Args:
        counts, gene_ids: (cells, tokens); where the count is 0 the gene does not matter.

    Returns:
        genes and counts of the pairs, (pairs,) each, of which the first has count 0; and the pair of every entry,
        shaped as `counts`.
    """
    bits = counts.float().contiguous().view(torch.int32).long()  # a key is 32 bits of gene and 32 bits of count
    keys = torch.where(counts > 0, gene_ids.long() << 32 | bits, 0).flatten()
    keys, pair_ids = torch.cat([keys.new_zeros(1), keys]).unique(return_inverse=True)
    values = (keys & 0xFFFFFFFF).int().view(torch.float32).to(counts.dtype)
    return (keys >> 32, values), pair_ids[1:].view_as(counts)


def _zero_token_bias(counts: Tensor, n_genes: int, dtype: torch.dtype) -> Tensor:
    """Attention bias (cells, 1, 1, tokens): log(number of zeros) for the first token, -inf for padding."""
    expressed = counts > 0
    precision = torch.promote_types(dtype, torch.float32)
    bias = torch.zeros_like(counts, dtype=precision).masked_fill(~expressed, float("-inf"))
    bias[:, 0] = (n_genes - expressed.sum(1)).to(precision).log()  # -inf where every gene is expressed
    return bias[:, None, None, :].to(dtype)


class EvaeMLPEncoder(nn.Module):
    """Counts to latent tokens by an MLP over the log1p counts; it reads the expressed genes only."""

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
    """Latent tokens to the parameters of the head's distribution, (cells, genes, n_outputs)."""

    def __init__(self, config: EvaeConfig, n_outputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.from_latent = nn.Linear(config.latent_width, width)
        self.positions = nn.Parameter(torch.empty(config.n_latents, width))
        n_context = config.decoder_context_width
        self.context_to_memory = nn.Linear(n_context, width) if n_context else None
        self.gene_queries = nn.Parameter(torch.empty(config.n_genes, width))
        self.layers = nn.ModuleList(
            [CrossBlock(config, config.decoder_self_attention) for _ in range(config.decoder_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_outputs)
        self.gene_offsets = nn.Parameter(torch.empty(config.n_genes, n_outputs)) if config.gene_offsets else None

    def init_weights(self) -> None:
        # Codes and positions of the same scale let genes attend to single codes from the start, not to their mean only.
        init.normal_(self.from_latent.weight, std=1.0)
        init.normal_(self.positions, std=1.0)
        init.normal_(self.gene_queries, std=1.0)
        if self.gene_offsets is not None:
            init.zeros_(self.gene_offsets)

    def start_at(self, outputs: Tensor) -> None:
        """With gene offsets, start near `outputs` (genes, n_outputs) for all cells; without, change nothing."""
        if self.gene_offsets is not None:
            self.gene_offsets.copy_(outputs)
            self.output.weight.mul_(0.1)  # an MLP's weights start small too, because it has many outputs

    def forward(self, latents: Tensor, context: Tensor, genes: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            latents: (cells, latents, latent_width).
            context: log library size and the like, (cells, decoder_context_width).
            genes: the genes to decode, int64 (some,); all if None.
        """
        memory = self.from_latent(latents) + self.positions
        if self.context_to_memory is not None:  # added to every token: one more token would get little attention
            memory = memory + self.context_to_memory(context).unsqueeze(1)
        queries = self.gene_queries if genes is None else self.gene_queries.index_select(0, genes)
        features = queries.unsqueeze(0)
        for layer in self.layers:
            features = layer(features, memory)
        outputs = self.output(self.norm(features))
        if self.gene_offsets is None:
            return outputs
        return outputs + (self.gene_offsets if genes is None else self.gene_offsets.index_select(0, genes))


class EvaeMLPDecoder(nn.Module):
    """Latents to the parameters of the head's distribution by an MLP."""

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

    def start_at(self, outputs: Tensor) -> None:
        """Add `outputs` (genes, n_outputs) to the output bias."""
        self.body.output.bias.add_(outputs.flatten())

    def forward(self, latents: Tensor, context: Tensor, genes: Tensor | None = None) -> Tensor:
        """As `EvaeDecoder.forward`."""
        features, output = self.body.hidden(torch.cat([latents.flatten(1), context], dim=1)), self.body.output
        if genes is None:
            return output(features).unflatten(-1, (self.n_genes, -1))
        weight, bias = (p.unflatten(0, (self.n_genes, -1)).index_select(0, genes) for p in (output.weight, output.bias))
        return F.linear(features, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (len(genes), -1))


def split_counts(counts: Tensor, streams: CellStreams) -> tuple[Tensor, Tensor, Tensor]:
    """Split the molecules of every second cell at random into two parts with independent noise.

    The share of the first part is uniform on [0.1, 0.9] for each cell. Source: count splitting (Neufeld et al., 2024).

    Args:
        counts: raw counts, (cells, genes) or the lists (cells, tokens) with the expressed genes first.
        streams: the cells' random numbers; cells with odd numbers are split.

    Returns:
        the encoder's input and the decoder's target, both shaped as `counts`; and bool (cells,), True for cells that
        were not split, whose input and target are the whole cell.
    """
    divided = slice((streams.cells.start + 1) % 2, None, 2)
    own, parts = streams[divided], counts[divided]
    share = 0.1 + 0.8 * own.uniform(1, device=counts.device).to(counts)
    first = draw_binomial(parts, share, own)
    seen, target = counts.clone(), counts.clone()
    seen[divided], target[divided] = first, parts - first
    whole = torch.ones(len(counts), dtype=torch.bool, device=counts.device)
    whole[divided] = False
    return seen, target, whole


def in_buckets(
    encode: Callable[[Tensor, Tensor], Tensor], counts: Tensor, gene_ids: Tensor, bucket_cells: int = 4
) -> Tensor:
    """`encode(counts, gene_ids)` in buckets of cells with similar numbers of expressed genes, which saves padding.

    Args:
        encode: maps counts and genes, (cells, tokens) each, to (cells, ...).
        counts, gene_ids: as `to_sparse` returns them. Padding is cut only after the last expressed gene.
        bucket_cells: smallest number of cells in a bucket. There are at most 8 buckets, or as many as keep a bucket
            below about `BUCKET_TOKENS`.
    """
    n_buckets = min(max(8, -(-counts.numel() // BUCKET_TOKENS)), len(counts) // bucket_cells)
    if n_buckets < 2:
        return encode(counts, gene_ids)
    columns = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    order = ((counts > 0) * columns).amax(1).argsort()
    parts = []
    for rows in order.chunk(n_buckets):
        width = max(1, int(((counts[rows[-1]] > 0) * columns).max()))
        parts.append(encode(counts[rows, :width], gene_ids[rows, :width]))
    return torch.cat(parts)[order.argsort()]


def to_dense(counts: Tensor, gene_ids: Tensor | None, n_genes: int) -> Tensor:
    """Counts of expressed genes (cells, tokens) to a dense matrix (cells, genes); unchanged without `gene_ids`."""
    if gene_ids is None:
        return counts
    return counts.new_zeros(len(counts), n_genes).scatter_add_(1, gene_ids.long(), counts)


def to_sparse(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Dense counts (cells, genes) to counts and ids of the expressed genes, (cells, tokens) each, padded with zeros."""
    width = int((counts > 0).sum(1).max().clamp_min(1))
    gene_ids = (counts > 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return counts.gather(1, gene_ids), gene_ids
