"""EvaeFlowModel, the flow prior: conditional flow matching from noise to the latents of a Gaussian tokenizer.

With noise e and a standardised latent x, the path is z_t = (1 - t) e + t x. The network learns its velocity:

    loss = E | v(z_t, t, condition) - (x - e) |^2

Sampling integrates dz/dt = v from t = 0 to 1. Lipman et al., "Flow Matching for Generative Modeling", 2023.

With `start_from="source"`, e is the standardised latent of the control cell that is read, plus noise of standard
deviation START_NOISE: a path from a control to a perturbed cell. Tong et al., "Improving and generalizing flow-based
generative models with minibatch optimal transport", 2024.
Source: doi:10.64898/2026.06.15.732063.
"""

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
from .configuration_evae_prior import EvaeFlowConfig
from .contract_evae import EvaeError
from .count_embedding_evae import CountEmbedding  # noqa: F401
from .device_evae import on_accelerator  # noqa: F401
from .heads_evae import HEAD_CLASSES  # noqa: F401
from .labels_evae import DecoderConditions  # noqa: F401
from .layers_evae import check_ids  # noqa: F401
from .modeling_evae import EvaeModel  # noqa: F401
from .no_tokenizer_evae import NoTokenizer  # noqa: F401
from .pretrained_evae import EvaePreTrainedModel  # noqa: F401
from .prior_evae import EvaePrior, EvaePriorOutput
from .quantization_evae import FiniteScalarQuantizer  # noqa: F401
from .randomness_evae import CellStreams, Randomness
from .sampling_evae import guided
from .source_evae import SourceEmbedding  # noqa: F401
from .treatment_embedding_evae import TreatmentEmbedding  # noqa: F401

try:
    from transformers import initialization as init
except ImportError:
    from torch.nn import init  # type: ignore[no-redef]

SOLVERS = ("heun", "euler")
START_NOISE = 0.3  # at a source cell, in standard deviations of the latents: several cells of one control differ


