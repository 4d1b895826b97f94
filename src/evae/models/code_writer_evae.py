"""CodeWriter: fast autoregressive decoding of codes with a static key/value cache.

A step draws the next code of every cell. It computes what the prior's blocks compute, for one token a cell. What does
not change between steps is prepared once, before the first:

* The weights are copied into the layout that the matrix products read, under autocast in its lower precision.
* 1 is added to the adaLN scales.
* The key/value cache is allocated for the whole sequence, and a prompt of source cells is written into it.

There are two kinds of steps. One takes its position as an int and attends to the positions written so far. The other
takes it as a tensor and attends to the whole cache behind a mask. Its graph is the same at every position, so
`torch.compile` compiles it once, and a GPU replays it as a CUDA graph. Its buffers stay at their addresses and serve
the next cells of the same prior.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .device_evae import on_accelerator
from .randomness_evae import categorical

Product = tuple[Tensor, Tensor]  # bias (outputs) and weight (parts, inputs, outputs of a part)
Position = int | Tensor  # a tensor holds one whole number, shape (1,)


class CodeWriter:
    """Buffers for decoding a batch of cells, and the step that draws the next code of every cell.

    Args:
        prior: an autoregressive prior.
        n_cells: cells in the batch.
        is_guided: use classifier-free guidance; every cell then has a second row in the batch, with the null condition.
        n_modulations: 1 if all rows of the batch share one condition, else the number of rows.
    """

    def __init__(self, prior: Any, n_cells: int, is_guided: bool, n_modulations: int) -> None:
        n_codes, layers, device = prior.n_codes, len(prior.blocks), prior.device
        self.n_prompt = prior.n_prompt
        self.n_cells, self.is_guided, self.eps = n_cells, is_guided, prior.norm.eps
        self.width, self.precision = prior.config.hidden_size, precision_of(prior)
        self.token_product = prior.config.token_product
        attention = prior.blocks[0].attention
        self.heads = (attention.n_heads, attention.head_width)
        self.products = [self._empty_product(linears) for linears in _linears(prior)]
        self.tokens, self.positions = (torch.empty_like(table) for table in _embeddings(prior))
        size = (2, n_cells * (1 + is_guided), attention.n_heads, self.n_prompt + n_codes, attention.head_width)
        self.keys_values = [torch.empty(size, dtype=self.precision, device=device) for _ in range(layers)]
        self.modulation = self.tokens.new_zeros(6 * layers + 2, n_modulations, self.width)
        self.codes = torch.full((n_codes + 1, n_cells), prior.config.bos_token_id, device=device)  # row 0: BOS
        self.uniform = torch.zeros(n_codes, n_cells, device=device)
        self.scale = torch.ones((), device=device)
        self.temperature = torch.ones(1, device=device)  # with one axis, so that a quotient has its precision

    def _empty_product(self, linears: list[nn.Linear]) -> Product:
        """An empty bias and weight for linear layers of the same input, which become one product.

        On a CPU the weight is cut into parts as wide as the model, which is a fifth faster.
        """
        weight, n_outputs = linears[0].weight, sum(linear.out_features for linear in linears)
        in_parts = n_outputs % self.width == 0 and not on_accelerator(weight.device)
        n_parts = n_outputs // self.width if in_parts else 1
        empty = weight.detach().new_empty
        size = (n_parts, weight.shape[1], n_outputs // n_parts)
        return empty(n_outputs, dtype=self.precision), empty(size, dtype=self.precision)

    def begin(
        self,
        prior: Any,
        modulation: Tensor,
        uniform: Tensor,
        scale: float,
        temperature: float,
        prompt: Tensor | None = None,
    ) -> None:
        """Copy the prior's current weights and the batch's inputs into the buffers; arguments as in `write_codes`.

        The batch may be smaller than `n_cells`. Codes are drawn for the unused rows too, and are to be ignored.
        """
        for buffer, table in zip((self.tokens, self.positions), _embeddings(prior), strict=True):
            buffer.copy_(table)
        for (bias, weight), linears in zip(self.products, _linears(prior), strict=True):
            bias.copy_(torch.cat([linear.bias for linear in linears]))
            sizes = [linear.out_features for linear in linears]
            parts = weight.unbind() if len(weight) > 1 else weight[0].split(sizes, dim=1)
            weights = [rows for linear in linears for rows in linear.weight.split(parts[0].shape[1])]
            for buffer, rows in zip(parts, weights, strict=True):
                buffer.copy_(rows.t())
        n_cells, given = len(uniform), modulation.transpose(0, 1)
        used = self.modulation
        if used.shape[1] > 1:  # the rows of the cells and, with guidance, of their nulls; unused ones stay as they are
            used = used.unflatten(1, (-1, self.n_cells))[:, :, :n_cells]
            given = given.unflatten(1, (-1, n_cells)) if len(modulation) > 1 else given.unsqueeze(1)
        used.copy_(given)
        used[1::3] += 1  # the scales, of shift, scale, gate, shift, scale, gate, ..., shift, scale
        self.uniform[:, :n_cells] = uniform.T
        self.scale.fill_(scale)
        self.temperature.fill_(temperature)
        if prompt is not None:
            prior._features(prompt[:, :0], modulation, _PromptCache(self, n_cells), prompt)

    def step(self, position: Position) -> None:
        """Draw the codes at `position`; those before it have been drawn."""
        with torch.autocast(self.codes.device.type, enabled=False):  # the weights are in its precision already
            self._step(position)

    def _step(self, position: Position) -> None:
        value, place = F.embedding(_row(self.codes, position), self.tokens), _row(self.positions, position)
        x = value * place if self.token_product else value + place
        if self.is_guided:
            conditional, null = self._logits(torch.cat([x, x]), position).float().chunk(2)
            logits = null + self.scale * (conditional - null)
        else:
            logits = self._logits(x, position)
        drawn = categorical((logits / self.temperature).softmax(-1), _row(self.uniform, position))
        if isinstance(position, int):
            self.codes[position + 1] = drawn
        else:
            self.codes.index_copy_(0, position + 1, drawn.unsqueeze(0))

    def _logits(self, x: Tensor, position: Position) -> Tensor:
        """Logits (rows, codes) of the next code, from the embedded token `x` (rows, width) and the cache."""
        modulation = self.modulation.unbind()
        for index, cache in enumerate(self.keys_values):
            to_heads, from_heads, up, down = self.products[4 * index : 4 * index + 4]
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[6 * index : 6 * index + 6]
            projected = _linear(self._modulated(x, shift_a, scale_a), to_heads)
            query, new = projected.reshape(len(x), 3, *self.heads).split((1, 2), dim=1)
            attended = _attend(query.transpose(1, 2), new.transpose(0, 1), cache, position + self.n_prompt)
            x = torch.addcmul(x, gate_a, _linear(attended.flatten(1), from_heads).flatten(1))
            hidden = F.gelu(_linear(self._modulated(x, shift_f, scale_f), up)).flatten(1)
            x = torch.addcmul(x, gate_f, _linear(hidden, down).flatten(1))
        return _linear(self._modulated(x, *modulation[-2:]), self.products[-1]).flatten(1)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[1:], eps=self.eps)
        if self.precision == x.dtype:
            return torch.addcmul(shift, normed, scale)
        return torch.addcmul(shift, normed, scale, out=torch.empty_like(x, dtype=self.precision))  # casts as it writes


class _PromptCache:
    """What the prior's blocks take for a cache: writes the keys and values of a prompt into those of a `CodeWriter`."""

    def __init__(self, writer: CodeWriter, n_cells: int) -> None:
        self.writer, self.n_cells = writer, n_cells

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values (rows, heads, tokens, width) of a layer and give them back."""
        for kept, given in zip(self.writer.keys_values[layer], (keys, values), strict=True):
            cells = kept.unflatten(0, (-1, self.writer.n_cells))[:, : self.n_cells, :, : given.shape[2]]
            cells.copy_(given.unflatten(0, (-1, self.n_cells)))
        return keys, values


def write_codes(
    prior: Any,
    modulation: Tensor,
    uniform: Tensor,
    scale: float,
    temperature: float,
    compiled: bool,
    prompt: Tensor | None = None,
) -> Tensor:
    """Draw code sequences, int64 (cells, latents).

    Args:
        prior: an autoregressive prior.
        modulation: the prior's `condition_modulation`. It has a row for every cell, followed with guidance by a row
            for every cell's null condition; or one row that all share.
        uniform: a uniform random number on [0, 1) for every code, (cells, latents).
        scale: guidance scale; 1 is no guidance.
        temperature: divides the logits.
        compiled: compile the step. The step that the last call compiled is used again if its batch was large enough.
        prompt: the prior's `prompt`, a row for every cell, with guidance another one for its null; None for none.
    """
    n_cells, is_guided = len(uniform), scale != 1
    if compiled:
        with torch.inference_mode(False), torch.no_grad():  # the buffers outlive the caller's inference mode
            writer, step = _compiled(prior, n_cells, is_guided)
            for cache in writer.keys_values:
                cache.zero_()  # positions not yet written are read with weight 0, and 0 * NaN would be NaN
            writer.begin(prior, modulation, uniform, scale, temperature, prompt)
            at = torch.zeros(1, dtype=torch.long, device=prior.device)
            for position in range(prior.n_codes):
                step(at.fill_(position))
            return writer.codes[1:, :n_cells].T.clone(memory_format=torch.contiguous_format)  # a copy
    writer = CodeWriter(prior, n_cells, is_guided, len(modulation))
    writer.begin(prior, modulation, uniform, scale, temperature, prompt)
    for position in range(prior.n_codes):
        writer.step(position)
    return writer.codes[1:].T.contiguous()


_COMPILED: WeakKeyDictionary[Any, tuple[CodeWriter, Any]] = WeakKeyDictionary()


def _compiled(prior: Any, n_cells: int, is_guided: bool) -> tuple[CodeWriter, Any]:
    """This prior's last writer with its compiled step; a new pair if that one has another type or too few cells."""
    if prior in _COMPILED:
        writer, step = _COMPILED[prior]
        is_alike = (writer.is_guided, writer.precision, writer.tokens.device, writer.tokens.dtype) == (
            is_guided, precision_of(prior), prior.device, prior.dtype,
        )  # fmt: skip
        if is_alike and writer.n_cells >= n_cells:
            return writer, step
    writer = CodeWriter(prior, n_cells, is_guided, n_cells * (1 + is_guided))
    buffers = [writer.tokens, writer.positions, writer.modulation, writer.codes, writer.uniform, writer.scale]
    for tensor in (*buffers, writer.temperature, *writer.keys_values, *(t for pair in writer.products for t in pair)):
        torch._dynamo.mark_static_address(tensor)  # a CUDA graph may then write to it in place, without copies
    mode = "reduce-overhead" if prior.device.type == "cuda" else "default"
    _COMPILED[prior] = writer, torch.compile(writer.step, mode=mode, dynamic=False)
    return _COMPILED[prior]


