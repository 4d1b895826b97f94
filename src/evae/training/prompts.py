"""What a prior reads of control cells in training: source cells, and the known effect of the perturbation.

The controls are encoded at several depths: whole, and thinned to a random share of their molecules. So the prior learns
what of a source's latents is its state and what its depth, and shallow controls can be read too. Cells held out are
never read: sources, effects and their statistics come from the training split alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from evae.training.loop.validation import Batch

LEAST_SHARE = 0.15  # of a control's molecules that its thinned copies keep
COPIES = 3  # thinned copies of every control
_MIX = 2_654_435_761  # odd; spreads neighbouring places over draws and copies


@dataclass(frozen=True)
class Controls:
    """Control cells at several depths.

    Attributes:
        latents: before quantization, float32 (copies, controls, latents, latent_width); the first copy is whole.
        library_size: of each copy, float32 (copies, controls).
    """

    latents: np.ndarray
    library_size: np.ndarray


@dataclass(frozen=True)
class Prompts:
    """Source cells and known effects of encoded cells, row by row.

    Attributes:
        controls: the pool of sources.
        sources: rows of the pool, int32 (cells, draws).
        n_sources: source cells of a prompt; 0 for none.
        effects: float32 (draws, effects, values), NaN where unknown; None for a prior without. The first draw is the
            estimate. The others vary within its error, so that the prior does not take an effect for a name.
        effect_rows: row of `effects`, int32 (cells,).
    """

    controls: Controls
    sources: np.ndarray
    n_sources: int
    effects: np.ndarray | None
    effect_rows: np.ndarray

    def part(self, rows: slice | np.ndarray) -> "Prompts":
        """Those of some of the cells."""
        return replace(self, sources=self.sources[rows], effect_rows=self.effect_rows[rows])

    def batch(self, rows: np.ndarray, places: np.ndarray | None) -> Batch:
        """The arguments of a prior for the cells `rows`; without `places` the first draws, whole."""
        batch = {}
        mixed = np.zeros(len(rows), dtype=np.int64) if places is None else (places * _MIX % 2**32) >> 8
        if self.n_sources:
            draws, copies = self.sources.shape[1], len(self.controls.latents)
            first = mixed % draws
            chosen = self.sources[rows[:, None], (first[:, None] + np.arange(self.n_sources)) % draws]
            copy = (mixed // draws % copies)[:, None]
            batch["source_latents"] = torch.from_numpy(self.controls.latents[copy, chosen])
            batch["source_library_size"] = torch.from_numpy(self.controls.library_size[copy, chosen])
        if self.effects is not None:
            batch["effect"] = torch.from_numpy(self.effects[(mixed >> 4) % len(self.effects), self.effect_rows[rows]])
        return batch


def shallower(batches: Iterable[Batch], control: int, copy: int) -> Iterator[Batch]:
    """The controls of `batches` with a random share of their molecules, from LEAST_SHARE to 1; `copy` seeds it."""
    generator = torch.Generator().manual_seed(copy)
    for batch in batches:
        keep = batch["perturbation_ids"] == control
        if not keep.any():
            continue
        batch = {name: values[keep] for name, values in batch.items()}
        counts = batch["counts"]
        share = LEAST_SHARE ** torch.rand(len(counts), 1, generator=generator)
        counts = torch.binomial(counts, share.expand_as(counts).contiguous(), generator=generator)
        yield batch | {"counts": counts, "library_size": counts.sum(1)}
