"""Layers shared by the tokenizer and the priors: attention, pre-norm and adaLN-Zero blocks, perceptron."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .contract_evae import EvaeError
from .device_evae import checks_itself, in_precision, on_accelerator

MOST_PARAMETERS = 2_000_000_000  # 8 GB in float32; the published models have some 10 million


def check_size(config: Any) -> None:
    """Raise `EvaeError` for a configuration of more than `MOST_PARAMETERS`, before anything is built.

    So does one whose number of heads was changed: it fits the weights, and makes another model of them.
    """
    n_parameters = parameters_at_least(config)
    if n_parameters > MOST_PARAMETERS:
        raise EvaeError(
            f"the configuration asks for at least {n_parameters:,} parameters, above the {MOST_PARAMETERS:,} that are "
            "allowed; look for a wrong size in it, or do not trust where it came from."
        )
    if config.head_width * config.num_attention_heads != config.hidden_size:
        raise EvaeError(
            f"num_attention_heads {config.num_attention_heads} and head_width {config.head_width} do not make "
            f"hidden_size {config.hidden_size}; undo the change in config.json, or drop head_width for a new model."
        )


def parameters_at_least(config: Any) -> int:
    """Number of parameters in the large matrices of a tokenizer or a prior: a close lower bound on all."""
    width, inner = config.hidden_size, config.intermediate_size
    attention, feed_forward = 4 * width**2, 2 * width * inner
    if hasattr(config, "tokenizer_config"):
        tokenizer = config.tokenizer_config
        codes = 2 * tokenizer.codebook_size if tokenizer.quantizer in ("fsq", "vq", "lfq") else 0
        rows = config.n_perturbations + config.n_cell_types + tokenizer.n_latents + codes
        blocks = config.num_hidden_layers * (attention + feed_forward + 6 * width**2)
        return parameters_at_least(tokenizer) + blocks + rows * width
    n_genes, latents, layers = config.n_genes, config.n_latents, (config.encoder_layers, config.decoder_layers)
    encoder = (n_genes + latents) * width + layers[0] * (2 * attention + feed_forward)
    if config.share_keys_values:
        encoder -= 2 * (layers[0] - 1) * width**2
    if config.encoder == "mlp":
        encoder = (n_genes + latents * width + layers[0] * inner) * inner
    decoder = (n_genes + latents) * width
    decoder += layers[1] * ((1 + bool(config.decoder_self_attention)) * attention + feed_forward)
    if config.decoder == "mlp":
        decoder = (n_genes + latents * config.latent_width + layers[1] * inner) * inner
    labels = (len(config.perturbation_names) + len(config.cell_type_names)) * width
    labels += config.n_features * (len(config.perturbation_names) + width)
    return encoder + decoder + width * config.latent_width + labels


def check_ids(ids: Tensor, size: int, kind: str, training: bool) -> None:
    """Raise `EvaeError` unless all ids lie in 0 .. size - 1.

    CUDA checks by itself, so that the host need not wait, and ends the process with a message of its own. Training
    steps are not checked on accelerators.
    """
    if ids.numel() == 0 or ids.is_meta or (training and on_accelerator(ids.device)):
        return
    if checks_itself(ids.device):
        torch._assert_async((ids.clamp(0, size - 1) == ids).all(), f"{kind} ids go from 0 to {size - 1}")
    elif (low := int(ids.min())) < 0 or (high := int(ids.max())) >= size:
        wrong = low if low < 0 else high
        raise EvaeError(f"{kind} id {wrong} does not exist; ids of this model go from 0 to {size - 1}.")


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention with the interface of transformers: inputs (cells, heads, tokens, width), output
    (cells, tokens, heads, width)."""
    scores = query @ key.transpose(2, 3) * scaling
    if is_causal:
        n_query, n_key = scores.shape[-2:]
        allowed = torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attention_mask is not None:
        scores = scores + attention_mask
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = F.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a memory.

    Args:
        config: any of our configurations; its attention implementation is used.
        is_causal: whether a token attends only to itself and to those before it.
        layer_idx: index in the key/value cache, for causal layers.
        reads_memory: whether the layer has key and value projections; without, it is given another layer's keys and
            values.
    """

    def __init__(
        self, config: Any, is_causal: bool = False, layer_idx: int | None = None, reads_memory: bool = True
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.n_heads = config.num_attention_heads
        self.head_width = width // self.n_heads
        self.scaling = self.head_width**-0.5
        self.reads_memory = reads_memory
        self.q_proj = nn.Linear(width, width)
        if reads_memory:
            self.k_proj = nn.Linear(width, width)
            self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(cells, tokens, width) -> (cells, heads, tokens, width of a head)"""
        return x.unflatten(-1, (self.n_heads, self.head_width)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Keys and values of `memory` (cells, others, width), (cells, heads, others, width of a head) each."""
        memory = in_precision(memory)
        return self.split(self.k_proj(memory)), self.split(self.v_proj(memory))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | KeysValues | None = None,
        bias: Tensor | None = None,
        past_key_values: Any = None,
        n_prompt: int = 0,
    ) -> Tensor:
        """Attend.

        Args:
            x: queries (cells, tokens, width), or (1, tokens, width) if they are the same for all cells, to project
                them once.
            memory: (cells, others, width), or its keys and values; `x` itself if None.
            bias: added to the attention scores, broadcast to (cells, heads, tokens, others).
            past_key_values: a transformers cache; this call's keys and values are appended to it.
            n_prompt: how many tokens, the first of `x`, all tokens attend to where the layer is causal.
        """
        x = in_precision(x)
        memory = x if memory is None else memory
        query = self.split(self.q_proj(x))
        key, value = memory if isinstance(memory, tuple) else self.keys_values(memory)
        return self.o_proj(self.attend(query.expand(len(key), -1, -1, -1), key, value, bias, past_key_values, n_prompt))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None = None,
        past_key_values: Any = None,
        n_prompt: int = 0,
    ) -> Tensor:
        """What is attended to, (cells, tokens, width), before the last projection; arguments as in `forward`.

        Queries, keys and values are (cells, heads, tokens or others, width of a head).
        """
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention if implementation in (None, "eager") else ALL_ATTENTION_FUNCTIONS[implementation]
        # One query attends to the whole cache. PyTorch's is_causal would let it see the first key only.
        causal = self.is_causal and query.shape[2] > 1
        if causal and n_prompt:
            given = prompt_bias(query, query.dtype, n_prompt) if bias is None else bias
            bias, causal = given if n_prompt < query.shape[2] else None, False
        elif causal and key.shape[2] != query.shape[2]:
            bias, causal = _offset_causal_bias(query, key, bias), False
        output, _ = attend(self, query, key, value, bias, scaling=self.scaling, dropout=0.0, is_causal=causal)
        return output.flatten(2)


def _offset_causal_bias(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Causal bias (1, 1, tokens, others) for several queries that follow cached keys."""
    n_query, n_key = query.shape[2], key.shape[2]
    hidden = torch.full((n_query, n_key), float("-inf"), dtype=query.dtype, device=query.device)
    causal = hidden.triu(n_key - n_query + 1)[None, None]
    return causal if bias is None else causal + bias


def prompt_bias(query: Tensor, precision: torch.dtype, n_prompt: int) -> Tensor:
    """Causal bias (1, 1, tokens, tokens) for `query` (..., tokens, width); all tokens attend to the whole prompt."""
    n_tokens = query.shape[-2]
    hidden = torch.full((n_tokens, n_tokens), float("-inf"), dtype=precision, device=query.device).triu(1)
    hidden[:, :n_prompt] = 0
    return hidden[None, None]


class Dropout(nn.Dropout):
    """Dropout; on a CPU, where torch takes most of its time for the mask, by random numbers of 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        n_dropped, n_numbers = round(2**16 * self.p), x.numel()
        if not self.training or not 0 < n_dropped < 2**16 or on_accelerator(x.device) or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-n_numbers // 4), dtype=torch.int64).random_(-(2**63), None)
        numbers = words.view(torch.int16)[:n_numbers].view(x.shape)
        kept = torch.ge(numbers, n_dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
        return x * kept.mul_(2**16 / (2**16 - n_dropped))


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x))))


class CrossBlock(nn.Module):
    """Pre-norm layer: self-attention (optional), cross-attention onto a memory, feed-forward."""

    def __init__(self, config: Any, self_attention: bool = True, reads_memory: bool = True) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_norm = nn.LayerNorm(width) if self_attention else None
        self.self_attention = Attention(config) if self_attention else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(config, reads_memory=reads_memory)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, memory: Tensor | KeysValues, memory_bias: Tensor | None = None) -> Tensor:
        """`x` (cells or 1, tokens, width), `memory` (cells, others, width) -> (cells, tokens, width).

        Tokens that are the same for all cells, as in the first layer, are computed once up to the cross-attention.
        """
        if self.self_attention is not None and self.self_norm is not None:
            x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), memory, memory_bias)
        return x + self.feed_forward(self.feed_forward_norm(x))


def log_library(library_size: Tensor, median: float) -> Tensor:
    """log2(library size / median), (cells, 1): 0 for a typical cell, about +-1 for the usual spread."""
    return torch.log2(library_size.float().clamp_min(1) / median).unsqueeze(-1)


class Perceptron(nn.Module):
    """Residual multi-layer perceptron with pre-norm hidden layers."""

    def __init__(self, n_inputs: int, n_outputs: int, width: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(n_inputs, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(n_layers)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(n_layers)])
        self.dropout = Dropout(dropout)
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_outputs)

    def hidden(self, x: Tensor) -> Tensor:
        """(cells, inputs) -> input of the output layer, (cells, width)."""
        x = self.input(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + self.dropout(F.gelu(layer(norm(x))))
        return self.output_norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """(cells, inputs) -> (cells, outputs)"""
        return self.output(self.hidden(x))
