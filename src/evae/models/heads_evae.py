"""Output heads: the distribution of counts given the decoder's outputs.

A head takes `n_outputs` numbers a gene and has a `loss`, a `sample` and a `mean`. `marginal` gives the outputs,
(genes, n_outputs), with which every gene has its distribution over given cells. With c the counts, l the library size
(counts a cell over the panel) and m the median library size, x = log1p(c m / l):

    ce-quantile   20-way cross-entropy over count bins; sampling draws a bin
    hurdle        w BCE(zero) + MSE(x) over the nonzero entries; sampling draws the gate and emits the magnitude
    mse           MSE(x); sampling emits the mean
    nb            negative binomial, mean l softmax(outputs), one dispersion a gene; sampling draws

Source: doi:10.64898/2026.06.15.732063. "nb" sums over genes, the others average.

`loss(outputs, counts, library_size, genes)` is the loss over `genes` only, given their `outputs`. When the genes are
drawn at random, its expectation is the loss over all genes. "nb" needs the outputs of all genes (`needs_all_genes`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_evae import EvaeConfig
from .randomness_evae import Randomness, categorical, draw_negative_binomial, draw_uniform

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

BIN_UPPER_EDGES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 15, 23, 31, 47, 63, 95, 127, 191, 255)
BIN_VALUES = (
    *(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.5),
    *(13.5, 19.5, 27.5, 39.5, 55.5, 76.5, 109.3, 154.3, 219.9, 360.8),
)
N_BINS = len(BIN_VALUES)
# The first and the last integer count of each bin. The open last bin has its representative value only.
BIN_FIRST = (0, *(edge + 1 for edge in BIN_UPPER_EDGES[:-1]), round(BIN_VALUES[-1]))
BIN_LAST = (*BIN_UPPER_EDGES, round(BIN_VALUES[-1]))


def counts_to_bins(counts: Tensor) -> Tensor:
    """The bin, 0 to 19, of every count; int64 of the same shape."""
    return torch.bucketize(counts.float(), constant(BIN_UPPER_EDGES, counts.device))


def bins_to_counts(bins: Tensor, generator: Randomness = None, within: bool = False) -> Tensor:
    """Bins to counts, float32: the published bin values or, with `within`, integers drawn uniformly from the bin.

    The open last bin always gives its published value, rounded if `within`.
    """
    if not within:
        return constant(BIN_VALUES, bins.device)[bins]
    first, last = constant(BIN_FIRST, bins.device), constant(BIN_LAST, bins.device)
    uniform = draw_uniform(bins.shape, bins.device, generator)
    return first[bins] + (uniform * (last - first + 1)[bins]).floor()


def encoder_input(counts: Tensor, config: Any) -> Tensor:
    """All counts of cells (cells, tokens) as the encoder reads them, of the same shape; see `count_input`."""
    if config.count_input == "bins":
        return counts_to_bins(counts).to(counts.dtype)
    if config.count_input == "normalized":
        return normalize(counts, counts.sum(1), config.median_library_size)
    return counts


_CONSTANTS: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as float32 on a device. They are copied once, because the host waits for every copy."""
    tensor = _CONSTANTS.get((values, device))
    if tensor is None:
        tensor = torch.tensor(values, dtype=torch.float32, device=device)
        if type(tensor) is Tensor and not tensor.is_inference():  # inference and fake tensors cannot be reused
            _CONSTANTS[values, device] = tensor
    return tensor


