"""NoTokenizer replaces the tokenizer in a prior that models the counts of all genes directly.

The published ablations without latents: AR and masked diffusion over counts in 20 bins, flow over log1p counts.
"""

import torch
from torch import Tensor, nn

from .configuration_evae import EvaeConfig
from .contract_evae import EvaeError
from .heads_evae import bins_to_counts, counts_to_bins, denormalize, encoder_input
from .modeling_evae import to_dense
from .randomness_evae import Randomness


class NoTokenizer(nn.Module):
    """The methods of `EvaeModel` that a prior uses, without parameters. Every gene is one latent."""

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, counts: Tensor, gene_ids: Tensor | None = None) -> Tensor:
        """Bins, int64 (cells, genes), or log1p counts, float32 (cells, genes, 1); arguments as in `EvaeModel`."""
        dense = self._dense(counts, gene_ids)
        return counts_to_bins(dense) if self.config.quantizer == "bins" else self._log1p(dense).unsqueeze(-1)

    def embed(self, counts: Tensor, gene_ids: Tensor | None = None, kind: str = "latents") -> Tensor:
        """log1p counts (cells, genes); `kind` must be "latents"."""
        if kind != "latents":
            raise EvaeError(f"a prior without a tokenizer has no embedding '{kind}'; choose latents.")
        return self._log1p(self._dense(counts, gene_ids))

    def sample_counts(self, codes: Tensor, library_size: Tensor, generator: Randomness = None) -> Tensor:
        """Bins (cells, genes), or log1p counts (cells, genes, 1), to counts, float32 (cells, genes)."""
        if self.config.quantizer == "bins":
            return bins_to_counts(codes, generator, self.config.sample_within_bins)
        values = codes.squeeze(-1).float()
        if self.config.count_input == "normalized":
            return denormalize(values, library_size, self.config.median_library_size)
        return torch.expm1(values.clamp(0, 20))

    def mean_counts(self, codes: Tensor, library_size: Tensor) -> Tensor:
        """As `sample_counts`, without randomness."""
        if self.config.quantizer == "bins":
            return bins_to_counts(codes)
        return self.sample_counts(codes, library_size)

    def _log1p(self, dense: Tensor) -> Tensor:
        return torch.log1p(encoder_input(dense, self.config))

    def _dense(self, counts: Tensor, gene_ids: Tensor | None) -> Tensor:
        return to_dense(counts.float(), gene_ids, self.config.n_genes)
