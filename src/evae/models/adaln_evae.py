"""The priors' layer, a transformer block with adaLN-Zero, in few operations forward and backward.

What autograd would record of a modulation, a gate and the casts of weights are many small operations, and they take
longer to launch than to run. Here each is one step forward and few steps backward, by the formulas of autograd.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .device_evae import cast_to, on_accelerator
from .layers_evae import Attention, FeedForward


class ModulatedBlock(nn.Module):
    """DiT block with adaLN-Zero (Peebles & Xie, "Scalable Diffusion Models with Transformers", 2023).

    The condition gives a shift, a scale and a gate for the attention and for the feed-forward part. All start at zero,
    so the block starts as the identity.
    """

    def __init__(self, config: Any, is_causal: bool, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False, eps=config.layer_norm_eps)
        self.attention = Attention(config, is_causal=is_causal, layer_idx=layer_idx)
        self.feed_forward_norm = nn.LayerNorm(width, elementwise_affine=False, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        modulation: Sequence[Tensor],
        past_key_values: Any = None,
        n_prompt: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """`x` (cells, tokens, width), six of `modulations` -> (cells, tokens, width); see `Attention`."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation
        attention, feed_forward = self.attention, self.feed_forward
        part = adaln(x, shift_a, scale_a, self.attention_norm.eps)
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [feed_forward.up, feed_forward.down]
        if any(type(linear) is not nn.Linear for linear in linears):  # with an adapter, which has a way of its own
            x = gated_sum(x, gate_a, attention(part, None, bias, past_key_values, n_prompt))
            return gated_sum(x, gate_f, feed_forward(adaln(x, shift_f, scale_f, self.feed_forward_norm.eps)))
        to_heads, from_heads, up, down = in_place_of(linears)
        attended = self._attend(F.linear(part, *to_heads), past_key_values, n_prompt, bias).to(part.dtype)
        x = gated_sum(x, gate_a, F.linear(attended, *from_heads))
        part = adaln(x, shift_f, scale_f, self.feed_forward_norm.eps)
        hidden = feed_forward.dropout(F.gelu(F.linear(part, *up)))
        return gated_sum(x, gate_f, F.linear(hidden, *down))

    def _attend(self, projected: Tensor, past_key_values: Any, n_prompt: int, bias: Tensor | None) -> Tensor:
        """Attention with queries, keys and values side by side, (cells, tokens, 3 * width)."""
        without: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if projected.dtype == torch.bfloat16 and projected.requires_grad and not on_accelerator(projected.device):
            without = torch.autocast(projected.device.type, enabled=False)  # a CPU's gradient in bfloat16 is slow
            projected, bias = projected.float(), None if bias is None else bias.float()
        query, key, value = (self.attention.split(of_tokens) for of_tokens in projected.chunk(3, dim=-1))
        with without:
            return self.attention.attend(query, key, value, bias, past_key_values, n_prompt)


def modulations(modulation: Tensor) -> Sequence[Tensor]:
    """Shifts, scales and gates in the order of `modulation` (cells, 6 * layers + 2, width), (cells, 1, width) each.

    1 is added to the scales, which are every third from the second on.
    """
    parts: Sequence[Tensor] = _Modulations.apply(modulation)
    return parts


def adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm of `x` (cells, tokens, width) times scale plus shift, both from `modulations`.

    The result is in the precision of matrix products.
    """
    result: Tensor = _AdaLN.apply(x, shift, scale, eps, cast_to(x))
    return result


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """`x` + gate `y`, with `gate` (cells, 1, width) and the others (cells, tokens, width), as precise as `x`."""
    result: Tensor = _GatedSum.apply(x, gate, y)
    return result


def in_place_of(linears: list[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the first three layers as one, then of each further one, in the precision of products.

    All are copied in one operation. Those after the third are not copied where they have this precision.
    """
    first, others = linears[:3], linears[3:]
    joined = [*(linear.weight for linear in first), *(linear.bias for linear in first)]
    single = [tensor for linear in others for tensor in (linear.weight, linear.bias)]
    precision = cast_to(joined[0])
    if precision == joined[0].dtype:
        tensors = [*_Copied.apply(precision, *joined), *single]
    else:
        tensors = list(_Copied.apply(precision, *joined, *single))
    return list(zip(tensors[::2], tensors[1::2], strict=True))


class _Modulations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, modulation: Tensor) -> tuple[Tensor, ...]:
        parts = list(modulation.split(1, dim=1))
        parts[1::3] = (modulation[:, 1::3] + 1).split(1, dim=1)
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.cat(gradients, dim=1)


class _AdaLN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, precision: torch.dtype) -> Tensor:
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, normed, mean, deviation, scale)
        if normed.dtype == precision:
            return torch.addcmul(shift, normed, scale)
        return torch.addcmul(shift, normed, scale, out=torch.empty_like(x, dtype=precision))  # casts as it writes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, normed, mean, deviation, scale = ctx.saved_tensors
        of_shift = _over_tokens(gradient, scale) if ctx.needs_input_grad[1] else None
        of_scale = _over_tokens(gradient * normed, scale) if ctx.needs_input_grad[2] else None
        of_x = None
        if ctx.needs_input_grad[0]:
            of_normed = torch.mul(gradient, scale, out=torch.empty_like(x))
            of_x = torch.ops.aten.native_layer_norm_backward(
                of_normed, x, x.shape[-1:], mean, deviation, None, None, [True, False, False]
            )[0]
        return of_x, of_shift, of_scale, None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(gate, y)
        return torch.addcmul(x, gate, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, y = ctx.saved_tensors
        of_gate = _over_tokens(gradient * y, gate) if ctx.needs_input_grad[1] else None
        of_y = torch.mul(gradient, gate, out=torch.empty_like(y)) if ctx.needs_input_grad[2] else None
        return gradient, of_gate, of_y


class _Copied(torch.autograd.Function):
    """Three weights as one and three biases as one, then copies of single tensors."""

    @staticmethod
    def forward(ctx: Any, precision: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.before = tensors[0].dtype
        weight, bias, single = tensors[0], tensors[3], tensors[6:]
        ctx.sizes = [len(tensor) for tensor in tensors[:3]]
        rows = sum(ctx.sizes)
        together = weight.new_empty(rows, weight.shape[1], dtype=precision), bias.new_empty(rows, dtype=precision)
        copies = [torch.empty_like(tensor, dtype=precision) for tensor in single]
        pieces = [piece for both in together for piece in both.split(ctx.sizes)]
        torch._foreach_copy_([*pieces, *copies], list(tensors))
        return *together, *copies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if gradients[0].dtype == ctx.before:
            copies = list(gradients)
        else:
            copies = [torch.empty_like(given, dtype=ctx.before) for given in gradients]
            torch._foreach_copy_(copies, list(gradients))
        weight, bias, *single = copies
        return None, *weight.split(ctx.sizes), *bias.split(ctx.sizes), *single


def _over_tokens(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient (cells, tokens, width) of what is the same for all tokens, and perhaps for all cells."""
    summed = gradient.sum(1, keepdim=True, dtype=like.dtype)
    return summed if len(summed) == len(like) else summed.sum(0, keepdim=True)
