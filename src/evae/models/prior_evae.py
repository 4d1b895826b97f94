"""Base class of the priors: nested tokenizer, condition embedding, DiT backbone, classifier-free guidance, sampling.

Every prior gives its loss as `prior(codes=... or latents=..., perturbation_ids, cell_type_ids, library_size).loss`.
`sample` draws codes or latents, and `sample_cells` draws counts. Classifier-free guidance (Ho & Salimans, 2022)
replaces the network's output by

    null + g (conditional - null)

where null is the output for the control, without the perturbation, or without all conditions; g = 1 is the model as
trained. A prior with `source_cells` also reads control cells, see `source_evae.py`.
Source: doi:10.64898/2026.06.15.732063.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .adaln_evae import ModulatedBlock, adaln, modulations
from .conditions_evae import ConditionEmbedding, TimeEmbedding, init_condition_buffers, tell_sizes
from .configuration_evae import COUNTS
from .contract_evae import EvaeError, near_matches
from .device_evae import cast_to
from .layers_evae import prompt_bias
from .modeling_evae import EvaeModel
from .no_tokenizer_evae import NoTokenizer
from .pretrained_evae import EvaePreTrainedModel
from .randomness_evae import CellStreams, Randomness
from .sampling_evae import cells_asked_for, check_compiler, conditions_with_nulls
from .source_evae import SourceEmbedding, init_source_buffers

try:
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]


@dataclass
class EvaePriorOutput(ModelOutput):
    """Output of the diffusion and the flow prior.

    Args:
        loss: mean over cells.
        logits: of every position's code, (cells, latents, codes) (masked diffusion).
        masked: which codes were hidden, bool (cells, latents) (masked diffusion).
        velocity: (cells, latents, latent_dim) (flow).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    masked: Tensor | None = None
    velocity: Tensor | None = None


