"""Condition embeddings of a prior: perturbation, cell type, library size and, in diffusion and flow, the time.

A perturbation has a learned vector, or a linear projection of its feature vector if the prior was trained with
features. Where training knew doses, times or kinds, these change it (see `treatment_embedding_evae.py`). A combination
is the sum of its parts. A cell type has a learned vector, or a linear projection of its context, the mean tokenizer
embedding of its control cells. With features or contexts, perturbations or cell types that were not seen in training
can be predicted too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment_evae import grow_to_fit
from .contract_evae import EvaeError, number_of
from .device_evae import in_its_own_precision
from .layers_evae import check_ids, log_library
from .randomness_evae import Randomness, draw_uniform
from .source_evae import EffectEmbedding
from .treatment_embedding_evae import BatchEmbedding, TreatmentEmbedding

try:
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


class ConditionEmbedding(nn.Module):
    """Sum of the embeddings of perturbation, cell type and, with `condition_on_library`, library size.

    The last row of each table is the null condition. It stands for a condition that is not given, and condition
    dropout puts it in during training.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dropout = config.condition_dropout
        self.cell_type_dropout, self.effect_dropout = config.cell_type_dropout, config.effect_dropout
        self.reads_controls = config.reads_controls
        self.median = config.tokenizer_config.median_library_size
        self.perturbation = PerturbationTable(config)
        self.cell_type = CellTypeTable(config)
        self.library = (
            nn.Sequential(
                nn.Linear(1, config.hidden_size), nn.SiLU(), nn.Linear(config.hidden_size, config.hidden_size)
            )
            if config.tokenizer_config.condition_on_library
            else None
        )
        self.effect = EffectEmbedding(config) if config.condition_on_effect else None
        self.batch = BatchEmbedding(config) if config.condition_on_batch else None
        self.batch_dropout = config.batch_dropout

    @in_its_own_precision
    def forward(
        self,
        n_cells: int,
        perturbation_ids: Tensor | None,
        cell_type_ids: Tensor | None,
        library_size: Tensor | None,
        context: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
        generator: Randomness = None,
    ) -> Tensor:
        """Condition vectors (cells, hidden_size).

        Arguments are as in `EvaePrior.sample`; `generator` is the source of randomness of condition dropout.
        """
        conditions = {"perturbation ids": perturbation_ids, "cell type ids": cell_type_ids, "contexts": context}
        conditions |= {"effects": effect, "treatments": treatments, "batch ids": batch_ids}
        for name, given in conditions.items():
            if given is not None and len(given) != n_cells:
                counted = number_of(len(given), f"{name[:-1]} was", f"{name} were")
                raise EvaeError(f"{counted} given for {number_of(n_cells, 'cell')}; give one a cell.")
        no_perturbation, no_cell_type, no_effect = self._dropped(n_cells, generator)
        condition = self.perturbation(n_cells, perturbation_ids, treatments, no_perturbation)
        condition = condition + self.cell_type(n_cells, cell_type_ids, context, no_cell_type)
        if effect is not None and self.effect is None:
            raise EvaeError("this prior was trained without condition_on_effect; give no effect.")
        if self.effect is not None:
            condition = condition + self.effect(n_cells, effect, no_effect)
        if batch_ids is not None and self.batch is None:
            raise EvaeError("this prior was trained without condition_on_batch; give no batch ids.")
        if self.batch is not None:
            condition = condition + self._batch(n_cells, batch_ids, generator)
        if self.library is not None:
            if library_size is None:
                raise EvaeError("this prior is conditioned on the library size; give library_size (cells,).")
            condition = condition + self.library(log_library(library_size, self.median).to(condition.dtype))
        return condition

    def _dropped(self, n_cells: int, generator: Randomness) -> Sequence[Tensor | None]:
        """Of which cells perturbation, cell type and effect are hidden in this training step, bool (cells,) each."""
        device = self.perturbation.weight.device
        if self.training and self.reads_controls:  # each by itself, so that every subset is learned
            drawn = draw_uniform((n_cells, 3), device, generator).unbind(1)
            rates = (self.dropout, self.cell_type_dropout, self.effect_dropout)
            return [numbers < rate for numbers, rate in zip(drawn, rates, strict=True)]
        if self.training and self.dropout > 0:  # a third each: perturbation, cell type, both
            draw = draw_uniform((n_cells, 1), device, generator).squeeze(1) / self.dropout
            return draw < 2 / 3, (draw >= 1 / 3) & (draw < 1), None
        return None, None, None

    def _batch(self, n_cells: int, ids: Tensor | None, generator: Randomness) -> Tensor:
        assert self.batch is not None
        vectors = self.batch.vectors(n_cells, ids)
        if not (self.training and self.batch_dropout > 0):
            return vectors
        dropped = draw_uniform((n_cells, 1), vectors.device, generator) < self.batch_dropout
        return torch.where(dropped, self.batch.vectors(n_cells, None), vectors)


