"""EvaeMDLMModel, the masked diffusion prior: codes are hidden at random and a bidirectional network fills them in.

At time t every code is hidden with probability t (log-linear schedule). With CE_i the cross-entropy of code i given
the codes in sight, the condition and, in MDLM but not in RADD, the time, the bound on the likelihood is

    -log p(codes) <= integral over t in (0, 1) of (1 / t) E sum over hidden i of CE_i

MDLM: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", 2024. RADD: Ou et al., "Your Absorbing
Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data", 2024.
Source: doi:10.64898/2026.06.15.732063.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Not all are used here: from a local folder, transformers up to 5.0 fetches only what a file itself imports.
from .alignment_evae import align_weights  # noqa: F401
from .coders_evae import EvaeEncoder  # noqa: F401
from .conditions_evae import ConditionEmbedding  # noqa: F401
from .configuration_evae import EvaeConfig  # noqa: F401
from .configuration_evae_prior import EvaeMDLMConfig
from .contract_evae import EvaeError
from .heads_evae import HEAD_CLASSES  # noqa: F401
from .layers_evae import check_ids
from .modeling_evae import EvaeModel  # noqa: F401
from .no_tokenizer_evae import NoTokenizer  # noqa: F401
from .prior_evae import EvaePrior, EvaePriorOutput, guided
from .quantization_evae import FiniteScalarQuantizer  # noqa: F401
from .randomness_evae import CellStreams, Randomness, categorical

FIRST_TIME = 1e-3  # training times begin here: the weight 1 / t knows no bound
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

    def forward(
        self,
        codes: Tensor,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        context: Tensor | None = None,
        time: Tensor | None = None,
        masked: Tensor | None = None,
        generator: Randomness = None,
        **kwargs: Any,
    ) -> EvaePriorOutput:
        """Hide codes and say what they were.

        Args:
            codes: whole code sequences (cells, latents).
            perturbation_ids, cell_type_ids, library_size, context: as in `sample`.
            time: (cells,) in (0, 1]; drawn evenly spread over the cells if None.
            masked: which codes to hide, bool (cells, latents); drawn with probability `time` if None.
            generator: of all that is drawn; see `EvaeModel.forward`.

        Returns:
            `loss`: the bound above over the number of latents, nats a code, mean over cells; logits; masked.
        """
        self._check_codes(codes)
        streams = CellStreams.of(generator, len(codes))
        if time is None:
            time = FIRST_TIME + (1 - FIRST_TIME) * streams.spread(codes.device)
        if masked is None:
            masked = streams.uniform(self.n_codes, device=codes.device) < time.unsqueeze(1)
        conditions = (perturbation_ids, cell_type_ids, library_size, context)
        modulation = self.condition_modulation(len(codes), *conditions, time=time, generator=streams)
        logits = self._logits(codes.masked_fill(masked, self.config.mask_token_id), modulation)
        loss = (_hidden_losses(logits, codes, masked) / time).mean() / self.n_codes
        return EvaePriorOutput(loss=loss, logits=logits, masked=masked)

    def _check_codes(self, codes: Tensor) -> None:
        check_ids(codes, self.config.mask_token_id, "code", self.training)
        if codes.shape[1] != self.n_codes:
            raise EvaeError(f"a cell has {self.n_codes} codes; {codes.shape[1]} were given.")

    def _logits(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Logits (cells, latents, codes) of `tokens` (cells, latents), where hidden codes are the mask id."""
        x = self.token_embedding(tokens) + self.position_embedding.weight
        return self.lm_head(self._features(x, modulation))

    def _draw(
        self,
        condition: Tensor,
        streams: CellStreams,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        num_steps: int | None = None,
        order: str = "random",
        compile: bool = False,
    ) -> Tensor:
        """Draw code sequences, int64 (cells, latents); a code once revealed stays.

        Args:
            condition, streams, guidance_scale: see `EvaePrior._draw`.
            temperature: divides the logits.
            num_steps: steps from time 1 to 0; the network is called at most as often as a cell has codes.
            order: "random" (the diffusion's own, ancestral sampling) or "confidence" (in every step the
                likeliest of the codes drawn; for few steps, and no longer the model's distribution).
            compile: compile the network by `torch.compile`: takes up to some minutes at the first call.
        """
        num_steps = self.config.sampling_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise EvaeError(f"num_steps is {num_steps}; give at least 1.")
        if order not in ORDERS:
            raise EvaeError(f"order '{order}' does not exist; choose one of {', '.join(ORDERS)}.")

        def network(tokens: Tensor, time: Tensor) -> Tensor:
            return self._logits(tokens, self._modulation(condition, time)).float()

        network = torch.compile(network) if compile else network

        def probabilities(tokens: Tensor, time: Tensor) -> Tensor:
            return (guided(network, guidance_scale, tokens, time) / temperature).softmax(-1)

        reveal = self._reveal_at_random if order == "random" else self._reveal_by_confidence
        return reveal(probabilities, streams, num_steps)

    sample_codes = EvaePrior.sample

    def _reveal_at_random(self, probabilities: Callable[..., Tensor], streams: CellStreams, num_steps: int) -> Tensor:
        """Ancestral sampling: a code is revealed at a uniform time, whatever the other codes do."""
        when, uniform = streams.uniform(2, self.n_codes).to(self.device).unbind(1)
        call_of_code, times = plan_calls(when, num_steps)
        tokens = torch.full_like(call_of_code, self.config.mask_token_id)
        for call in range(int(call_of_code.max()) + 1):
            drawn = categorical(probabilities(tokens, times[:, call]), uniform)
            tokens = torch.where(call_of_code == call, drawn, tokens)
        return tokens

    def _reveal_by_confidence(
        self, probabilities: Callable[..., Tensor], streams: CellStreams, num_steps: int
    ) -> Tensor:
        """In every step, draw all hidden codes and keep those drawn with the highest probability."""
        num_steps = min(num_steps, self.n_codes)
        uniform = streams.uniform(num_steps, self.n_codes).to(self.device)
        tokens = torch.full((len(streams), self.n_codes), self.config.mask_token_id, device=self.device)
        n_hidden = self.n_codes
        for step in range(num_steps):
            time = torch.full((len(streams),), n_hidden / self.n_codes, device=self.device)
            shares = probabilities(tokens, time)
            drawn = categorical(shares, uniform[:, step])
            confidence = shares.gather(2, drawn.unsqueeze(2)).squeeze(2)
            confidence = confidence.masked_fill(tokens != self.config.mask_token_id, -1)
            left = self.n_codes * (num_steps - step - 1) // num_steps
            chosen = confidence.topk(n_hidden - left, dim=1).indices
            tokens = tokens.scatter(1, chosen, drawn.gather(1, chosen))
            n_hidden = left
        return tokens

    @torch.no_grad()
    def score(
        self,
        codes: Tensor,
        perturbation_ids: Tensor | None = None,
        cell_type_ids: Tensor | None = None,
        library_size: Tensor | None = None,
        context: Tensor | None = None,
        n_samples: int = 1,
        generator: Randomness = None,
    ) -> Tensor:
        """Unbiased estimate of the lower bound (ELBO) on the log-likelihood, nats a cell, (cells,).

        The integral is taken over the number m of hidden codes, each of which has the weight 1 / m and a time that
        is the m-th smallest of as many uniform draws as there are codes: no draw of a small time blows it up.

        Args:
            codes: code sequences (cells, latents).
            perturbation_ids, cell_type_ids, library_size, context: as in `sample`.
            n_samples: orders of hiding to average over; each takes one network call for every code.
            generator: a torch generator, or `CellStreams`.
        """
        self._check_codes(codes)
        condition = self.condition(len(codes), perturbation_ids, cell_type_ids, library_size, context)
        streams = CellStreams.of(generator, len(codes))
        total = torch.zeros(len(codes), device=codes.device)
        for _ in range(n_samples):
            times, order = streams.uniform(self.n_codes).to(codes.device).sort(dim=1)
            rank = order.argsort(dim=1)
            for hidden in range(1, self.n_codes + 1):
                masked = rank < hidden
                modulation = self._modulation(condition, times[:, hidden - 1])
                logits = self._logits(codes.masked_fill(masked, self.config.mask_token_id), modulation)
                total -= _hidden_losses(logits, codes, masked) / hidden
        return total / n_samples


def _hidden_losses(logits: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy summed over the hidden codes, nats, (cells,)."""
    losses = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none")
    return (losses * masked).sum(1)


def plan_calls(when: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """In which network call a code is revealed, and the times of the calls.

    Of `num_steps` equal steps from time 1 to 0 a cell needs only those in which one of its codes is revealed, so
    every cell goes through its own steps, and all cells together need no more calls than a cell has codes.

    Args:
        when: uniform draws on [0, 1), (cells, latents): how far on the way from time 1 to 0.
        num_steps: steps.

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
