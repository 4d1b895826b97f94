"""Bottlenecks of the tokenizer: finite scalar quantization, and a Gaussian.

FSQ (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023) rounds each of a few latent dimensions
to a fixed number of levels. With L levels, h = (L - 1)(1 + eps) / 2, o = 1/2 for even L else 0:

    b(z) = h tanh(z + atanh(o / h)) - o,      value = round(b(z)) / floor(L / 2) in [-1, 1]

and the gradient passes the rounding unchanged. The code is the mixed-radix number of the rounded dimensions.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .randomness_evae import Randomness, draw_normal


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
