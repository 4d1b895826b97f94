"""EvaeARForCausalLM, the autoregressive prior: a causal language model over a cell's codes.

p(codes | perturbation, cell type) = prod_i p(code_i | codes before i, perturbation, cell type). The condition enters
every block through adaLN-Zero. The frozen tokenizer is nested, so that one checkpoint holds everything.
Source: doi:10.64898/2026.06.15.732063.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

# All files of the model are imported here, used or not: from a local folder, transformers up to 5.0 copies only the
# files that this one imports itself.
from .adaln_evae import ModulatedBlock  # noqa: F401
from .alignment_evae import align_weights  # noqa: F401
from .code_writer_evae import write_codes
from .coders_evae import EvaeEncoder  # noqa: F401
from .conditions_evae import ConditionEmbedding  # noqa: F401
from .configuration_evae import EvaeConfig  # noqa: F401
from .configuration_evae_prior import EvaeARConfig
from .contract_evae import EvaeError
from .count_embedding_evae import CountEmbedding  # noqa: F401
from .device_evae import on_accelerator
from .heads_evae import HEAD_CLASSES  # noqa: F401
from .labels_evae import DecoderConditions  # noqa: F401
from .layers_evae import check_ids
from .modeling_evae import EvaeModel  # noqa: F401
from .no_tokenizer_evae import NoTokenizer  # noqa: F401
from .pretrained_evae import EvaePreTrainedModel  # noqa: F401
from .prior_evae import EvaePrior
from .quantization_evae import FiniteScalarQuantizer  # noqa: F401
from .randomness_evae import CellStreams, Randomness
from .sampling_evae import cells_asked_for, temperature_of
from .source_evae import SourceEmbedding  # noqa: F401
from .treatment_embedding_evae import TreatmentEmbedding  # noqa: F401


class EvaeARForCausalLM(EvaePrior, GenerationMixin):
    """Causal LM over codes with a nested, frozen tokenizer."""

    config_class = EvaeARConfig
    main_input_name = "input_ids"

    def __init__(self, config: EvaeARConfig) -> None:
        super().__init__(config, lambda: nn.Embedding(config.vocab_size, config.hidden_size), is_causal=True)
        self.lm_head = nn.Linear(config.hidden_size, config.tokenizer_config.codebook_size)
        self.post_init()
        self.generation_config = GenerationConfig(
            do_sample=True, top_k=0, top_p=1.0, bos_token_id=config.bos_token_id, eos_token_id=None,
            max_new_tokens=self.n_codes,
        )  # fmt: skip
        self.train(self.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        codes: Tensor | None = None,
        labels: Tensor | None = None,
        context: Tensor | None = None,
        source_latents: Tensor | None = None,
        source_library_size: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
        modulation: Tensor | None = None,
        prompt: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        generator: Randomness = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (cells, tokens, vocab_size) of the next code and, with `codes` or `labels`, the loss.

        Args:
            input_ids: BOS followed by codes, (cells, tokens). Left out where `codes` is given.
            perturbation_ids, cell_type_ids, library_size, context, effect: as in `sample`.
            source_latents, source_library_size, treatments, batch_ids: likewise.
            codes: whole code sequences (cells, latents), both input and target. Logits i are those of code i.
            labels: targets of the same shape as `input_ids`. They are shifted inside, and -100 is ignored.
            modulation: precomputed `condition_modulation`, instead of the conditions.
            prompt: precomputed `prompt`, with `modulation`; left out where the cache holds it already.
            generator: source of randomness of condition dropout; see `EvaeModel.forward`.
        """
        if codes is not None:
            check_ids(codes, self.config.bos_token_id, "code", self.training)
            input_ids = F.pad(codes[:, :-1], (1, 0), value=self.config.bos_token_id)
        if input_ids is None:
            raise EvaeError("give input_ids (BOS followed by codes) or codes.")
        if past_key_values is None:  # `generate` checks the prefix, and draws valid codes
            check_ids(input_ids, self.config.vocab_size, "code", self.training)
        if modulation is None:
            conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
            modulation = self.condition_modulation(len(input_ids), *conditions, generator=generator)
            prompt = self.prompt(len(input_ids), source_latents, source_library_size, generator)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        logits = self._logits(input_ids, modulation, past_key_values, prompt)
        loss = None
        if codes is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        elif labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        # BOS is in the vocabulary but must never be drawn. Not -inf, because then p log p would be NaN.
        logits = F.pad(logits, (0, 1), value=torch.finfo(logits.dtype).min)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    @property
    def n_prompt(self) -> int:
        """Tokens of the source cells, which stand before BOS in a cache of keys and values."""
        return int(self.config.source_cells * self.config.source_tokens)

    def _past(self, cache: Any) -> int:
        """How many codes, BOS included, a cache holds."""
        return 0 if cache is None else max(cache.get_seq_length() - self.n_prompt, 0)

    def _logits(self, input_ids: Tensor, modulation: Tensor, cache: Any, prompt: Tensor | None) -> Tensor:
        past = self._past(cache)
        if past + input_ids.shape[1] > self.n_codes + 1:
            raise EvaeError(f"a cell has {self.n_codes} codes; ask for no more, not {past + input_ids.shape[1] - 1}.")
        last = past + input_ids.shape[1]
        if last <= self.n_codes:
            places = self.position_embedding.weight[past:last]
        else:  # what follows the last code has its place
            places = self.position_embedding(
                torch.arange(past, last, device=input_ids.device).clamp_max(self.n_codes - 1)
            )
        x = self._placed(self.token_embedding(input_ids), places)
        return self.lm_head(self._features(x, modulation, cache, prompt))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        modulation: Tensor | None = None,
        prompt: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        past = self._past(past_key_values)
        return {
            "input_ids": input_ids[:, past:],
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache", True),
            "modulation": modulation,
            "prompt": None if past else prompt,
        }

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        context: Tensor | None = None,
        source_latents: Tensor | None = None,
        source_library_size: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`generate` of transformers over codes. By default it samples from the full distribution.

        Args:
            inputs: BOS followed by codes, (cells, tokens); BOS alone if None.
            perturbation_ids, cell_type_ids, library_size, context, effect: as in `sample`.
            source_latents, source_library_size, treatments, batch_ids: likewise.
            **kwargs: anything `GenerationMixin.generate` takes, for example `num_return_sequences`.

        Returns:
            codes (cells * num_return_sequences, latents), without the BOS.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        n_cells = cells_asked_for(None, inputs, *conditions, source_latents)
        if inputs is None:
            inputs = torch.full((n_cells, 1), self.config.bos_token_id, device=self.device)
        check_ids(inputs, self.config.vocab_size, "code", self.training)
        modulation = self.condition_modulation(n_cells, *conditions)
        if "max_length" in kwargs:  # max_new_tokens in generation_config would override it
            kwargs.setdefault("max_new_tokens", kwargs.pop("max_length") - inputs.shape[1])
        n_new = kwargs.setdefault("max_new_tokens", self.n_codes + 1 - inputs.shape[1])
        if inputs.shape[1] - 1 + n_new > self.n_codes:
            raise EvaeError(f"a cell has {self.n_codes} codes; ask for no more, not {inputs.shape[1] - 1 + n_new}.")
        output: Any = super().generate(  # type: ignore[misc]
            inputs, modulation=modulation, prompt=self.prompt(n_cells, source_latents, source_library_size), **kwargs
        )
        if isinstance(output, Tensor):
            return output[:, 1:]
        output.sequences = output.sequences[:, 1:]
        return output

    def _draw(
        self,
        condition: Tensor,
        prompt: Tensor | None,
        streams: CellStreams,
        guidance_scale: float = 1.0,
        temperature: float | None = None,
        compile: bool = False,
    ) -> Tensor:
        """Draw code sequences, int64 (cells, latents), with a key/value cache.

        Args:
            condition, prompt, streams, guidance_scale: see `EvaePrior._draw`.
            temperature: divides the logits; the configuration's if None.
            compile: compile a decoding step with `torch.compile`, on a GPU as a CUDA graph. The first call takes up to
                some minutes. Its buffers are kept for the next call.
        """
        if on_accelerator(self.device):  # finding out which conditions are alike takes longer there
            modulation = self._modulation(condition)
        else:
            distinct, row = condition.unique(dim=0, return_inverse=True)
            modulation = self._modulation(distinct)  # once for each distinct condition, not in every step
            modulation = modulation if len(distinct) == 1 else modulation[row]
        uniform = streams.uniform(self.n_codes).to(self.device)
        heat = temperature_of(self.config, temperature)
        return write_codes(self, modulation, uniform, guidance_scale, heat, compile, prompt)

    sample_codes = EvaePrior.sample

    @torch.no_grad()
    def score(
        self,
        codes: Tensor,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        context: Tensor | None = None,
        source_latents: Tensor | None = None,
        source_library_size: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood of code sequences (cells, latents), nats a cell, (cells,); conditions as in `sample`."""
        logits = self(
            None, perturbation_ids, cell_type_ids, library_size, codes=codes, context=context,
            source_latents=source_latents, source_library_size=source_library_size, effect=effect,
            treatments=treatments, batch_ids=batch_ids, return_dict=True,
        ).logits  # fmt: skip
        return -F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none").sum(1)


EvaeARForCausalLM.register_for_auto_class("AutoModelForCausalLM")