class EvaePrior(EvaePreTrainedModel):
    """Base of the three priors; a subclass adds its output layer, `forward`, and `_draw`, which `sample` calls.

    Args:
        config: of the prior.
        token_embedding: builds the layer that maps a code, or a latent, to the backbone's width.
        is_causal: whether attention is causal.
        with_time: whether the network is also conditioned on a time.
    """

    _input_embed_layer = "token_embedding"
    training_input: ClassVar[str] = "codes"  # the argument of `forward` that holds the tokenizer's codes or latents

    def __init__(
        self, config: Any, token_embedding: Callable[[], nn.Module], is_causal: bool = False, with_time: bool = False
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.n_codes = config.tokenizer_config.n_latents
        without_latents = config.tokenizer_config.quantizer in COUNTS
        self.tokenizer: Any = (NoTokenizer if without_latents else EvaeModel)(config.tokenizer_config)
        self.token_embedding = token_embedding()
        self.position_embedding = nn.Embedding(self.n_codes, width)
        self.condition = ConditionEmbedding(config)
        self.source = SourceEmbedding(config) if config.source_cells else None
        self.time_embedding = TimeEmbedding(config) if with_time else None
        self.modulation = nn.Linear(width, (6 * config.num_hidden_layers + 2) * width)
        self.is_causal, layers = is_causal, range(config.num_hidden_layers)
        self.blocks = nn.ModuleList([ModulatedBlock(config, is_causal, index) for index in layers])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=config.layer_norm_eps)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "modulation", None):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        init_condition_buffers(module)
        init_source_buffers(module)

    def train(self, mode: bool = True) -> "EvaePrior":
        """Set the training mode; the tokenizer stays frozen and in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval().requires_grad_(False)
        return self

    def set_tokenizer(self, tokenizer: nn.Module) -> None:
        """Copy the weights of a trained tokenizer into the nested one."""
        self.tokenizer.load_state_dict(tokenizer.state_dict())

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        tell_sizes(self.config, self.condition)
        super().save_pretrained(save_directory, **kwargs)

    def set_statistics(self, tokens: Tensor) -> None:
        """Set statistics of the training cells' codes or latents before the first step; by default there are none."""

    def condition_modulation(
        self,
        n_cells: int,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        context: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
        time: Tensor | None = None,
        generator: Randomness = None,
    ) -> Tensor:
        """adaLN shifts, scales and gates of all blocks, (cells, 6 * layers + 2, hidden_size); arguments as in `sample`.

        `time` is (cells,); `generator` is the source of randomness of condition dropout.
        """
        told = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        return self._modulation(self.condition(n_cells, *told, generator), time)

    def prompt(
        self,
        n_cells: int,
        source_latents: Tensor | None = None,
        source_library_size: Tensor | None = None,
        generator: Randomness = None,
    ) -> Tensor | None:
        """Tokens of the source cells, (cells, tokens, hidden_size); None in a prior that reads none."""
        if self.source is not None:
            return self.source(n_cells, source_latents, source_library_size, generator)
        if source_latents is not None:
            raise EvaeError("this prior was trained with source_cells 0; give no source latents.")
        return None

    def _modulation(self, condition: Tensor, time: Tensor | None = None) -> Tensor:
        if self.time_embedding is not None and time is not None:
            condition = condition + self.time_embedding(time)
        condition = F.silu(condition) if self.config.modulation_activation == "silu" else condition
        return self.modulation(condition).unflatten(-1, (-1, self.config.hidden_size))

    def _placed(self, values: Tensor, positions: Tensor) -> Tensor:
        """Tokens (cells, tokens, hidden_size) from the embeddings of their values and positions."""
        return values * positions if self.config.token_product else values + positions

    def _features(self, x: Tensor, modulation: Tensor, cache: Any = None, prompt: Tensor | None = None) -> Tensor:
        """Output of the backbone for `x` (cells, tokens, hidden_size), of the same shape, after the tokens `prompt`."""
        n_prompt = 0 if prompt is None else prompt.shape[1]
        x = x if prompt is None else torch.cat([prompt.to(x.dtype), x], dim=1)
        of_blocks = iter(modulations(modulation))
        bias = None
        if self.is_causal and 0 < n_prompt < x.shape[1]:  # once for all blocks
            bias = prompt_bias(x[:1, None], cast_to(x), n_prompt)
        for block in self.blocks:
            x = block(x, list(islice(of_blocks, 6)), past_key_values=cache, n_prompt=n_prompt, bias=bias)
        shift, scale = of_blocks
        return adaln(x[:, n_prompt:], shift, scale, self.norm.eps)

    def _draw(self, condition: Tensor, prompt: Tensor | None, streams: CellStreams, guidance_scale: float) -> Tensor:
        """Draw codes or latents. A subclass may add arguments: they are its sampling options.

        `condition` is from `conditions_with_nulls`; `prompt` are the tokens of the source cells, as many rows;
        `streams` the random numbers of the cells.
        """
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        n_cells: int | None = None,
        generator: Randomness = None,
        guidance_scale: float | None = None,
        guide: str | None = None,
        context: Tensor | None = None,
        source_latents: Tensor | None = None,
        source_library_size: Tensor | None = None,
        effect: Tensor | None = None,
        treatments: Tensor | None = None,
        batch_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Draw codes, or latents with the flow; also called `sample_codes`, or `sample_latents`.

        Args:
            perturbation_ids: (cells,), or (cells, parts) for combinations, padded with -1; the null condition if None.
            cell_type_ids: (cells,); the null condition if None.
            library_size: total counts over the panel, (cells,); needed with `condition_on_library`.
            n_cells: number of cells to draw; as many as there are conditions if None.
            generator: source of randomness: a torch generator, or `CellStreams`, which has a stream for every cell.
            guidance_scale: strength of classifier-free guidance; 1 is the model as trained, None the configuration's.
            guide: the null: the "control" for the perturbation, no "perturbation", or none of "all" (perturbation and
                cell type). None takes the control in a prior that reads control cells, else no perturbation.
            context: mean tokenizer embedding of the control cells, (cells, embedding). It replaces `cell_type_ids` in a
                prior with `cell_type_context`.
            source_latents: of the source cells, before quantization, (cells, source_cells, latents, latent_width), in a
                prior with `source_cells`.
            source_library_size: total counts over the panel of the source cells, (cells, source_cells).
            effect: known latent shift, (cells, latents * latent_width), with `condition_on_effect`; NaN if unknown.
            treatments: (cells, parts, `config.treatment_size`), needed where the prior knows doses, times or kinds: the
                id of the kind, the dose in `config.dose_unit`, the time in hours, then doses in the units of
                `config.further_doses`; NaN where it has none. See `processor.treatments_of`.
            batch_ids: (cells,), with `condition_on_batch`; unknown if None.
            **options: sampling options of this prior, see its `_draw`.

        Returns:
            codes, int64 (cells, latents); with the flow, latents (cells, latents, latent_dim).
        """
        self._check_options(options)
        if options.get("compile"):
            check_compiler()
        conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        n_cells = cells_asked_for(n_cells, *conditions, source_latents)
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        condition = conditions_with_nulls(self, n_cells, conditions, guidance_scale, guide)
        prompt = self.prompt(n_cells, source_latents, source_library_size)
        if prompt is not None and guidance_scale != 1:
            prompt = torch.cat([prompt, prompt])
        start, streams = self._start(source_latents), CellStreams.of(generator, n_cells)
        return self._draw(condition, prompt, streams, guidance_scale, **start, **options)

    def _start(self, source_latents: Tensor | None) -> dict[str, Tensor]:
        return {}  # arguments of `_draw` that say where drawing starts, in place of noise

    def _check_options(self, options: Iterable[str]) -> None:
        own = [*list(inspect.signature(self._draw).parameters)[3:], "guide"]
        for name in options:
            if name not in own:
                raise EvaeError(f"{type(self).__name__} has no sampling option '{name}'. {near_matches(name, own)}")

    @torch.no_grad()
    def sample_cells(
        self,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: Randomness = None,
        decoder_perturbation_ids: Tensor | None = None,
        decoder_cell_type_ids: Tensor | None = None,
        also_independent: bool = False,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw cells: codes or latents from the prior, then counts from the tokenizer's head.

        Args:
            perturbation_ids, cell_type_ids: as in `sample`.
            library_size: total counts over the panel of every cell to draw, (cells,).
            generator: source of randomness: a torch generator, or `CellStreams`. With these a cell does not depend on
                the batch it is drawn in.
            decoder_perturbation_ids, decoder_cell_type_ids: (cells,), places in `perturbation_names` and
                `cell_type_names` of the tokenizer's configuration, where its decoder is told them.
            also_independent: draw the counts twice, the second time as other molecules of the same cells; see
                `EvaeModel.decode`.
            **options: further arguments of `sample`: `context`, `source_latents`, `source_library_size`, `effect`,
                `treatments`, `batch_ids`, `guidance_scale`, `guide`, the prior's own.

        Returns:
            counts, float32 (cells, genes); a pair of them with `also_independent`.
        """
        if library_size is None:
            raise EvaeError("give library_size (cells,), for example that of the control cells.")
        library_size = library_size.to(self.device)
        streams = CellStreams.of(generator, len(library_size))
        tokens = self.sample(
            perturbation_ids=perturbation_ids, cell_type_ids=cell_type_ids, library_size=library_size,
            n_cells=len(library_size), generator=streams, **options,
        )  # fmt: skip
        labels = {"perturbation_ids": decoder_perturbation_ids, "cell_type_ids": decoder_cell_type_ids}
        told = {name: ids.to(self.device) for name, ids in labels.items() if ids is not None}
        again = streams.fork(slice(None)) if also_independent else None
        counts = self.tokenizer.sample_counts(tokens, library_size, streams, **told)
        if again is None:
            return counts
        return counts, self.tokenizer.sample_counts(tokens, library_size, again, independent=True, **told)