class PerturbationTable(nn.Embedding):
    """Vectors of perturbations: learned for the first ids, projected features for the last; the last row is null."""

    features: Tensor

    def __init__(self, config: Any) -> None:
        self.n_known, n_featured = config.n_perturbations, config.n_perturbation_features
        super().__init__(self.n_known - n_featured + 1, config.hidden_size)
        self.projection = None
        if n_featured:
            self.projection = nn.Linear(config.perturbation_feature_size, config.hidden_size)
            self.register_buffer("features", torch.zeros(n_featured, config.perturbation_feature_size))
        self.treatment = TreatmentEmbedding(config) if config.reads_treatments else None

    def set_features(self, features: Tensor) -> None:
        """Store feature vectors (perturbations, features), standardized by mean and variance over all values."""
        features = features.float()
        self.features.copy_((features - features.mean()) / features.std().clamp_min(1e-8))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if grow_to_fit(self, state_dict, prefix):
            self.n_known = self.num_embeddings - 1 + (0 if self.projection is None else len(self.features))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, n_cells: int, ids: Tensor | None, treatments: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Vectors (cells, width) of ids (cells,), or (cells, parts) of combinations, where -1 is no part.

        `treatments` is (cells, parts, `treatment_size`), see `EvaePrior.sample`; where `hidden`, bool (cells,), is
        true, the vector is the null.
        """
        if ids is None:
            return self.weight[-1:].expand(n_cells, -1)
        ids = ids.to(self.weight.device)
        each = ids.unsqueeze(1) if ids.dim() == 1 else ids
        self._check(each, treatments)
        if self.treatment is None and ids.dim() == 1:
            return self._vectors(ids if hidden is None else ids.masked_fill(hidden, self.n_known))
        vectors = self._vectors(each.clamp_min(0))
        if self.treatment is not None and treatments is not None:
            vectors = self.treatment(vectors, treatments.to(ids.device))
        vectors = (vectors * (each >= 0).unsqueeze(-1)).sum(1)
        return vectors if hidden is None else torch.where(hidden.unsqueeze(1), self.weight[-1:], vectors)

    def _check(self, ids: Tensor, treatments: Tensor | None) -> None:
        check_ids(ids[:, :1], self.n_known + 1, "perturbation", self.training)
        if ids.shape[1] > 1:
            check_ids(ids[:, 1:].clamp_min(0), self.n_known + 1, "perturbation", self.training)
        if self.treatment is None and treatments is not None:
            raise EvaeError("this prior was trained without doses, times and kinds; give no treatments.")
        wanted = (*ids.shape, 1 + len(self.treatment.ranges)) if self.treatment is not None else ()
        if wanted and (treatments is None or treatments.shape != wanted):
            given = "none" if treatments is None else tuple(treatments.shape)
            raise EvaeError(f"this prior reads treatments of the shape {wanted}; {given} were given.")

    def _vectors(self, ids: Tensor) -> Tensor:
        if self.projection is None:
            return F.embedding(ids, self.weight)
        null = self.num_embeddings - 1
        learned = F.embedding(ids.clamp_max(null), self.weight)
        row = (ids - null).clamp(0, len(self.features) - 1)
        featured = self.projection(self.features[row].to(self.weight.dtype))
        return torch.where(((ids >= null) & (ids < self.n_known)).unsqueeze(-1), featured, learned)


class CellTypeTable(nn.Embedding):
    """Vectors of cell types, learned or projected from contexts; the last row is the null."""

    contexts: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: Any) -> None:
        self.n_known, self.by_context = config.n_cell_types, config.cell_type_context
        super().__init__(1 if self.by_context else self.n_known + 1, config.hidden_size)
        if self.by_context:
            size = config.tokenizer_config.embedding_size
            self.projection = nn.Linear(size, config.hidden_size)
            self.register_buffer("contexts", torch.zeros(self.n_known, size))
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("std", torch.ones(size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if grow_to_fit(self, state_dict, prefix):
            self.n_known = len(self.contexts) if self.by_context else self.num_embeddings - 1
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def add_contexts(self, contexts: Tensor) -> None:
        """Store those of `contexts` (cell types, embedding) whose cell type has none; what they are scaled by stays."""
        lacking = self.contexts.abs().sum(1, keepdim=True) == 0
        self.contexts.copy_(torch.where(lacking, contexts.to(self.contexts), self.contexts))

    def set_contexts(self, contexts: Tensor) -> None:
        """Store the contexts of the training cell types, (cell types, embedding)."""
        self.contexts.copy_(contexts)
        seen = contexts[contexts.abs().sum(1) > 0]  # a vocabulary may name cell types without training cells
        self.mean.copy_(seen.mean(0))
        spread = seen.std(0, unbiased=False)
        self.std.copy_(spread + 0.1 * spread.mean() + 1e-6)  # near-constant values are not scaled up

    def forward(
        self, n_cells: int, ids: Tensor | None, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Vectors (cells, width) of ids (cells,), or of contexts (cells, embedding).

        Where `hidden`, bool (cells,), is true, the vector is the null.
        """
        if ids is None and context is None:
            return self.weight[-1:].expand(n_cells, -1)
        if context is not None and not self.by_context:
            raise EvaeError("this prior knows cell types by name; give cell_type_ids, not context.")
        if ids is not None and context is not None:
            raise EvaeError("cell_type_ids and context both say what the cell type is; give one of them.")
        if ids is not None:
            ids = ids.to(self.weight.device)
            check_ids(ids, self.n_known + 1, "cell type", self.training)
            ids = ids if hidden is None else ids.masked_fill(hidden, self.n_known)
            if not self.by_context:
                return F.embedding(ids, self.weight)
            vectors = self._project(self.contexts[ids.clamp_max(self.n_known - 1)])
            return torch.where((ids < self.n_known).unsqueeze(-1), vectors, self.weight[-1:])
        assert context is not None
        if context.shape[1:] != self.mean.shape:
            raise EvaeError(f"context must be (cells, {len(self.mean)}), not {tuple(context.shape)}.")
        vectors = self._project(context.to(self.mean))
        return vectors if hidden is None else torch.where(hidden.unsqueeze(1), self.weight[-1:], vectors)

    def _project(self, contexts: Tensor) -> Tensor:
        return self.projection(((contexts - self.mean) / self.std).to(self.weight.dtype))