class CrossEntropyQuantileHead(nn.Module):
    """Categorical over 20 count bins; outputs are logits (cells, genes, 20)."""

    n_outputs = N_BINS
    needs_all_genes = False

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.within = config.sample_within_bins

    def loss(self, outputs: Tensor, counts: Tensor, library_size: Tensor, genes: Tensor | None = None) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, 1), counts_to_bins(_of(counts, genes)).flatten())

    def marginal(self, counts: Tensor, library_size: Tensor) -> Tensor:
        bins = counts_to_bins(counts).T  # (genes, cells)
        seen = torch.zeros(len(bins), N_BINS, device=counts.device)
        seen.scatter_add_(1, bins, torch.ones_like(bins, dtype=seen.dtype))
        return ((seen + 1 / N_BINS) / (len(counts) + 1)).log()  # pseudocount: one more cell, spread over all bins

    def sample(self, outputs: Tensor, library_size: Tensor, generator: Randomness = None) -> Tensor:
        uniform = draw_uniform(outputs.shape[:-1], outputs.device, generator)
        bins = categorical(outputs.float().softmax(-1), uniform)
        return bins_to_counts(bins, generator, self.within)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        middles = tuple((first + last) / 2 for first, last in zip(BIN_FIRST, BIN_LAST, strict=True))
        return outputs.float().softmax(-1) @ constant(middles if self.within else BIN_VALUES, outputs.device)


class HurdleHead(nn.Module):
    """Whether a count is zero, and its magnitude if not; outputs are [nonzero logit, magnitude] (cells, genes, 2)."""

    n_outputs = 2
    needs_all_genes = False

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.zero_loss_weight = config.zero_loss_weight
        self.median = config.median_library_size

    def loss(self, outputs: Tensor, counts: Tensor, library_size: Tensor, genes: Tensor | None = None) -> Tensor:
        logit, magnitude = outputs.float().unbind(-1)
        # Nonzero entries of all genes, scaled to the drawn genes. A count over the drawn genes would bias the ratio.
        n_nonzero = (counts > 0).sum().clamp_min(1) * (outputs.shape[1] / counts.shape[1])
        counts = _of(counts, genes)
        nonzero = (counts > 0).float()
        error = (magnitude - log_normalize(counts, library_size, self.median)) ** 2
        gate = F.binary_cross_entropy_with_logits(logit, nonzero)
        return self.zero_loss_weight * gate + (error * nonzero).sum() / n_nonzero

    def marginal(self, counts: Tensor, library_size: Tensor) -> Tensor:
        n_nonzero = (counts > 0).sum(0)
        share = (n_nonzero + 0.5) / (len(counts) + 1)
        total = log_normalize(counts, library_size, self.median).sum(0)
        return torch.stack([share.logit(), total / n_nonzero.clamp_min(1)], dim=-1)

    def sample(self, outputs: Tensor, library_size: Tensor, generator: Randomness = None) -> Tensor:
        logit, magnitude = outputs.float().unbind(-1)
        open_gate = draw_uniform(logit.shape, logit.device, generator) < logit.sigmoid()
        return open_gate * denormalize(magnitude, library_size, self.median)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        logit, magnitude = outputs.float().unbind(-1)
        return logit.sigmoid() * denormalize(magnitude, library_size, self.median)


class MeanSquaredErrorHead(nn.Module):
    """One log-normalised value a gene; outputs (cells, genes, 1). It has no sampling distribution."""

    n_outputs = 1
    needs_all_genes = False

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.median = config.median_library_size

    def loss(self, outputs: Tensor, counts: Tensor, library_size: Tensor, genes: Tensor | None = None) -> Tensor:
        return F.mse_loss(outputs.squeeze(-1).float(), log_normalize(_of(counts, genes), library_size, self.median))

    def marginal(self, counts: Tensor, library_size: Tensor) -> Tensor:
        return log_normalize(counts, library_size, self.median).mean(0).unsqueeze(-1)

    def sample(self, outputs: Tensor, library_size: Tensor, generator: Randomness = None) -> Tensor:
        return self.mean(outputs, library_size)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        return denormalize(outputs.squeeze(-1).float(), library_size, self.median)


