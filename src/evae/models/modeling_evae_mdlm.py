"""EvaeMDLMModel, the masked diffusion prior: codes are masked at random and a bidirectional network fills them in.

At time t every code is masked with probability t (log-linear schedule). CE_i is the cross-entropy of code i given the
unmasked codes and the condition; in MDLM also given the time, in RADD not. The bound on the likelihood (ELBO) is

    -log p(codes) <= integral over t in (0, 1) of (1 / t) E sum over masked i of CE_i

MDLM: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", 2024. RADD: Ou et al., "Your Absorbing
Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data", 2024.
Source: doi:10.64898/2026.06.15.732063.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import can_return_tuple

# All files of the model are imported here, used or not: from a local folder, transformers up to 5.0 copies only the
# files that this one imports itself.
from .adaln_evae import ModulatedBlock  # noqa: F401
from .alignment_evae import align_weights  # noqa: F401
from .coders_evae import EvaeEncoder  # noqa: F401
from .conditions_evae import ConditionEmbedding  # noqa: F401
from .configuration_evae import EvaeConfig  # noqa: F401
from .configuration_evae_prior import EvaeMDLMConfig
from .contract_evae import EvaeError
from .count_embedding_evae import CountEmbedding  # noqa: F401
from .device_evae import on_accelerator  # noqa: F401
from .heads_evae import HEAD_CLASSES  # noqa: F401
from .labels_evae import DecoderConditions  # noqa: F401
from .layers_evae import check_ids
from .modeling_evae import EvaeModel  # noqa: F401
from .no_tokenizer_evae import NoTokenizer  # noqa: F401
from .pretrained_evae import EvaePreTrainedModel  # noqa: F401
from .prior_evae import EvaePrior, EvaePriorOutput
from .quantization_evae import FiniteScalarQuantizer  # noqa: F401
from .randomness_evae import CellStreams, Randomness, categorical
from .sampling_evae import guided, temperature_of
from .source_evae import SourceEmbedding  # noqa: F401
from .treatment_embedding_evae import TreatmentEmbedding  # noqa: F401

FIRST_TIME = 1e-3  # smallest time in training, because the weight 1 / t is unbounded
ORDERS = ("random", "confidence")


class EvaeMDLMModel(EvaePrior):
    """Absorbing-state diffusion over codes with a nested, frozen tokenizer."""

    config_class = EvaeMDLMConfig
    main_input_name = "codes"

    def __init__(self, config: EvaeMDLMConfig) -> None:
        super().__init__(
            config,
            lambda: nn.Embedding(config.vocab_size, config.hidden_size),
            with_time=config.time_conditioned,
        )
        self.lm_head = nn.Linear(config.hidden_size, config.tokenizer_config.codebook_size)
        self.post_init()
        self.train(self.training)

    @can_return_tuple
    def forward(
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
        time: Tensor | None = None,
        masked: Tensor | None = None,
        generator: Randomness = None,
        **kwargs: Any,
    ) -> EvaePriorOutput:
        """Mask codes and predict them.

        Args:
            codes: whole code sequences (cells, latents).
            perturbation_ids, cell_type_ids, library_size, context, effect: as in `sample`.
            source_latents, source_library_size, treatments, batch_ids: likewise.
            time: (cells,) in (0, 1]; drawn evenly spread over the cells if None.
            masked: which codes to mask, bool (cells, latents); drawn with probability `time` if None.
            generator: source of randomness of time, mask and condition dropout; see `EvaeModel.forward`.

        Returns:
            `loss`, the bound above divided by the number of latents, in nats a code, mean over cells; `logits`;
            `masked`.
        """
        self._check_codes(codes)
        streams = CellStreams.of(generator, len(codes))
        if time is None:
            time = FIRST_TIME + (1 - FIRST_TIME) * streams.spread(codes.device)
        if masked is None:
            masked = streams.uniform(self.n_codes, device=codes.device) < time.unsqueeze(1)
        conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        modulation = self.condition_modulation(len(codes), *conditions, time=time, generator=streams)
        prompt = self.prompt(len(codes), source_latents, source_library_size, streams)
        logits = self._logits(codes.masked_fill(masked, self.config.mask_token_id), modulation, prompt)
        loss = (_masked_losses(logits, codes, masked) / time).mean() / self.n_codes
        return EvaePriorOutput(loss=loss, logits=logits, masked=masked)

    def _check_codes(self, codes: Tensor) -> None:
        check_ids(codes, self.config.mask_token_id, "code", self.training)
        if codes.shape[1] != self.n_codes:
            raise EvaeError(f"a cell has {self.n_codes} codes; {codes.shape[1]} were given; give all of them.")

    def _logits(self, tokens: Tensor, modulation: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Logits (cells, latents, codes) of `tokens` (cells, latents), in which masked codes are the mask token."""
        values, positions = self.token_embedding(tokens), self.position_embedding.weight
        x = self._placed(values, positions)
        if self.config.token_product:  # a masked code has no value to multiply with
            x = torch.where((tokens == self.config.mask_token_id).unsqueeze(-1), values + positions, x)
        return self.lm_head(self._features(x, modulation, prompt=prompt))

    def _draw(
        self,
        condition: Tensor,
        prompt: Tensor | None,
        streams: CellStreams,
        guidance_scale: float = 1.0,
        temperature: float | None = None,
        num_steps: int | None = None,
        order: str = "random",
        compile: bool = False,
    ) -> Tensor:
        """Draw code sequences, int64 (cells, latents). A code does not change after it is unmasked.

        Args:
            condition, prompt, streams, guidance_scale: see `EvaePrior._draw`.
            temperature: divides the logits; the configuration's if None.
            num_steps: number of steps from time 1 to 0. The network is called at most once for each code of a cell.
            order: "random" is ancestral sampling. "confidence" unmasks the most probable of the codes drawn in every
                step. That suits few steps, but does not sample the model's distribution.
            compile: compile the network with `torch.compile`. The first call takes up to some minutes.
        """
        num_steps = self.config.sampling_steps if num_steps is None else num_steps
        heat = temperature_of(self.config, temperature)
        if num_steps < 1:
            raise EvaeError(f"num_steps is {num_steps}; give at least 1.")
        if order not in ORDERS:
            raise EvaeError(f"order '{order}' does not exist; choose one of {', '.join(ORDERS)}.")

        def network(tokens: Tensor, time: Tensor) -> Tensor:
            return self._logits(tokens, self._modulation(condition, time), prompt).float()

        network = torch.compile(network) if compile else network

        def probabilities(tokens: Tensor, time: Tensor) -> Tensor:
            return (guided(network, guidance_scale, tokens, time) / heat).softmax(-1)

        unmask = self._unmask_at_random if order == "random" else self._unmask_by_confidence
        return unmask(probabilities, streams, num_steps)

    sample_codes = EvaePrior.sample

    def _unmask_at_random(self, probabilities: Callable[..., Tensor], streams: CellStreams, num_steps: int) -> Tensor:
        """Ancestral sampling: each code is unmasked at a uniform time, independently of the others."""
        when, uniform = streams.uniform(2, self.n_codes).to(self.device).unbind(1)
        call_of_code, times = plan_calls(when, num_steps)
        tokens = torch.full_like(call_of_code, self.config.mask_token_id)
        for call in range(int(call_of_code.max()) + 1):
            drawn = categorical(probabilities(tokens, times[:, call]), uniform)
            tokens = torch.where(call_of_code == call, drawn, tokens)
        return tokens

    def _unmask_by_confidence(
        self, probabilities: Callable[..., Tensor], streams: CellStreams, num_steps: int
    ) -> Tensor:
        """In every step, draw all masked codes and keep those drawn with the highest probability."""
        num_steps = min(num_steps, self.n_codes)
        uniform = streams.uniform(num_steps, self.n_codes).to(self.device)
        tokens = torch.full((len(streams), self.n_codes), self.config.mask_token_id, device=self.device)
        n_masked = self.n_codes
        for step in range(num_steps):
            time = torch.full((len(streams),), n_masked / self.n_codes, device=self.device)
            shares = probabilities(tokens, time)
            drawn = categorical(shares, uniform[:, step])
            confidence = shares.gather(2, drawn.unsqueeze(2)).squeeze(2)
            confidence = confidence.masked_fill(tokens != self.config.mask_token_id, -1)
            left = self.n_codes * (num_steps - step - 1) // num_steps
            chosen = confidence.topk(n_masked - left, dim=1).indices
            tokens = tokens.scatter(1, chosen, drawn.gather(1, chosen))
            n_masked = left
        return tokens

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
        n_samples: int = 1,
        generator: Randomness = None,
    ) -> Tensor:
        """Unbiased estimate of the lower bound (ELBO) on the log-likelihood, nats a cell, (cells,).

        The integral over time becomes a sum over the number m of masked codes, in which each has the weight 1 / m.
        Its time is the m-th smallest of as many uniform draws as there are codes. So no small time makes the variance
        large.

        Args:
            codes: code sequences (cells, latents).
            perturbation_ids, cell_type_ids, library_size, context, effect: as in `sample`.
            source_latents, source_library_size, treatments, batch_ids: likewise.
            n_samples: random orders of masking to average over. Each takes one network call for every code.
            generator: source of randomness: a torch generator, or `CellStreams`.
        """
        self._check_codes(codes)
        conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        condition = self.condition(len(codes), *conditions)
        prompt = self.prompt(len(codes), source_latents, source_library_size)
        streams = CellStreams.of(generator, len(codes))
        total = torch.zeros(len(codes), device=codes.device)
        for _ in range(n_samples):
            times, order = streams.uniform(self.n_codes).to(codes.device).sort(dim=1)
            rank = order.argsort(dim=1)
            for n_masked in range(1, self.n_codes + 1):
                masked = rank < n_masked
                modulation = self._modulation(condition, times[:, n_masked - 1])
                logits = self._logits(codes.masked_fill(masked, self.config.mask_token_id), modulation, prompt)
                total -= _masked_losses(logits, codes, masked) / n_masked
        return total / n_samples


def _masked_losses(logits: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy summed over the masked codes, nats, (cells,)."""
    losses = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none")
    return (losses * masked).sum(1)


def plan_calls(when: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """In which network call each code is unmasked, and the times of the calls.

    There are `num_steps` equal steps from time 1 to 0. A cell needs a call only in the steps that unmask one of its
    codes. So every cell has its own steps, and a batch needs no more calls than a cell has codes.

    Args:
        when: uniform draws on [0, 1), (cells, latents). A code is unmasked at time 1 - `when`.
        num_steps: number of steps.

    Returns:
        the call of every code, int64 (cells, latents), and the time of every call, (cells, latents).
    """
    step, order = (when.double() * num_steps).long().clamp_max(num_steps - 1).sort(dim=1)
    new = torch.zeros_like(step)
    new[:, 1:] = step[:, 1:] != step[:, :-1]
    call = new.cumsum(1)
    times = torch.ones_like(when).scatter(1, call, (1 - step.double() / num_steps).to(when.dtype))
    return torch.empty_like(call).scatter(1, order, call), times


EvaeMDLMModel.register_for_auto_class("AutoModel")