class LatentScale(nn.Module):
    """Mean and standard deviation of every latent value over the training cells; part of the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, n_latents: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_latents, width))
        self.register_buffer("std", torch.ones(n_latents, width))

    def standardise(self, latents: Tensor) -> Tensor:
        return (latents.float() - self.mean) / self.std

    def restore(self, values: Tensor) -> Tensor:
        return values * self.std + self.mean


def value_embedding(config: EvaeFlowConfig) -> nn.Module:
    """The layer that maps latents (..., latent_dim) to the backbone's width: linear, or a perceptron (`token_product`).

    The perceptron has no biases, as that of `CountEmbedding`.
    """
    inputs, width = config.tokenizer_config.latent_width, config.hidden_size
    if not config.token_product:
        return nn.Linear(inputs, width)
    return nn.Sequential(nn.Linear(inputs, width, bias=False), nn.SiLU(), nn.Linear(width, width, bias=False))


class EvaeFlowModel(EvaePrior):
    """Conditional flow matching over Gaussian latents with a nested, frozen tokenizer."""

    config_class = EvaeFlowConfig
    main_input_name = "latents"
    training_input = "latents"

    def __init__(self, config: EvaeFlowConfig) -> None:
        width = config.tokenizer_config.latent_width
        super().__init__(config, lambda: value_embedding(config), with_time=True)
        self.scale = LatentScale(self.n_codes, width)
        self.velocity_head = nn.Linear(config.hidden_size, width)
        self.post_init()
        self.train(self.training)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LatentScale):
            init.zeros_(module.mean)
            init.ones_(module.std)

    @torch.no_grad()
    def set_statistics(self, tokens: Tensor) -> None:
        """Set the mean and standard deviation from all training cells' latents (cells, latents, latent_dim).

        A value that hardly varies, such as one that the tokenizer's clamp holds at its bound in all training cells,
        gets the median deviation: divided by its own, that of any other cell would be thousands.
        """
        std = tokens.float().std(0)
        usual = std.median().clamp_min(1e-5)
        self.scale.mean.copy_(tokens.float().mean(0))
        self.scale.std.copy_(torch.where(std < 0.01 * usual, usual, std))

    @can_return_tuple
    def forward(
        self,
        latents: Tensor,
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
        noise: Tensor | None = None,
        generator: Randomness = None,
        **kwargs: Any,
    ) -> EvaePriorOutput:
        """Predict the velocity of the path from noise to latents, and compare it with the true one.

        Args:
            latents: as encoded by the tokenizer, (cells, latents, latent_dim).
            perturbation_ids, cell_type_ids, library_size, context, effect: as in `sample`.
            source_latents, source_library_size, treatments, batch_ids: likewise.
            time: (cells,) in [0, 1]; drawn evenly spread over the cells if None.
            noise: shaped as `latents`; standard normal if None. With `start_from="source"` it is scaled and added to
                the source's latents.
            generator: source of randomness of time, noise and condition dropout; see `EvaeModel.forward`.

        Returns:
            `loss`, the mean squared error of the velocity in standardised latents; `velocity`.
        """
        shape = (self.n_codes, self.config.tokenizer_config.latent_width)
        if latents.shape[1:] != shape:
            raise EvaeError(f"latents must be (cells, {shape[0]}, {shape[1]}), not {tuple(latents.shape)}.")
        target = self.scale.standardise(latents)
        streams = CellStreams.of(generator, len(latents))
        time = streams.spread(latents.device) if time is None else time
        noise = (streams.normal(*shape, device=latents.device) if noise is None else noise).to(target)
        noise = self._begin(noise, **self._start(source_latents))
        z = torch.lerp(noise, target, time.to(target).view(-1, 1, 1))
        conditions = (perturbation_ids, cell_type_ids, library_size, context, effect, treatments, batch_ids)
        condition = self.condition(len(latents), *conditions, streams)
        prompt = self.prompt(len(latents), source_latents, source_library_size, streams)
        velocity = self._velocity(z, time, condition, prompt)
        return EvaePriorOutput(loss=F.mse_loss(velocity.float(), target - noise), velocity=velocity)

    def _start(self, source_latents: Tensor | None) -> dict[str, Tensor]:
        """The latents at which paths begin, `start` (cells, latents, latent_dim); nothing for noise."""
        if self.config.start_from == "noise":
            return {}
        if source_latents is None:
            raise EvaeError("paths of this prior start at control cells; give source_latents (controls).")
        return {"start": self.scale.standardise(source_latents.mean(1))}

    @staticmethod
    def _begin(noise: Tensor, start: Tensor | None = None) -> Tensor:
        return noise if start is None else start.to(noise) + START_NOISE * noise

    def _velocity(self, z: Tensor, time: Tensor, condition: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Velocity at the point `z` (cells, latents, latent_dim) and `time` (cells,), shaped as `z`."""
        x = self._placed(self.token_embedding(z.to(self.dtype)), self.position_embedding.weight)
        return self.velocity_head(self._features(x, self._modulation(condition, time), prompt=prompt))

    def _draw(
        self,
        condition: Tensor,
        prompt: Tensor | None,
        streams: CellStreams,
        guidance_scale: float = 1.0,
        num_steps: int | None = None,
        solver: str = "heun",
        compile: bool = False,
        start: Tensor | None = None,
    ) -> Tensor:
        """Draw latents for the tokenizer to decode, (cells, latents, latent_dim).

        Args:
            condition, prompt, streams, guidance_scale: see `EvaePrior._draw`.
            num_steps: number of equal steps from time 0 to 1.
            solver: "heun" (second order, two network calls a step) or "euler" (first order, one).
            compile: compile the network with `torch.compile`. The first call takes up to some minutes.
            start: where paths begin, (cells, latents, latent_dim), set by `sample`; noise if None.
        """
        n_cells = len(streams)
        num_steps = self.config.sampling_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise EvaeError(f"num_steps is {num_steps}; give at least 1.")
        if solver not in SOLVERS:
            raise EvaeError(f"solver '{solver}' does not exist; choose one of {', '.join(SOLVERS)}.")
        z = self._begin(streams.normal(self.n_codes, self.config.tokenizer_config.latent_width).to(self.device), start)

        def network(z: Tensor, time: Tensor) -> Tensor:
            return self._velocity(z, time, condition, prompt).float()

        network = torch.compile(network) if compile else network
        for step in range(num_steps):
            now, then = (torch.full((n_cells,), s / num_steps, device=self.device) for s in (step, step + 1))
            velocity = guided(network, guidance_scale, z, now)
            if solver == "heun":
                velocity_at_end = guided(network, guidance_scale, z + velocity / num_steps, then)
                velocity = (velocity + velocity_at_end) / 2
            z = z + velocity / num_steps
        return self.scale.restore(z).to(self.dtype)

    sample_latents = EvaePrior.sample


EvaeFlowModel.register_for_auto_class("AutoModel")