class NegativeBinomialHead(nn.Module):
    """Negative binomial with mean l softmax(outputs) and one dispersion a gene; outputs (cells, genes, 1).

    The softmax couples all genes, so the loss needs the outputs of all. With `loss_genes` the model decodes all genes
    once without gradient, which costs about a third of a full step, and the drawn genes again with gradient. The value
    of the loss and its gradient with respect to the outputs are then exact. The gradient that flows back through the
    drawn outputs, times n_genes / loss_genes, is unbiased.
    """

    n_outputs = 1
    needs_all_genes = True

    def __init__(self, config: EvaeConfig) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.zeros(config.n_genes))

    def init_weights(self) -> None:
        init.zeros_(self.log_dispersion)

    def dispersion(self) -> Tensor:
        """Inverse overdispersion theta of every gene, (genes,): variance = mu + mu^2 / theta."""
        return self.log_dispersion.float().exp().clamp_min(0.01)

    def log_likelihood(self, outputs: Tensor, counts: Tensor, library_size: Tensor) -> Tensor:
        """log NB(counts), nats, (cells, genes)."""
        theta, mu = self.dispersion(), self.mean(outputs, library_size).clamp_min(1e-8)
        counts = counts.float()
        log_total = torch.log(theta + mu)
        return (
            torch.lgamma(counts + theta)
            - torch.lgamma(theta)
            - torch.lgamma(counts + 1)
            + theta * (torch.log(theta) - log_total)
            + counts * (torch.log(mu) - log_total)
        )

    def loss(self, outputs: Tensor, counts: Tensor, library_size: Tensor, genes: Tensor | None = None) -> Tensor:
        return -self.log_likelihood(outputs, counts, library_size).sum(-1).mean()

    def marginal(self, counts: Tensor, library_size: Tensor) -> Tensor:
        total = counts.float().sum(0) + 0.5
        return (total / total.sum()).log().unsqueeze(-1)

    def sample(self, outputs: Tensor, library_size: Tensor, generator: Randomness = None) -> Tensor:
        return draw_negative_binomial(self.mean(outputs, library_size), self.dispersion(), generator)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        return outputs.squeeze(-1).float().softmax(-1) * library_size.float().unsqueeze(-1)


def _of(counts: Tensor, genes: Tensor | None) -> Tensor:
    """Columns `genes` (some,) of `counts` (cells, genes); all if None."""
    return counts if genes is None else counts.index_select(1, genes)


def with_gradient_of(outputs: Tensor, drawn: Tensor, genes: Tensor) -> Tensor:
    """Outputs of all genes, with a gradient through the drawn genes only, scaled up to represent all.

    Args:
        outputs: of all genes, (cells, genes, n); no gradient passes.
        drawn: outputs of `genes`, (cells, some, n); their gradient is multiplied by genes / some.
        genes: the drawn genes, int64 (some,).
    """
    scale = outputs.shape[1] / drawn.shape[1]
    scaled = drawn.detach() + scale * (drawn - drawn.detach())
    return outputs.detach().index_copy(1, genes, scaled.to(outputs.dtype))


def normalize(counts: Tensor, library_size: Tensor, median: float) -> Tensor:
    """Counts (cells, genes) scaled to `median` counts a cell, float32."""
    return counts.float() * (median / library_size.float().clamp_min(1)).unsqueeze(-1)


def log_normalize(counts: Tensor, library_size: Tensor, median: float) -> Tensor:
    """log1p of counts (cells, genes) scaled to `median` counts a cell."""
    return torch.log1p(normalize(counts, library_size, median))


def denormalize(values: Tensor, library_size: Tensor, median: float) -> Tensor:
    """The inverse of `log_normalize`; negative values become 0."""
    return torch.expm1(values.clamp(0, 20)) * (library_size.float() / median).unsqueeze(-1)


HEAD_CLASSES: dict[str, Any] = {
    "ce-quantile": CrossEntropyQuantileHead,
    "hurdle": HurdleHead,
    "mse": MeanSquaredErrorHead,
    "nb": NegativeBinomialHead,
}
