"""What the encoder makes of a gene's count: the gene's vector times a function f of the count.

    mlp          linear, SiLU, linear of log1p(count), without biases: f(0) = 0
    sinusoidal   linear of sines and cosines of the count at frequencies from 1 to 1 / 10,000
    embedding    a learned vector for every bin of counts

The last two are not 0 at 0. Sparse encoding needs that, so there f(count) - f(0) takes their place.
Source: doi:10.64898/2026.06.15.732063.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_evae import N_COUNT_BINS, EvaeConfig

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

GENE_SCALE = 4.0  # standard deviation of the gene embedding at the start
LONGEST = 10_000.0  # period of the slowest wave, in those of the fastest


class CountEmbedding(nn.Module):
    """Token of a gene: `gene_embedding[g] * f(count)`; with the function "mlp" no layer has a bias, so f(0) = 0."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.function, self.scale = config.count_embedding, config.count_scale
        self.takes_log = config.count_input == "normalized"
        self.from_zero = config.sparse_encoding and self.function != "mlp"
        self.gene_embedding = nn.Embedding(config.n_genes, width)
        if self.function == "mlp":
            self.up = nn.Linear(1, width, bias=False)
            self.down = nn.Linear(width, width, bias=False)
        elif self.function == "sinusoidal":
            self.waves = nn.Linear(width, width, bias=not self.from_zero)  # f(count) - f(0) cancels a bias
        else:
            self.bins = nn.Embedding(N_COUNT_BINS, width)

    def init_weights(self) -> None:
        """Set the scales; the encoder calls it, because transformers skips modules without parameters of their own."""
        # A latent token averages over all genes. With small gene features, cells would hardly differ at the start.
        if self.function == "mlp":
            init.normal_(self.up.weight, std=1.0)
        elif self.function == "embedding":
            init.normal_(self.bins.weight, std=0.5)  # about what the other two start with
        init.normal_(self.gene_embedding.weight, std=GENE_SCALE)

    def forward(self, gene_ids: Tensor, counts: Tensor) -> Tensor:
        """Genes and counts (cells, tokens), as `count_input` says, -> tokens (cells, tokens, width)."""
        values = self._of(counts)
        if self.from_zero:
            values = values - self._of(torch.zeros_like(counts[:1].flatten()[:1]))
        return self.gene_embedding(gene_ids) * values

    def _of(self, counts: Tensor) -> Tensor:
        """f, (..., width) of counts (...)."""
        if self.function == "embedding":
            return self.bins(counts.long())
        dtype = self.gene_embedding.weight.dtype
        if self.function == "mlp":
            return self.down(F.silu(self.up(torch.log1p(counts.to(dtype)).unsqueeze(-1))))
        half = self.waves.in_features // 2
        steps = torch.arange(half, device=counts.device, dtype=torch.float32) / half
        values = torch.log1p(counts.float()) if self.takes_log else counts.float()
        angles = self.scale * values.unsqueeze(-1) * LONGEST**-steps
        return self.waves(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype))
