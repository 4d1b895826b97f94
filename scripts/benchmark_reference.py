"""What the benchmark compares with: the published tokenizer and the plain sampling loops, without short cuts.

Source: doi:10.64898/2026.06.15.732063.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evae.models import EvaeARForCausalLM, EvaeConfig, EvaeMDLMModel, EvaeModel
from evae.models.coders_evae import EvaeDecoder, EvaeEncoder
from evae.models.randomness_evae import categorical


class ReferenceEncoder(EvaeEncoder):
    """Every cell's latent tokens attend to the tokens of all genes, expressed or not."""

    def forward(self, counts: Tensor, gene_ids: Tensor) -> Tensor:
        tokens = self.embedding(gene_ids, counts)
        latents = self.latent_tokens.repeat(len(counts), 1, 1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)


class ReferenceDecoder(EvaeDecoder):
    """Every cell's gene queries attend to each other and to the latent tokens in every layer."""

    def forward(self, latents: Tensor, context: Tensor, genes: Tensor | None = None) -> Tensor:
        memory = self.from_latent(latents) + self.positions
        features = self.gene_queries.repeat(len(latents), 1, 1)
        for layer in self.layers:
            features = layer(features, memory)
        return self.output(self.norm(features))


def reference_tokenizer(**fields: Any) -> EvaeModel:
    """The tokenizer as published, with the weights' names of `EvaeModel`; `fields` change its size."""
    config = EvaeConfig(**{**fields, "sparse_encoding": False})
    model = EvaeModel(config)
    encoder, decoder = ReferenceEncoder(config), ReferenceDecoder(config, model.head.n_outputs)
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    model.encoder, model.decoder = encoder, decoder
    return model


@torch.no_grad()
def sample_recomputing(prior: EvaeARForCausalLM, conditions: dict[str, Tensor], uniform: Tensor) -> Tensor:
    """Codes (cells, latents) of an autoregressive prior; every code reads its whole prefix anew.

    Args:
        conditions: arguments of the prior's `forward`.
        uniform: a number on [0, 1) for every code, (cells, latents).
    """
    tokens = torch.full((len(uniform), 1), prior.config.bos_token_id, device=uniform.device)
    for position in range(prior.n_codes):
        logits = prior(input_ids=tokens, **conditions).logits[:, -1].float()
        code = categorical(logits.softmax(-1), uniform[:, position])
        tokens = torch.cat([tokens, code.unsqueeze(1)], dim=1)
    return tokens[:, 1:]


@torch.no_grad()
def sample_by_hand(prior: EvaeARForCausalLM, conditions: dict[str, Tensor], uniform: Tensor) -> Tensor:
    """The same codes by a loop written out for this one network: what a cached sampler can reach."""
    n_cells, n_codes = uniform.shape
    heads, width = prior.config.num_attention_heads, prior.config.hidden_size
    modulation = prior.condition_modulation(n_cells, **conditions).unsqueeze(2)
    blocks: list[Any] = list(prior.blocks)
    cache = modulation.new_empty(len(blocks), 2, n_cells, heads, n_codes, width // heads)
    token, codes = torch.full((n_cells,), prior.config.bos_token_id, device=uniform.device), []
    for position in range(n_codes):
        x = (prior.token_embedding(token) + prior.position_embedding.weight[position]).unsqueeze(1)
        for index, block in enumerate(blocks):
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[:, 6 * index : 6 * index + 6].unbind(1)
            attention, feed_forward = block.attention, block.feed_forward
            y = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale_a) + shift_a
            query, key, value = (
                layer(y).view(n_cells, heads, width // heads)
                for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            cache[index, 0, :, :, position], cache[index, 1, :, :, position] = key, value
            seen = cache[index, :, :, :, : position + 1]
            attended = F.scaled_dot_product_attention(query.unsqueeze(2), seen[0], seen[1])
            x = x + gate_a * attention.o_proj(attended.reshape(n_cells, 1, width))
            y = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale_f) + shift_f
            x = x + gate_f * feed_forward.down(F.gelu(feed_forward.up(y)))
        shift, scale = modulation[:, -2], modulation[:, -1]
        logits = prior.lm_head(F.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift)[:, 0].float()
        token = categorical(logits.softmax(-1), uniform[:, position])
        codes.append(token)
    return torch.stack(codes, dim=1)


@torch.no_grad()
def sample_by_masking(prior: EvaeMDLMModel, conditions: dict[str, Tensor], num_steps: int) -> Tensor:
    """Codes (cells, latents) of masked diffusion, step by step: at each, every hidden code is revealed with the
    probability that the schedule gives."""
    n_cells = len(next(iter(conditions.values())))
    mask = prior.config.mask_token_id
    tokens = torch.full((n_cells, prior.n_codes), mask, device=prior.device)
    for step in range(num_steps, 0, -1):
        time = torch.full((n_cells,), step / num_steps, device=prior.device)
        modulation = prior.condition_modulation(n_cells, **conditions, time=time)
        logits = prior._logits(tokens, modulation).float()
        drawn = categorical(logits.softmax(-1), torch.rand(tokens.shape, device=prior.device))
        reveal = torch.rand(tokens.shape, device=prior.device) < 1 / step
        tokens = torch.where((tokens == mask) & reveal, drawn, tokens)
    return tokens
