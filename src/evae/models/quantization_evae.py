"""Bottlenecks of the tokenizer: finite scalar, vector and lookup-free quantization, and a Gaussian.

FSQ (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023) rounds each of a few latent dimensions
to a fixed number of levels. With L levels, h = (L - 1)(1 + eps) / 2, o = 1/2 for even L else 0:

    b(z) = h tanh(z + atanh(o / h)) - o,      value = round(b(z)) / floor(L / 2) in [-1, 1]

and the gradient passes the rounding unchanged. The code is the mixed-radix number of the rounded dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .randomness_evae import Randomness, draw_normal

try:  # transformers >= 5 skips what is already loaded
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


class FiniteScalarQuantizer(nn.Module):
    """Rounds latents to a grid. It has no parameters.

    Args:
        levels: number of levels of each latent dimension.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def _bound(self, z: Tensor) -> Tensor:
        columns = []
        for value, level in zip(z.unbind(-1), self.levels, strict=True):
            half = (level - 1) * (1 + 1e-3) / 2
            offset = 0.5 if level % 2 == 0 else 0.0
            columns.append(torch.tanh(value + math.atanh(offset / half)) * half - offset)
        return torch.stack(columns, dim=-1)

    # The levels stay Python numbers: copying them to the device in every step would make the host wait for it.

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize `z` of shape (..., levels).

        Returns:
            values in [-1, 1] with a straight-through gradient, (..., levels), and codes, int64 of shape (...).
        """
        bounded = self._bound(z.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        pairs = zip(rounded.unbind(-1), self.levels, strict=True)
        values = torch.stack([value / (level // 2) for value, level in pairs], dim=-1)
        return values.to(z.dtype), self.values_to_codes(values)

    def values_to_codes(self, values: Tensor) -> Tensor:
        """Grid values (..., levels) to codes, int64 of shape (...)."""
        codes, radix = torch.zeros(values.shape[:-1], dtype=torch.int64, device=values.device), 1
        for value, level in zip(values.detach().float().unbind(-1), self.levels, strict=True):
            half = level // 2
            codes += (value * half + half).round().long() * radix
            radix *= level
        return codes

    def codes_to_values(self, codes: Tensor) -> Tensor:
        """Codes (...) to grid values in [-1, 1], float32 of shape (..., levels)."""
        columns = []
        for level in self.levels:
            half = level // 2
            columns.append((codes % level - half).float() / half)
            codes = codes // level
        return torch.stack(columns, dim=-1)


class VectorQuantizer(nn.Module):
    """Replaces latents by the nearest of learned vectors (van den Oord et al., "Neural Discrete Representation
    Learning", 2017).

    In training every vector follows the mean of the latents that it replaces, by moving averages over all processes,
    and the gradient passes by the rotation trick (Fifty et al., "Restructuring Vector Quantization with the Rotation
    Trick", 2024). The rules and constants are those of `VectorQuantize` of vector-quantize-pytorch.

    Args:
        n_codes: number of vectors.
        width: values of a latent.
        decay: weight of the past in the moving averages.
    """

    code_counts: Tensor
    code_sums: Tensor

    def __init__(self, n_codes: int, width: int, decay: float = 0.8) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("code_counts", torch.ones(n_codes))
        self.register_buffer("code_sums", torch.randn(n_codes, width))

    def init_weights(self) -> None:
        init.ones_(self.code_counts)
        init.normal_(self.code_sums)

    @property
    def codebook(self) -> Tensor:
        """The vectors (codes, width): means of the latents that they replaced."""
        n_codes, few, total = len(self.code_counts), 1e-5, self.code_counts.sum()  # few: so that no count is 0
        counts = (self.code_counts + few) / (total + n_codes * few) * total
        return self.code_sums / counts.unsqueeze(1)

    @torch.no_grad()
    def set_codes(self, latents: Tensor) -> None:
        """Set the vectors to some of the `latents` (latents, width), before training, so that all are in use."""
        rows = torch.linspace(0, len(latents) - 1, len(self.code_sums), device=latents.device).long()
        self.code_counts.fill_(1)
        self.code_sums.copy_(latents[rows])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Quantize `z` of shape (cells, latents, width).

        Returns:
            the vectors, as `z`; codes, int64 (cells, latents); and in training the mean squared distance of the
            latents to their vectors, (cells,), which the loss takes in.
        """
        values = z.float()
        codebook = self.codebook
        codes = ((codebook**2).sum(1) - 2 * values @ codebook.T).argmin(-1)
        vectors = F.embedding(codes, codebook)
        if not self.training:
            return vectors.to(z.dtype), codes, None
        self._follow(values.detach().flatten(0, 1), codes.flatten())
        distance = (values - vectors).square().mean(dim=(1, 2))
        return _rotated(values, vectors).to(z.dtype), codes, distance

    @torch.no_grad()
    def _follow(self, values: Tensor, codes: Tensor) -> None:
        chosen = F.one_hot(codes, len(self.code_sums)).float()
        counts, sums = chosen.sum(0), chosen.T @ values
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.code_counts.lerp_(counts, 1 - self.decay)
        self.code_sums.lerp_(sums, 1 - self.decay)

    def codes_to_values(self, codes: Tensor) -> Tensor:
        """Codes (...) to vectors, float32 of shape (..., width)."""
        return F.embedding(codes, self.codebook)


def _rotated(z: Tensor, vectors: Tensor) -> Tensor:
    """The value of `vectors`, with the gradient of the rotation and scaling of `z` (..., width) onto them."""
    old, new = z.norm(dim=-1, keepdim=True).clamp_min(1e-6), vectors.norm(dim=-1, keepdim=True)
    u, q = (z / old).detach(), vectors / new.clamp_min(1e-6)
    w = F.normalize(u + q, dim=-1, eps=1e-6)
    along_w, along_u = (z * w).sum(-1, keepdim=True), (z * u).sum(-1, keepdim=True)
    return (z - 2 * along_w * w + 2 * along_u * q) * (new / old).detach()


class LookupFreeQuantizer(nn.Module):
    """Replaces every value of a latent by its sign; a code is the number of these bits. It has no parameters.

    Source: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", 2024. In training the
    loss takes in the mean entropy of the code given a latent, less the entropy of the codes over the batch. The
    distribution given a latent z is softmax(2 T z c) over all codes c, with T = 100. So codes become certain and are
    used evenly. The rules and constants are those of `LFQ` of vector-quantize-pytorch.

    Args:
        n_bits: values of a latent.
    """

    def __init__(self, n_bits: int) -> None:
        super().__init__()
        self.n_bits = n_bits

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Quantize `z` of shape (cells, latents, bits).

        Returns:
            -1 or 1 with a straight-through gradient, as `z`; codes, int64 (cells, latents); and in training what the
            loss takes in, a number.
        """
        values = z.float()
        bits = (values > 0).long()
        codes = (bits * self._powers(z.device)).sum(-1)
        signs = bits.float() * 2 - 1
        if not self.training:
            return signs.to(z.dtype), codes, None
        every = self.codes_to_values(torch.arange(2**self.n_bits, device=z.device))
        shares = (200 * values.flatten(0, 1) @ every.T).softmax(-1)
        penalty = _entropy(shares).mean() - _entropy(_mean_over_cells(shares))
        return (values + (signs - values).detach()).to(z.dtype), codes, penalty

    def _powers(self, device: torch.device) -> Tensor:
        return 2 ** torch.arange(self.n_bits - 1, -1, -1, device=device)

    def codes_to_values(self, codes: Tensor) -> Tensor:
        """Codes (...) to -1 or 1, float32 of shape (..., bits)."""
        return ((codes.unsqueeze(-1) & self._powers(codes.device)) > 0).float() * 2 - 1


def _entropy(shares: Tensor) -> Tensor:
    """Entropy over the last axis, nats."""
    return -(shares * shares.clamp_min(1e-5).log()).sum(-1)


class GaussianBottleneck(nn.Module):
    """Diagonal Gaussian latents: mean clamped to +-4, log-variance to [-14, 10], KL against N(0, 1)."""

    def forward(self, parameters: Tensor, generator: Randomness = None) -> tuple[Tensor, Tensor, Tensor]:
        """Split `parameters` of shape (cells, latents, 2 * latent_dim) and draw.

        Returns:
            latents (drawn in training, the mean in evaluation), means, both (cells, latents, latent_dim), and
            the KL divergence summed per cell, nats, (cells,).
        """
        mean, log_variance = parameters.float().chunk(2, dim=-1)
        mean, log_variance = mean.clamp(-4, 4), log_variance.clamp(-14, 10)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2))
        drawn = mean
        if self.training:
            drawn = mean + draw_normal(mean.shape, mean.device, generator) * (0.5 * log_variance).exp()
        return drawn.to(parameters.dtype), mean.to(parameters.dtype), kl


class LatentStandardizer(nn.Module):
    """Standardizes every (latent, dimension) over cells, as batch normalisation without scale and shift.

    In training it uses the statistics of the batch, in evaluation their running average. A batch is the cells of all
    processes together, so the result does not depend on how they share it.

    Args:
        momentum: weight of a batch in the running average. Early in training the means move by whole standard
            deviations within tens of steps. A slower average would lag, and evaluation would give wrong codes.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, n_latents: int, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(n_latents, width))
        self.register_buffer("running_variance", torch.ones(n_latents, width))

    def init_weights(self) -> None:
        init.zeros_(self.running_mean)
        init.ones_(self.running_variance)

    @torch.no_grad()
    def set_statistics(self, z: Tensor) -> None:
        """Set the running averages to the statistics of `z` (cells, latents, width), before training."""
        self.running_mean.copy_(z.float().mean(0))
        self.running_variance.copy_(z.float().var(0))

    def forward(self, z: Tensor) -> Tensor:
        """Standardize `z` of shape (cells, latents, width)."""
        if not self.training:
            return ((z - self.running_mean) * (self.running_variance + 1e-5).rsqrt()).to(z.dtype)
        values = z.float()
        mean = _mean_over_cells(values)
        variance = _mean_over_cells((values - mean) ** 2)  # not E[z^2] - E[z]^2, which cancels in float32
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_variance.lerp_(variance, self.momentum)
        return ((values - mean) * (variance + 1e-5).rsqrt()).to(z.dtype)


def _mean_over_cells(values: Tensor) -> Tensor:
    """Differentiable mean over the first axis and over all processes, which hold equally many cells."""
    mean = values.mean(0)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mean
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(mean) / dist.get_world_size()


QUANTIZER_CLASSES: dict[str, Any] = {  # of a configuration
    "fsq": lambda config: FiniteScalarQuantizer(config.fsq_levels),
    "vq": lambda config: VectorQuantizer(config.vq_codes, config.latent_dim),
    "lfq": lambda config: LookupFreeQuantizer(config.lfq_bits),
    "gaussian": lambda config: GaussianBottleneck(),
}
