"""Random numbers cell by cell: a drawn cell depends on the seed and on its place, not on the batch it is drawn in.

A batch drawn from one stream gives other cells as soon as it is cut elsewhere. So every cell has a stream of its own.
They run on the CPU, so that all devices get the same numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SEEDS = 2**32  # torch's CPU generator reads 32 bits of a seed
_STRIDE = 2_654_435_761  # odd, so that no two cells share a seed; near the golden ratio, so that runs hardly meet


class CellStreams:
    """One stream of random numbers a cell.

    Args:
        seed: of all streams together, 0 to 2**32 - 1.
        cells: the places of the cells; place i has the same stream whatever the other places are.
    """

    def __init__(self, seed: int, cells: range) -> None:
        self.seed, self.cells = seed, cells
        self._generators: list[torch.Generator] = []

    @classmethod
    def spawn(cls, generator: torch.Generator | None, n_cells: int) -> "CellStreams":
        """Streams for `n_cells` cells, seeded by one draw from `generator` (torch's global one if None)."""
        device = "cpu" if generator is None else generator.device
        return cls(int(torch.randint(_SEEDS, (1,), generator=generator, device=device)), range(n_cells))

    @classmethod
    def of(cls, source: Any, n_cells: int) -> "CellStreams":
        """`source` itself if it is streams, else streams spawned from it."""
        is_one_stream = source is None or isinstance(source, torch.Generator)
        return cls.spawn(source, n_cells) if is_one_stream else source

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: slice) -> "CellStreams":
        """The streams of some cells, from their beginning."""
        return CellStreams(self.seed, self.cells[rows])

    def generators(self) -> list[torch.Generator]:
        """The cells' generators, each where its last draw left it."""
        if not self._generators:
            seeds = ((self.seed + cell * _STRIDE) % _SEEDS for cell in self.cells)
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self._generators

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers on [0, 1), float32 (cells, *shape), on the CPU."""
        drawn = [torch.rand(shape, generator=g) for g in self.generators()]
        return torch.stack(drawn) if drawn else torch.empty(0, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 (cells, *shape), on the CPU."""
        drawn = [torch.randn(shape, generator=g) for g in self.generators()]
        return torch.stack(drawn) if drawn else torch.empty(0, *shape)


Randomness = torch.Generator | CellStreams | None


def draw_uniform(shape: Sequence[int], device: torch.device, source: Randomness) -> Tensor:
    """Uniform numbers of `shape` (cells, ...) on [0, 1), from one stream or from each cell's own."""
    if source is None or isinstance(source, torch.Generator):
        return torch.rand(tuple(shape), device=device, generator=source)
    return source.uniform(*shape[1:]).to(device)


def draw_negative_binomial(mu: Tensor, theta: Tensor, source: Randomness) -> Tensor:
    """Counts (cells, genes) of mean `mu` (cells, genes) and inverse overdispersion `theta` (genes,)."""
    # torch.distributions takes no generator; the two draws behind a negative binomial do
    if source is None or isinstance(source, torch.Generator):
        gamma = torch._standard_gamma(theta.expand_as(mu).contiguous(), generator=source)
        return torch.poisson(gamma * mu / theta, generator=source)
    means, spread, rows = mu.cpu(), theta.cpu(), []
    for mean, generator in zip(means, source.generators(), strict=True):
        gamma = torch._standard_gamma(spread, generator=generator)
        rows.append(torch.poisson(gamma * mean / spread, generator=generator))
    return torch.stack(rows).to(mu.device) if rows else torch.zeros_like(mu)


def categorical(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The category, int64 (...), that `uniform` (...) falls on in `probabilities` (..., categories)."""
    cumulative = probabilities.cumsum(-1)
    point = uniform.unsqueeze(-1) * cumulative[..., -1:]  # the sum is 1 but for rounding
    return (cumulative <= point).sum(-1).clamp_max(probabilities.shape[-1] - 1)
