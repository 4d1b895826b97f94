"""Choose how predictions are drawn by default, on validation cells at the end of training."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from evae.models.randomness_evae import CellStreams
from evae.models.sampling_evae import takes_temperature
from evae.training.codes import EncodedCells

SCALES = (1.0, 1.25, 1.5, 2.0)
TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6)
MOST_CELLS = 2_048  # drawn with every option
MOST_DRAWS = 8  # of every validation cell, where there are few
FEWEST_CELLS = 5  # of a pair that counts
BATCH = 256


@dataclass(frozen=True)
class PerturbedCells:
    """Validation cells with their prompts, drawn anew as often as asked.

    Attributes:
        prior: trained, in evaluation mode.
        batches: inputs of the prior.
        pairs: the rows of every pair of cell type and perturbation that has enough cells.
        draws: how often each cell is drawn: where cells are few, the noise of one draw is as large as what an option
            changes.
        seed: of the draws.
    """

    prior: Any
    batches: list[dict[str, Tensor]]
    pairs: list[np.ndarray]
    draws: int
    seed: int
    _kept: dict[tuple[float, float], Tensor] = field(default_factory=dict)  # by scale and temperature

    @classmethod
    def of(cls, prior: Any, cells: EncodedCells, control: int, seed: int) -> Self:
        """Those of some validation cells, without the cells of the `control`, an id."""
        ids = cells.perturbation_ids if cells.perturbation_ids.ndim == 1 else cells.perturbation_ids[:, 0]
        rows = np.flatnonzero(ids != control)[:MOST_CELLS]
        columns = [cells.cell_type_ids[rows], cells.perturbation_ids[rows].reshape(len(rows), -1)]
        if cells.treatments is not None:
            columns.append(np.nan_to_num(cells.treatments[rows], nan=-1).reshape(len(rows), -1))
        which = np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].reshape(-1)
        each = [np.flatnonzero(which == pair) for pair in range(which.max(initial=-1) + 1)]
        batches = [cells.batch(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        draws = int(np.clip(MOST_CELLS // max(len(rows), 1), 1, MOST_DRAWS))
        return cls(prior, batches, [pair for pair in each if len(pair) >= FEWEST_CELLS], draws, seed)

    @cached_property
    def real(self) -> Tensor:
        """Latents that the tokenizer decodes, (cells, values)."""
        return self._latents(None, 0)

    def drawn(self, scale: float, temperature: float = 1.0) -> Tensor:
        """The same of cells that are drawn with a guidance scale and a temperature, once, (draws, cells, values)."""
        if (scale, temperature) not in self._kept:
            options = {"guidance_scale": scale}
            options |= {"temperature": temperature} if takes_temperature(self.prior) else {}
            each = [self._latents(options, self.seed + draw) for draw in range(self.draws)]
            self._kept[scale, temperature] = torch.stack(each)
        return self._kept[scale, temperature]

    @torch.no_grad()
    def _latents(self, options: dict[str, float] | None, seed: int) -> Tensor:
        found, first, prior = [], 0, self.prior
        for batch in self.batches:
            given = {name: values.to(prior.device) for name, values in batch.items()}
            tokens = given.pop(prior.training_input)
            if options is not None:
                if prior.config.cell_type_context:
                    del given["cell_type_ids"]
                streams = CellStreams(seed, range(first, first + len(tokens)))
                tokens = prior.sample(**given, generator=streams, **options)
            latents = tokens if tokens.is_floating_point() else prior.tokenizer.codes_to_latents(tokens)
            found.append(latents.float().flatten(1).cpu())
            first += len(tokens)
        return torch.cat(found)


def choose_guidance(cells: PerturbedCells) -> tuple[float, dict[str, float]]:
    """The guidance scale under which the means of the drawn cells' latents are nearest to those of the real cells.

    A scale above 1 must be better by more than the standard error over the pairs, as a wrong one costs much.

    Returns:
        the scale, and the curve: scale -> mean over pairs of the squared distance of the means, a latent.
    """
    if not cells.pairs:
        return 1.0, {}
    distances = []
    for scale in SCALES:
        drawn = cells.drawn(scale).mean(0)
        gaps = [(drawn[pair].mean(0) - cells.real[pair].mean(0)).square().mean() for pair in cells.pairs]
        distances.append(torch.stack(gaps).double().numpy())
    curve = {f"{scale:g}": float(gaps.mean()) for scale, gaps in zip(SCALES, distances, strict=True)}
    best = min(range(len(SCALES)), key=lambda i: distances[i].mean())
    gain = distances[0] - distances[best]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return (SCALES[best] if gain.mean() > error else 1.0), curve


def choose_temperature(cells: PerturbedCells, guidance_scale: float) -> tuple[float, dict[str, float]]:
    """The temperature under which drawn cells of a pair differ as much as real ones do.

    A prior that is trained for a short time leaves too much open, so that its cells differ too much.

    Returns:
        the temperature, and the curve: temperature -> variance of the latents within pairs, that of drawn cells over
        that of real ones. Without a temperature or cells, 1 and no curve.
    """
    pairs = [pair for pair in cells.pairs if len(pair) > 1]
    if not pairs or not takes_temperature(cells.prior):
        return 1.0, {}
    real, curve = _within(cells.real[None], pairs), {}
    for temperature in TEMPERATURES:
        curve[f"{temperature:g}"] = _within(cells.drawn(guidance_scale, temperature), pairs) / max(real, 1e-12)
    return min(TEMPERATURES, key=lambda t: abs(np.log(max(curve[f"{t:g}"], 1e-12)))), curve


def _within(latents: Tensor, pairs: list[np.ndarray]) -> float:
    """Variance within pairs, summed over values; of latents (draws, cells, values)."""
    each = [latents[:, pair].var(1).sum(-1).mean() * len(pair) for pair in pairs]
    return float(torch.stack(each).sum() / sum(map(len, pairs)))
