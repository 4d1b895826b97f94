"""What kind, dose and time of a treatment make of the vector of its agent, and the vector of an experimental batch.

With the agent's vector a, its kind's vector k, and smooth features f of log dose and log time, the treatment's is

    v = a + k + D (silu(E f) * (C (a + k)))

so every agent mixes curves of its own out of shared ones, and an unseen dose lies on the curve between seen ones.
Doses of each family (uM, ng/mL) have features of their own, as no number converts one to the other.
Logarithms are scaled so that the training doses, and times, reach from -1 to 1. Beyond that range the features stay
those of its end: going on as before was no nearer to the cells of a dose ten times higher on simulated screens (error
1.91 against 1.93, 12 drugs with Hill curves), and nothing bounds it. A treatment of which nothing is said, such as the
control, is its agent alone.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment_evae import grow_to_fit
from .contract_evae import EvaeError, number_of
from .layers_evae import check_ids

KIND, DOSE = 0, 1  # columns of a treatment; after the dose come the time and doses in further units
N_FEATURES = 4  # of an amount


class GrowingTable(nn.Embedding):
    """A table that makes room for the larger one of an adapter."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        grow_to_fit(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class TreatmentEmbedding(nn.Module):
    """Vectors of treatments from those of their agents (formula: see the module)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        dose, *further = config.dose_ranges.values()
        self.ranges = (dose, config.time_range, *further)
        self.kind = GrowingTable(max(1, len(config.perturbation_kinds)), width)
        self.curves = nn.Linear(N_FEATURES * len(self.ranges), width)
        self.mixture = nn.Linear(width, width)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, agents: Tensor, treatments: Tensor) -> Tensor:
        """Vectors (..., width) of agents (..., width) with treatments (..., 3 or more) as `EvaePrior.sample` takes."""
        said = ~treatments.isnan()
        kinds = treatments[..., KIND].nan_to_num().long()
        check_ids(kinds, self.kind.num_embeddings, "kind", self.training)
        own = agents + self.kind(kinds) * said[..., KIND].unsqueeze(-1)
        features = [smooth(treatments[..., column], span) for column, span in enumerate(self.ranges, DOSE)]
        curves = F.silu(self.curves(torch.cat(features, dim=-1).to(agents.dtype)))
        change = self.down(curves * self.mixture(own))
        return own + change * said[..., DOSE:].any(-1, keepdim=True)


def smooth(values: Tensor, span: list[float] | None) -> Tensor:
    """Features (..., 4) of amounts (...) above 0: whether one is said, its scaled logarithm x, sin and cos of x pi / 2.

    Args:
        values: NaN where nothing is said.
        span: the lowest and the highest of training, at which x is -1 and 1; beyond them it stays there.
    """
    low, high = (math.log10(end) for end in (span or (1.0, 1.0)))
    half = (high - low) / 2 or 1.0
    said = ~values.isnan()
    x = ((values.nan_to_num(1.0).clamp_min(1e-30).log10() - (low + high) / 2) / half).clamp(-1, 1)
    parts = (torch.ones_like(x), x, (x * math.pi / 2).sin(), (x * math.pi / 2).cos())
    return torch.stack(parts, dim=-1) * said.unsqueeze(-1)


class BatchEmbedding(nn.Embedding):
    """Vectors of experimental batches; the last row stands for an unknown one, and batch dropout puts it in."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.n_batches + 1, config.hidden_size)

    def vectors(self, n_cells: int, ids: Tensor | None) -> Tensor:
        """Vectors (cells, width) of ids (cells,); of an unknown batch if None."""
        if ids is None:
            return self.weight[-1:].expand(n_cells, -1)
        if len(ids) != n_cells:
            given = number_of(len(ids), "batch id was", "batch ids were")
            raise EvaeError(f"{given} given for {number_of(n_cells, 'cell')}; give one a cell.")
        ids = ids.to(self.weight.device)
        check_ids(ids, self.num_embeddings, "batch", self.training)
        return F.embedding(ids, self.weight)
