"""Random numbers cell by cell: a drawn cell depends on the seed and on its number, not on the batch it is drawn in.

With one stream for a batch, another batch size would give other cells. So every cell has its own stream: number i of
cell c is a hash of (seed, c, i), computed for all cells at once on any device. In training a cell's number is its
position among all cells trained on so far, so its random numbers do not depend on the process that trains on it.

A stream is the sequence of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)
from a hashed start.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .device_evae import on_accelerator

_SEEDS = 2**32  # torch's CPU generator reads 32 bits of a seed
_STRIDE = 2_654_435_761  # odd, so no two cells share a seed; near the golden ratio, so runs rarely share one
_BRANCH = 2_246_822_519  # odd, so no two branches share a seed
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the increment of SplitMix64, as a signed number with the same bits
EXACT = 24  # largest number of molecules for which a binomial draw is exact
FEW = 64  # categories
AHEAD = 8  # numbers of a stream that are hashed together at least, as a hash takes many operations
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


class CellStreams:
    """One stream of random numbers for every cell.

    Args:
        seed: one for all streams, 0 to 2**32 - 1.
        cells: the numbers of the cells, 0 or more. Cell i has the same stream whatever other cells there are.
        batch: number of the batch, for random numbers that the whole batch shares.
    """

    def __init__(self, seed: int, cells: range, batch: int = 0) -> None:
        self.seed, self.cells, self.batch = seed, cells, batch
        self._drawn = 0  # how many numbers were drawn from every stream
        self._starts: dict[torch.device, Tensor] = {}
        self._ahead: dict[torch.device, tuple[int, Tensor]] = {}  # the first of the numbers kept, and these
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
        """The streams of some cells, from the start."""
        return CellStreams(self.seed, self.cells[rows], self.batch)

    def branch(self, number: int) -> "CellStreams":
        """Independent streams of the same cells, from the start. Drawing from one branch does not advance another."""
        return CellStreams((self.seed + (number + 1) * _BRANCH) % _SEEDS, self.cells, self.batch)

    def of_batch(self) -> "CellStreams":
        """One stream that all cells of the batch share, on all processes."""
        return CellStreams(self.seed, range(-1 - self.batch, -self.batch))

    def fork(self, rows: slice) -> "CellStreams":
        """The streams of some cells, from their current position."""
        part = self[rows]
        part._drawn, part._generators = self._drawn, self.generators()[rows] if self._generators else []
        return part

    def join(self, part: "CellStreams") -> None:
        """Advance to the position of `part`, the last of several forks that drew equally many numbers."""
        self._drawn = part._drawn

    def generators(self) -> list[torch.Generator]:
        """The cells' torch generators (CPU), for distributions that need a varying number of uniform draws."""
        if not self._generators:
            seeds = ((self.seed + cell * _STRIDE) % _SEEDS for cell in self.cells)
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self._generators

    def uniform(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers on [0, 1), float32 (cells, *shape): multiples of 2**-24."""
        return (self._bits(math.prod(shape), device).float() * 2**-24).view(len(self), *shape)

    def normal(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32 (cells, *shape), within +-5.2."""
        odd = 2 * (self._bits(math.prod(shape), device) >> 1).float() + 1  # below 2**24, so exact; never 0
        return (math.sqrt(2) * torch.erfinv(odd * 2**-23 - 1)).view(len(self), *shape)

    def spread(self, device: torch.device | str = "cpu") -> Tensor:
        """Low-discrepancy numbers on [0, 1), float32 (cells,).

        Each is uniform over seeds, and the cells of a batch cover [0, 1) evenly. They are multiples of
        the golden ratio modulo 1. Any n consecutive cells leave no gap wider than 2.7 / n.
        """
        start = _mixed(torch.full((1,), self.seed, device=device))
        return ((self._cell_numbers(device) * _GOLDEN + start) >> 40).bitwise_and_(2**24 - 1).float() * 2**-24

    def _cell_numbers(self, device: torch.device | str) -> Tensor:
        return torch.arange(self.cells.start, self.cells.stop, self.cells.step, device=device)

    def _bits(self, n: int, device: torch.device | str) -> Tensor:
        """The next `n` random numbers of 24 bits of every stream, int64 (cells, n). One hash gives two."""
        first, self._drawn = self._drawn, self._drawn + n
        device = torch.device(device)
        if n < AHEAD:
            start, kept = self._ahead.get(device, (first, None))
            if kept is None or self._drawn > start + kept.shape[1] or first < start:
                start, kept = self._ahead[device] = first, self._hashed(first, AHEAD, device)
            return kept[:, first - start : first - start + n]
        return self._hashed(first, n, device)

    def _hashed(self, first: int, n: int, device: torch.device) -> Tensor:
        """The `n` numbers from number `first` on."""
        if device not in self._starts:
            self._starts[device] = _mixed((self._cell_numbers(device) + 1) * _GOLDEN + self.seed)
        steps = torch.arange(first // 2, (first + n + 1) // 2, device=device)
        words = _mixed(self._starts[device].unsqueeze(1) + (steps + 1) * _GOLDEN)
        pairs = torch.stack([words >> 40, words >> 16], dim=-1).bitwise_and_(2**24 - 1).flatten(1)
        return pairs[:, first % 2 : first % 2 + n]


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64. Products wrap around; the masks make the shifts unsigned."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ ((x >> shift).bitwise_and_(2 ** (64 - shift) - 1))).mul_(multiplier)
    return x ^ ((x >> 31).bitwise_and_(2**33 - 1))


Randomness = torch.Generator | CellStreams | None


def draw_uniform(shape: Sequence[int], device: torch.device, source: Randomness) -> Tensor:
    """Uniform numbers of `shape` (cells, ...) on [0, 1), from a torch generator or the cells' streams."""
    if source is None or isinstance(source, torch.Generator):
        return torch.rand(tuple(shape), device=device, generator=source)
    return source.uniform(*shape[1:], device=device)


def draw_normal(shape: Sequence[int], device: torch.device, source: Randomness) -> Tensor:
    """Standard normal numbers of `shape` (cells, ...), from a torch generator or the cells' streams."""
    if source is None or isinstance(source, torch.Generator):
        return torch.randn(tuple(shape), device=device, generator=source)
    return source.normal(*shape[1:], device=device)


def draw_binomial(counts: Tensor, share: Tensor, source: CellStreams) -> Tensor:
    """Binomial draws from `counts` (cells, genes) trials with probability `share` (cells, 1).

    Every entry takes one uniform number, which the inverse distribution function turns into a count. Up to EXACT
    trials it is summed term by term. Above, it is the normal approximation corrected for skewness (Cornish & Fisher,
    1938), which is off by less than 0.01 in total variation. `torch.binomial` uses a varying number of uniform numbers,
    so a cell's draw would depend on its batch.
    """
    uniform = source.uniform(*counts.shape[1:], device=counts.device)
    rarer = torch.minimum(share, 1 - share)
    odds, few = rarer / (1 - rarer), counts.clamp_max(EXACT)
    term = (few * torch.log1p(-rarer)).exp()
    if on_accelerator(counts.device):  # the same sums, with all terms at once
        numbers = torch.arange(1, EXACT + 1, dtype=counts.dtype, device=counts.device).view(-1, 1, 1)
        ratios = (few - (numbers - 1)) * (odds / numbers)  # 0 from k = few + 1 on
        reached = torch.cat([term.unsqueeze(0), ratios[:-1]]).cumprod(0).cumsum(0)
        drawn = (uniform >= reached).sum(0, dtype=counts.dtype)
    else:
        reached, drawn = term.clone(), torch.zeros_like(counts)
        for k in range(1, EXACT + 1):
            drawn += uniform >= reached
            term *= (few - (k - 1)) * (odds / k)
            reached += term
    drawn = torch.minimum(drawn, few)
    normal = math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(2**-24 - 1, 1 - 2**-24))
    spread = (counts * rarer * (1 - rarer) - 1 / 12).clamp_min(0).sqrt()  # rounding adds a twelfth to the variance
    skew = (1 - 2 * rarer) / 6
    many = torch.minimum((counts * rarer + spread * normal + skew * (normal**2 - 1)).round().clamp_min(0), counts)
    drawn = torch.where(counts > EXACT, many, drawn)
    return torch.where(share > 0.5, counts - drawn, drawn)


def draw_negative_binomial(mu: Tensor, theta: Tensor, source: Randomness) -> Tensor:
    """Counts (cells, genes) of mean `mu` (cells, genes) and inverse overdispersion `theta` (genes,)."""
    # As a gamma-Poisson mixture: these two draws accept a generator, torch.distributions does not.
    if source is None or isinstance(source, torch.Generator):
        gamma = torch._standard_gamma(theta.expand_as(mu).contiguous(), generator=source)
        return torch.poisson(gamma * mu / theta, generator=source)
    means, spread, rows = mu.cpu(), theta.cpu(), []
    for mean, generator in zip(means, source.generators(), strict=True):
        gamma = torch._standard_gamma(spread, generator=generator)
        rows.append(torch.poisson(gamma * mean / spread, generator=generator))
    return torch.stack(rows).to(mu.device) if rows else torch.zeros_like(mu)


def categorical(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw a category, int64 (...), from `probabilities` (..., categories) with `uniform` numbers (...) on [0, 1)."""
    return places_drawn(probabilities, uniform).clamp_max(probabilities.shape[-1] - 1)


def places_drawn(probabilities: Tensor, uniform: Tensor, out: Tensor | None = None) -> Tensor:
    """As `categorical`, but where probabilities are NaN the place may be that after the last.

    A uniform number below 1 times the sum is below the sum in floating point, too, so no other place is too large.
    """
    last = probabilities.shape[-1] - 1
    if last < FEW and on_accelerator(probabilities.device):  # a sum along short rows leaves most of the device idle
        columns = probabilities.movedim(-1, 0).contiguous().cumsum(0)
        return torch.sum(columns <= uniform * columns[-1], 0, out=out)
    cumulative = probabilities.contiguous().cumsum(-1)
    point = uniform.unsqueeze(-1) * cumulative[..., -1:]  # the sum is 1 up to rounding
    places = None if out is None else out.unsqueeze(-1)
    return torch.searchsorted(cumulative, point, right=True, out=places).squeeze(-1)
