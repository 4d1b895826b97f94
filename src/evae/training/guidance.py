"""Choose the guidance scale that predictions use by default, on validation cells at the end of training."""

from typing import Any

import numpy as np
import torch

from evae.models.randomness_evae import CellStreams
from evae.training.codes import EncodedCells

SCALES = (1.0, 1.25, 1.5, 2.0)
MOST_CELLS = 2_048  # drawn with every scale
MOST_DRAWS = 8  # of every validation cell, where there are few
FEWEST_CELLS = 5  # of a pair, whose mean is compared
BATCH = 256


@torch.no_grad()
def choose_guidance(prior: Any, cells: EncodedCells, control: int, seed: int) -> tuple[float, dict[str, float]]:
    """The guidance scale under which the means of the drawn cells' latents are nearest to those of the real cells.

    A scale above 1 must be better by more than the standard error over the pairs, as a wrong one costs much. Where
    validation cells are few, each is drawn several times: the noise of one draw is as large as what guidance changes.

    Args:
        prior: trained, in evaluation mode; it reads controls.
        cells: the validation cells with their prompts.
        control: id of the control, whose cells are left out.
        seed: of the draws.

    Returns:
        the scale, and the curve: scale -> mean over pairs of the squared distance of the means, a latent.
    """
    ids = cells.perturbation_ids if cells.perturbation_ids.ndim == 1 else cells.perturbation_ids[:, 0]
    rows = np.flatnonzero(ids != control)[:MOST_CELLS]
    columns = [cells.cell_type_ids[rows], cells.perturbation_ids[rows].reshape(len(rows), -1)]
    if cells.treatments is not None:
        columns.append(np.nan_to_num(cells.treatments[rows], nan=-1).reshape(len(rows), -1))
    pairs = np.unique(np.column_stack(columns), axis=0, return_inverse=True, return_counts=True)
    which, counts = pairs[1].reshape(-1), pairs[2]
    large = np.flatnonzero(counts >= FEWEST_CELLS)
    if not len(large):
        return 1.0, {}
    batches = [cells.batch(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    real = _latents(prior, batches, None, seed)
    distances, draws = [], int(np.clip(MOST_CELLS // len(rows), 1, MOST_DRAWS))
    for scale in SCALES:
        drawn = torch.stack([_latents(prior, batches, scale, seed + draw) for draw in range(draws)]).mean(0)
        gaps = [(drawn[which == pair].mean(0) - real[which == pair].mean(0)).square().mean() for pair in large]
        distances.append(torch.stack(gaps).double().numpy())
    curve = {f"{scale:g}": float(gaps.mean()) for scale, gaps in zip(SCALES, distances, strict=True)}
    best = min(range(len(SCALES)), key=lambda i: distances[i].mean())
    gain = distances[0] - distances[best]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return (SCALES[best] if gain.mean() > error else 1.0), curve


def _latents(prior: Any, batches: list[dict[str, torch.Tensor]], scale: float | None, seed: int) -> torch.Tensor:
    """What the tokenizer decodes, (cells, values): of the cells themselves, or drawn with a guidance scale."""
    found, first = [], 0
    for batch in batches:
        given = {name: values.to(prior.device) for name, values in batch.items()}
        tokens = given.pop(prior.training_input)
        if scale is not None:
            if prior.config.cell_type_context:
                del given["cell_type_ids"]
            streams = CellStreams(seed, range(first, first + len(tokens)))
            tokens = prior.sample(**given, generator=streams, guidance_scale=scale)
        latents = tokens if tokens.is_floating_point() else prior.tokenizer.codes_to_latents(tokens)
        found.append(latents.float().flatten(1).cpu())
        first += len(tokens)
    return torch.cat(found)
