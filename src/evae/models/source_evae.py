"""What a prior reads of control cells: source cells as a prompt, and the known effect of a perturbation as a condition.

A source cell is a control cell. Its latents before quantization become a few tokens that stand before the codes, so the
prior writes the cell that this control would be after the perturbation. The effect is the mean shift of the latents
that the perturbation makes in other cell types, or one that the user knows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .alignment_evae import grow_to_fit
from .contract_evae import EvaeError
from .device_evae import in_its_own_precision
from .layers_evae import log_library
from .randomness_evae import Randomness, draw_uniform

try:
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


class SourceEmbedding(nn.Module):
    """Tokens of source cells, (cells, source_cells * source_tokens, hidden_size); learned ones where there are none.

    A linear layer maps all latents of a cell to its tokens. To each its position is added, and the library size of the
    source cell: the same cell has other latents when fewer of its molecules are counted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        tokenizer, width = config.tokenizer_config, config.hidden_size
        self.n_sources, self.n_tokens, self.dropout = config.source_cells, config.source_tokens, config.source_dropout
        self.median = tokenizer.median_library_size
        self.projection = nn.Linear(tokenizer.n_latents * tokenizer.latent_width, self.n_tokens * width)
        self.position_embedding = nn.Embedding(self.n_tokens, width)
        self.none = nn.Embedding(1, width)
        self.library = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("mean", torch.zeros(tokenizer.n_latents, tokenizer.latent_width))
        self.register_buffer("std", torch.ones(tokenizer.n_latents, tokenizer.latent_width))

    def set_statistics(self, latents: Tensor) -> None:
        """Set mean and standard deviation from training cells' latents (cells, latents, latent_width)."""
        self.mean.copy_(latents.float().mean(0))
        self.std.copy_(latents.float().std(0).clamp_min(1e-5))

    @in_its_own_precision
    def forward(
        self, n_cells: int, latents: Tensor | None, library_size: Tensor | None, generator: Randomness = None
    ) -> Tensor:
        """Tokens of the source cells.

        Args:
            n_cells: cells of the batch.
            latents: of the source cells before quantization, (cells, source_cells, latents, latent_width); with one
                source cell (cells, latents, latent_width) as well.
            library_size: total counts over the panel of the source cells, (cells, source_cells) or (cells,).
            generator: source of randomness of the dropout of sources in training.
        """
        places = self.position_embedding.weight
        if latents is None:
            return (self.none.weight + places).repeat(self.n_sources, 1).expand(n_cells, -1, -1)
        shape = (n_cells, self.n_sources, *self.mean.shape)
        if latents.numel() != torch.Size(shape).numel() or library_size is None:
            raise EvaeError(
                f"source latents must be {shape} (cells, source cells, latents, width), with the library size of every "
                f"source cell; got {tuple(latents.shape)}."
            )
        values = ((latents.reshape(shape).float() - self.mean) / self.std).to(self.projection.weight.dtype)
        depth = log_library(library_size.reshape(shape[:2]), self.median).to(values.dtype)
        tokens = self.projection(values.flatten(2)).unflatten(2, (self.n_tokens, -1))
        tokens = tokens + self.library(depth).unsqueeze(2)
        if self.training and self.dropout > 0:
            dropped = draw_uniform((n_cells, 1, 1, 1), tokens.device, generator) < self.dropout
            tokens = torch.where(dropped, self.none.weight, tokens)
        return (tokens + places).flatten(1, 2)


class EffectEmbedding(nn.Module):
    """Vector of a known effect, (cells, hidden_size); a learned vector where no effect is known.

    `table` holds the effects that training found: (cell types + 1, perturbations, latents * latent_width). Row c leaves
    cell type c out, as training does; the last row is of all cell types. `known` says which there are.
    """

    table: Tensor
    known: Tensor
    scale: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        tokenizer = config.tokenizer_config
        self.width = tokenizer.n_latents * tokenizer.latent_width
        self.projection = nn.Linear(self.width, config.hidden_size)
        self.none = nn.Embedding(1, config.hidden_size)
        self.register_buffer("table", torch.zeros(config.n_cell_types + 1, config.n_effects, self.width))
        self.register_buffer("known", torch.zeros(config.n_cell_types + 1, config.n_effects))
        self.register_buffer("scale", torch.ones(1))

    def set_table(self, table: Tensor) -> None:
        """Store the effects, NaN where there is none, and their root mean square."""
        self.known.copy_(~table.isnan().any(2))
        self.table.copy_(table.nan_to_num())
        known = table[~table.isnan()]
        self.scale.copy_(known.square().mean().sqrt().clamp_min(1e-6) if len(known) else torch.ones(()))

    def add_to_table(self, table: Tensor) -> None:
        """Store those of the effects that are not known yet; what they are scaled by stays."""
        known = self.known.clone()
        self.known.copy_(torch.maximum(known, (~table.isnan().any(2)).to(known)))
        self.table.copy_(torch.where(known.unsqueeze(2) > 0, self.table, table.nan_to_num().to(self.table)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        grow_to_fit(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def effects(self) -> Tensor:
        """`table` with NaN where an effect is not known."""
        return self.table.masked_fill(self.known.unsqueeze(2) == 0, torch.nan)

    def forward(self, n_cells: int, effect: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """Vectors of effects (cells, latents * latent_width); a row of NaN is an effect that is not known.

        `hidden` says of which cells it is not to be known, bool (cells,).
        """
        none = self.none.weight.expand(n_cells, -1)
        if effect is None:
            return none
        if effect.shape != (n_cells, self.width):
            raise EvaeError(f"the effects must be ({n_cells}, {self.width}), not {tuple(effect.shape)}.")
        unknown = effect.isnan().any(1, keepdim=True)
        unknown = unknown if hidden is None else unknown | hidden.unsqueeze(1)
        values = (effect.nan_to_num() / self.scale).to(self.projection.weight.dtype)
        return torch.where(unknown, none, self.projection(values))


def init_source_buffers(module: nn.Module) -> None:
    """Initialise the buffers that training sets; `from_pretrained` builds the model with empty memory."""
    if isinstance(module, SourceEmbedding):
        init.zeros_(module.mean)
        init.ones_(module.std)
    if isinstance(module, EffectEmbedding):
        init.zeros_(module.table)
        init.zeros_(module.known)
        init.ones_(module.scale)
