"""EvaeARForCausalLM, the autoregressive prior: a causal language model over a cell's codes.

p(codes | perturbation, cell type) = prod_i p(code_i | codes before i, perturbation, cell type). The condition enters
every block through adaLN-Zero. The frozen tokenizer is nested, so that one checkpoint holds everything.
Source: bioRxiv 2026.06.15.732063.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .coders_evae import EvaeEncoder  # noqa: F401  (see quantization_evae)
from .configuration_evae import EvaeARConfig
from .contract_evae import EvaeError
from .heads_evae import HEAD_CLASSES  # noqa: F401  (see quantization_evae)
from .layers_evae import ModulatedBlock, check_ids, modulate
from .modeling_evae import EvaeModel, EvaePreTrainedModel, log_library

# Not used here: from a local folder, transformers up to 5.0 fetches only what a file itself imports.
from .quantization_evae import FiniteScalarQuantizer  # noqa: F401

try:
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]
from transformers.cache_utils import DynamicCache


class ConditionEmbedding(nn.Module):
    """One vector a cell from perturbation, cell type and, where the tokenizer wants it, library size.

    The last row of each table is the null condition: what is left out, and what condition dropout puts in training.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dropout = config.condition_dropout
        self.median = config.tokenizer_config.median_library_size
        self.perturbation = nn.Embedding(config.n_perturbations + 1, config.hidden_size)
        self.cell_type = nn.Embedding(config.n_cell_types + 1, config.hidden_size)
        self.library = (
            nn.Sequential(
                nn.Linear(1, config.hidden_size), nn.SiLU(), nn.Linear(config.hidden_size, config.hidden_size)
            )
            if config.tokenizer_config.condition_on_library
            else None
        )

    def forward(
        self,
        n_cells: int,
        perturbation_ids: Tensor | None,
        cell_type_ids: Tensor | None,
        library_size: Tensor | None,
    ) -> Tensor:
        """Condition vectors (cells, hidden_size)."""
        perturbation_ids = self._ids(self.perturbation, perturbation_ids, n_cells, "perturbation")
        cell_type_ids = self._ids(self.cell_type, cell_type_ids, n_cells, "cell type")
        if self.training and self.dropout > 0:
            # a third each: perturbation, cell type, both
            draw = torch.rand(n_cells, device=perturbation_ids.device) / self.dropout
            perturbation_ids = perturbation_ids.masked_fill(draw < 2 / 3, self.perturbation.num_embeddings - 1)
            drop_cell_type = (draw >= 1 / 3) & (draw < 1)
            cell_type_ids = cell_type_ids.masked_fill(drop_cell_type, self.cell_type.num_embeddings - 1)
        condition = self.perturbation(perturbation_ids) + self.cell_type(cell_type_ids)
        if self.library is not None:
            if library_size is None:
                raise EvaeError("this prior is conditioned on the library size; give library_size (cells,).")
            condition = condition + self.library(log_library(library_size, self.median).to(condition.dtype))
        return condition

    def _ids(self, table: nn.Embedding, ids: Tensor | None, n_cells: int, kind: str) -> Tensor:
        null = table.num_embeddings - 1
        if ids is None:
            return torch.full((n_cells,), null, device=table.weight.device)
        if len(ids) != n_cells:
            raise EvaeError(f"{len(ids)} {kind} ids were given for {n_cells} cells; give one a cell.")
        check_ids(ids, null + 1, kind, self.training)
        return ids.to(table.weight.device)