def tell_sizes(config: Any, condition: Any) -> None:
    """Set the sizes of vocabularies in a configuration: they grew where an adapter was loaded that knows more."""
    config.n_perturbations, config.n_cell_types = condition.perturbation.n_known, condition.cell_type.n_known
    if condition.effect is not None:
        config.n_effects = condition.effect.table.shape[1]


def init_condition_buffers(module: nn.Module) -> None:
    """Initialise the buffers that training sets; `from_pretrained` builds the model with empty memory."""
    if isinstance(module, PerturbationTable) and module.projection is not None:
        init.zeros_(module.features)
    if isinstance(module, CellTypeTable) and module.by_context:
        init.zeros_(module.contexts)
        init.zeros_(module.mean)
        init.ones_(module.std)


class TimeEmbedding(nn.Module):
    """Cosines and sines of the scaled time at frequencies from 1 to about 1/10,000, then linear, SiLU, linear."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_frequencies, self.scale = config.time_frequencies, config.time_scale
        self.n_steps = max(1, self.n_frequencies - bool(config.time_endpoint))  # from 1 to 1/10,000
        self.up = nn.Linear(2 * self.n_frequencies, config.hidden_size)
        self.down = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, time: Tensor) -> Tensor:
        """`time` (cells,) in [0, 1] -> (cells, width)."""
        steps = torch.arange(self.n_frequencies, device=time.device, dtype=torch.float32) / self.n_steps
        angles = self.scale * time.float().unsqueeze(-1) * torch.exp(-math.log(10_000) * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(waves)))