def precision_of(prior: Any) -> torch.dtype:
    """The type in which the prior's matrix products are computed: that of autocast where it is on."""
    device = prior.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else prior.dtype


def _embeddings(prior: Any) -> tuple[Tensor, Tensor]:
    return prior.token_embedding.weight, prior.position_embedding.weight


def _linears(prior: Any) -> Iterator[list[nn.Linear]]:
    """The linear layers in the order in which a step uses them; layers of the same input stand in one list."""
    for block in prior.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        yield [attention.q_proj, attention.k_proj, attention.v_proj]
        yield from ([attention.o_proj], [feed_forward.up], [feed_forward.down])
    yield [prior.lm_head]


def _row(table: Tensor, position: Position) -> Tensor:
    return table[position] if isinstance(position, int) else table.index_select(0, position).squeeze(0)


def _linear(x: Tensor, product: Product) -> Tensor:
    """`x` (rows, inputs) -> (rows, parts, outputs of a part)."""
    bias, weight = product
    if len(weight) == 1:
        return torch.addmm(bias, x, weight[0]).unsqueeze(1)
    parts = torch.baddbmm(bias.view(len(weight), 1, -1), x.expand(len(weight), -1, -1), weight)
    return parts.transpose(0, 1)


def _attend(query: Tensor, new: Tensor, cache: Tensor, position: Position) -> Tensor:
    """Attention of one query a row to the cache, after `new` is written into it.

    Args:
        query: (rows, heads, 1, width).
        new: keys and values at `position`, (2, rows, heads, width).
        cache: keys and values, (2, rows, heads, positions, width).
        position: the query's.
    """
    if isinstance(position, int):
        cache[:, :, :, position] = new
        written = cache[:, :, :, : position + 1]
        return F.scaled_dot_product_attention(query, written[0], written[1])
    cache.index_copy_(3, position, new.unsqueeze(3))
    is_written = torch.arange(cache.shape[3], device=cache.device) <= position
    return F.scaled_dot_product_attention(query, cache[0], cache[1], attn_mask=is_written.view(1, 1, 1, -1))