class EvaeARForCausalLM(EvaePreTrainedModel, GenerationMixin):
    """Causal LM over codes with a nested, frozen tokenizer."""

    config_class = EvaeARConfig
    main_input_name = "input_ids"

    def __init__(self, config: EvaeARConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.n_codes = config.tokenizer_config.n_latents
        self.tokenizer = EvaeModel(config.tokenizer_config)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(self.n_codes, width)
        self.condition = ConditionEmbedding(config)
        self.modulation = nn.Linear(width, (6 * config.num_hidden_layers + 2) * width)
        self.blocks = nn.ModuleList([ModulatedBlock(config, True, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.lm_head = nn.Linear(width, config.tokenizer_config.codebook_size)
        self.post_init()
        self.generation_config = GenerationConfig(
            do_sample=True, top_k=0, top_p=1.0, bos_token_id=config.bos_token_id, eos_token_id=None,
            max_new_tokens=self.n_codes,
        )  # fmt: skip
        self.train(self.training)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "modulation", None):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "EvaeARForCausalLM":
        """Set the training mode; the tokenizer stays frozen."""
        super().train(mode)
        self.tokenizer.eval().requires_grad_(False)
        return self

    def set_tokenizer(self, tokenizer: EvaeModel) -> None:
        """Copy a trained tokenizer's weights in."""
        self.tokenizer.load_state_dict(tokenizer.state_dict())

    def condition_modulation(
        self,
        n_cells: int,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
    ) -> Tensor:
        """What the condition does to every block, (cells, 6 * layers + 2, hidden_size)."""
        condition = self.condition(n_cells, perturbation_ids, cell_type_ids, library_size)
        return self.modulation(F.silu(condition)).unflatten(-1, (-1, self.config.hidden_size))

    def forward(
        self,
        input_ids: Tensor | None = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        codes: Tensor | None = None,
        labels: Tensor | None = None,
        modulation: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next code at every position and, with `codes` or `labels`, the loss.

        Args:
            input_ids: BOS followed by codes, (cells, tokens). Left out where `codes` is given.
            perturbation_ids, cell_type_ids: (cells,); left out means the null condition.
            library_size: total counts over the panel, (cells,), where the tokenizer is conditioned on it.
            codes: whole code sequences (cells, latents): input and target in one; logits align with them.
            labels: targets in the usual causal form, same shape as `input_ids`, shifted inside; -100 is left out.
            modulation: precomputed `condition_modulation`, in place of the conditions.
        """
        if codes is not None:
            check_ids(codes, self.config.bos_token_id, "code", self.training)
            bos = torch.full_like(codes[:, :1], self.config.bos_token_id)
            input_ids = torch.cat([bos, codes[:, :-1]], dim=1)
        if input_ids is None:
            raise EvaeError("give input_ids (BOS followed by codes) or codes.")
        if past_key_values is None:  # a generation step's own codes need no check
            check_ids(input_ids, self.config.vocab_size, "code", self.training)
        if modulation is None:
            modulation = self.condition_modulation(len(input_ids), perturbation_ids, cell_type_ids, library_size)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        logits = self._logits(input_ids, modulation, past_key_values)
        loss = None
        if codes is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        elif labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _logits(self, input_ids: Tensor, modulation: Tensor, cache: Any) -> Tensor:
        past = 0 if cache is None else cache.get_seq_length()
        if past + input_ids.shape[1] > self.n_codes + 1:
            raise EvaeError(f"a cell has {self.n_codes} codes; {past + input_ids.shape[1] - 1} were asked for.")
        positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        x = self.token_embedding(input_ids) + self.position_embedding(positions.clamp_max(self.n_codes - 1))
        for index, block in enumerate(self.blocks):
            x = block(x, modulation[:, 6 * index : 6 * index + 6], past_key_values=cache)
        shift, scale = modulation[:, -2:].unsqueeze(2).unbind(1)
        return self.lm_head(modulate(self.norm(x), shift, scale))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, modulation: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, past:],
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache", True),
            "modulation": modulation,
        }

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` over codes; samples by default, without truncation.

        Args:
            inputs: code prefixes led by BOS (cells, tokens); BOS alone if None.
            perturbation_ids, cell_type_ids, library_size: as in `forward`.
            **kwargs: anything `GenerationMixin.generate` takes, for example `num_return_sequences`.

        Returns:
            codes (cells * num_return_sequences, latents), without the BOS.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        given = [x for x in (inputs, perturbation_ids, cell_type_ids, library_size) if x is not None]
        n_cells = len(given[0]) if given else 1
        if inputs is None:
            inputs = torch.full((n_cells, 1), self.config.bos_token_id, device=self.device)
        check_ids(inputs, self.config.vocab_size, "code", self.training)
        modulation = self.condition_modulation(n_cells, perturbation_ids, cell_type_ids, library_size)
        if "max_length" in kwargs:  # the number stored in generation_config would win over it
            kwargs.setdefault("max_new_tokens", kwargs.pop("max_length") - inputs.shape[1])
        new = kwargs.setdefault("max_new_tokens", self.n_codes + 1 - inputs.shape[1])
        if inputs.shape[1] - 1 + new > self.n_codes:
            raise EvaeError(f"a cell has {self.n_codes} codes; {inputs.shape[1] - 1 + new} were asked for.")
        output: Any = super().generate(  # type: ignore[misc]
            inputs, modulation=modulation, **kwargs
        )
        if isinstance(output, Tensor):
            return output[:, 1:]
        output.sequences = output.sequences[:, 1:]
        return output

    @torch.no_grad()
    def sample_codes(
        self,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        n_cells: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw code sequences, int64 (cells, latents), by a cached loop that takes a generator."""
        given = [x for x in (perturbation_ids, cell_type_ids, library_size) if x is not None]
        n_cells = len(given[0]) if n_cells is None and given else n_cells or 1
        modulation = self.condition_modulation(n_cells, perturbation_ids, cell_type_ids, library_size)
        tokens = torch.full((n_cells, 1), self.config.bos_token_id, device=self.device)
        cache, codes = DynamicCache(), []
        for _ in range(self.n_codes):
            logits = self._logits(tokens, modulation, cache)[:, -1].float() / temperature
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            codes.append(tokens)
        return torch.cat(codes, dim=1)

    @torch.no_grad()
    def sample_cells(
        self,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw cells: codes from the prior, counts from the tokenizer's head.

        Args:
            perturbation_ids, cell_type_ids: conditions (cells,); left out means the null condition.
            library_size: total counts over the panel of every cell to draw, (cells,).
            generator: source of randomness, on the model's device.
            temperature: divides the logits of the codes.

        Returns:
            counts, float32 (cells, genes).
        """
        if library_size is None:
            raise EvaeError("give library_size (cells,), for example that of the control cells.")
        library_size = library_size.to(self.device)
        codes = self.sample_codes(
            perturbation_ids, cell_type_ids, library_size, len(library_size), generator, temperature
        )
        return self.tokenizer.sample_counts(codes, library_size, generator)


EvaeARForCausalLM.register_for_auto_class("AutoModelForCausalLM")
