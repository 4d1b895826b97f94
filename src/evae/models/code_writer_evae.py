"""CodeWriter: the autoregressive backbone laid out to write one code of every cell after another.

It computes what the blocks compute, for one token a cell. What stays the same from code to code is brought once into
the form in which it is used: query, key and value come from one product, weights lie as the product reads them (with
few cells it is then up to a third faster on a CPU) and, under autocast, in its precision, scales have their 1 added,
and keys and values go to memory that is laid out for the whole sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeWriter:
    """Logits of the next code, code by code.

    Args:
        prior: an autoregressive prior.
        modulation: its `condition_modulation`, (cells, 6 * layers + 2, width), or (1, ...) where all cells share it.
        n_cells: cells that are written.
    """

    def __init__(self, prior: Any, modulation: Tensor, n_cells: int) -> None:
        modulation = modulation.to(prior.dtype, copy=True)
        modulation[:, 1::3] += 1  # the scales, of shift, scale, gate, shift, scale, gate, ..., shift, scale
        self.modulation = modulation.unbind(1)
        self.blocks = [
            (
                _weights(block.attention.q_proj, block.attention.k_proj, block.attention.v_proj),
                _weights(block.attention.o_proj),
                _weights(block.feed_forward.up),
                _weights(block.feed_forward.down),
            )
            for block in prior.blocks
        ]
        self.output = _weights(prior.lm_head)
        attention = prior.blocks[0].attention
        self.heads = (attention.n_heads, attention.head_width)
        size = (len(self.blocks), 2, n_cells, attention.n_heads, prior.n_codes, attention.head_width)
        self.keys_values = modulation.new_empty(size, dtype=self.output[1].dtype)
        self.eps, self.n_written = prior.norm.eps, 0

    def next_logits(self, x: Tensor) -> Tensor:
        """Logits (cells, codes) of what follows the embedded tokens `x` (cells, width) and those before them."""
        for index, (to_heads, from_heads, up, down) in enumerate(self.blocks):
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation[6 * index : 6 * index + 6]
            y = self._modulated(x, shift_a, scale_a)
            query, *new = _linear(y, to_heads).unflatten(1, (3, *self.heads)).unbind(1)
            attended = self._attend(query.unsqueeze(2), torch.stack(new), self.keys_values[index])
            x = torch.addcmul(x, gate_a, _linear(attended.flatten(1), from_heads))
            hidden = F.gelu(_linear(self._modulated(x, shift_f, scale_f), up))
            x = torch.addcmul(x, gate_f, _linear(hidden, down))
        self.n_written += 1
        return _linear(self._modulated(x, *self.modulation[-2:]), self.output)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[1:], eps=self.eps), scale)

    def _attend(self, query: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        """`query` (cells, heads, 1, width); `new` keys and values (2, cells, heads, width), to be `kept`."""
        kept[:, :, :, self.n_written] = new
        seen = kept[:, :, :, : self.n_written + 1]
        return F.scaled_dot_product_attention(query, seen[0], seen[1])


def _weights(*layers: nn.Linear) -> tuple[Tensor, Tensor]:
    """Bias and weight (inputs, outputs) of layers that read the same, side by side."""
    weight = torch.cat([layer.weight for layer in layers]).t()
    bias = torch.cat([layer.bias for layer in layers])
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return bias.to(dtype), weight.to(dtype).contiguous()


def _linear(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(weights[0], x, weights[1])
