"""CodeWriter: fast autoregressive decoding of codes with a static key/value cache.

A step draws the next code of every cell. It computes what the prior's blocks compute, for one token a cell. What does
not change between steps is prepared once, before the first:

* The weights are copied into the layout that the matrix products read, under autocast in its lower precision; the last
  ones are divided by the temperature.
* 1 is added to the adaLN scales.
* The cache of queries, keys and values is allocated for the whole sequence, laid out so that the product that makes
  them writes into it. A prompt of source cells is written into it, too.

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
from .randomness_evae import places_drawn

FEW_POSITIONS = 32  # up to here, attention of one query is faster on a CPU as sums of products

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
        self.of_shares = torch.promote_types(self.precision, torch.float32)
        self.token_product = prior.config.token_product
        self.in_few_steps = on_accelerator(device)
        attention = prior.blocks[0].attention
        self.heads = (attention.n_heads, attention.head_width)
        self.products = [self._empty_product(linears) for linears in _linears(prior)]
        stream = self.precision if self.in_few_steps else prior.dtype  # of what the blocks hand on
        self.tokens, self.positions = (torch.empty_like(table, dtype=stream) for table in _embeddings(prior))
        rows, n_positions = n_cells * (1 + is_guided), self.n_prompt + n_codes
        self.by_sums = not self.in_few_steps and n_positions <= FEW_POSITIONS
        self.caches = [self._empty_cache(rows, n_positions) for _ in range(layers)]
        self.modulation = self.tokens.new_zeros(6 * layers + 2, n_modulations, self.width)
        self.codes = torch.full((n_codes + 1, n_cells), prior.config.bos_token_id, device=device)  # row 0: BOS
        self.uniform = torch.zeros(n_codes, n_cells, device=device)
        self.scale = torch.ones((), device=device)

    def _empty_product(self, linears: list[nn.Linear]) -> Product:
        """An empty bias and weight for linear layers of the same input, which become one product."""
        weight, n_outputs = linears[0].weight, sum(linear.out_features for linear in linears)
        n_parts = 1 if self.in_few_steps else len(linears)
        empty = weight.detach().new_empty
        size = (n_parts, weight.shape[1], n_outputs // n_parts)
        return empty(n_outputs, dtype=self.precision), empty(size, dtype=self.precision)

    def _empty_cache(self, rows: int, n_positions: int) -> Tensor:
        """Queries, keys and values of a layer, (3, rows, heads, positions, width of a head), in the order that suits.

        On a GPU, and on a CPU where there are few positions, one product writes all three of a position. Attention to
        more positions is faster on a CPU where a row's stand next to each other.
        """
        heads, width = self.heads
        empty = self.tokens.new_empty
        if self.in_few_steps:
            return empty(rows, n_positions, 3, heads, width, dtype=self.precision).permute(2, 0, 3, 1, 4)
        if self.by_sums:
            return empty(n_positions, 3, rows, heads, width, dtype=self.precision).permute(1, 2, 3, 0, 4)
        return empty(3, rows, heads, n_positions, width, dtype=self.precision)

    def begin(
        self, prior: Any, modulation: Tensor, uniform: Tensor, scale: float, temperature: float,
        prompt: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Copy the prior's current weights and the batch's inputs into the buffers; arguments as in `write_codes`.

        The batch may be smaller than `n_cells`. Codes are drawn for the unused rows too, and are to be ignored.
        """
        for buffer, table in zip((self.tokens, self.positions), _embeddings(prior), strict=True):
            buffer.copy_(table)
        for (bias, weight), linears in zip(self.products, _linears(prior), strict=True):
            bias.copy_(torch.cat([linear.bias for linear in linears]))
            sizes = [linear.out_features for linear in linears]
            parts = weight.unbind() if len(weight) > 1 else weight[0].split(sizes, dim=1)
            for buffer, linear in zip(parts, linears, strict=True):
                buffer.copy_(linear.weight.t())
        for last in self.products[-1]:
            last.div_(temperature)
        n_cells, given = len(uniform), modulation.transpose(0, 1)
        used = self.modulation
        if used.shape[1] > 1:  # the rows of the cells and, with guidance, of their nulls; unused ones stay as they are
            used = used.unflatten(1, (-1, self.n_cells))[:, :, :n_cells]
            given = given.unflatten(1, (-1, n_cells)) if len(modulation) > 1 else given.unsqueeze(1)
        used.copy_(given)
        used[1::3] += 1  # the scales, of shift, scale, gate, shift, scale, gate, ..., shift, scale
        self.uniform[:, :n_cells] = uniform.T
        self.scale.fill_(scale)
        if prompt is not None:
            prior._features(prompt[:, :0], modulation, _PromptCache(self, n_cells), prompt)

    def step(self, position: Position) -> None:
        """Draw the codes at `position`; those before it have been drawn."""
        with torch.autocast(self.codes.device.type, enabled=False):  # the weights are in its precision already
            self._step(position)

    def _step(self, position: Position) -> None:
        value, place = F.embedding(_row(self.codes, position), self.tokens), _row(self.positions, position)
        x = value * place if self.token_product else value + place
        logits = self._logits(torch.cat([x, x]) if self.is_guided else x, position)
        if self.is_guided:
            conditional, null = logits.to(self.of_shares).chunk(2)
            logits = null + self.scale * (conditional - null)
        shares, uniform = logits.softmax(-1, dtype=self.of_shares), _row(self.uniform, position)
        if isinstance(position, int):
            places_drawn(shares, uniform, out=self.codes[position + 1])
        else:
            self.codes.index_copy_(0, position + 1, places_drawn(shares, uniform).unsqueeze(0))

    def _logits(self, x: Tensor, position: Position) -> Tensor:
        """Logits (rows, codes) of the next code, from the embedded token `x` (rows, width) and the cache."""
        modulation = self.modulation.unbind()
        for index, cache in enumerate(self.caches):
            to_heads, from_heads, up, down = self.products[4 * index : 4 * index + 4]
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[6 * index : 6 * index + 6]
            query = self._project(self._modulated(x, shift_a, scale_a), to_heads, cache, position)
            attended = self._attend(query, cache, position + self.n_prompt)
            x = torch.addcmul(x, gate_a, _linear(attended.flatten(1), from_heads))
            hidden = F.gelu(_linear(self._modulated(x, shift_f, scale_f), up))
            x = torch.addcmul(x, gate_f, _linear(hidden, down))
        return _linear(self._modulated(x, *modulation[-2:]), self.products[-1])

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """adaLN of `x` (rows, width)."""
        if self.in_few_steps and len(scale) == len(x):  # groups of channels, one a row: all of it is one operation
            return torch.group_norm(x.view(1, -1), len(x), scale.view(-1), shift.view(-1), self.eps).view_as(x)
        normed = F.layer_norm(x, x.shape[1:], eps=self.eps)
        if self.precision == x.dtype:
            return torch.addcmul(shift, normed, scale)
        return torch.addcmul(shift, normed, scale, out=torch.empty_like(x, dtype=self.precision))  # casts as it writes

    def _project(self, x: Tensor, product: Product, cache: Tensor, position: Position) -> Tensor:
        """Write the keys and values of `x` (rows, width) into the cache; gives the queries (rows, heads, width)."""
        if isinstance(position, int) and (self.in_few_steps or self.by_sums):
            place = cache[:, :, :, position + self.n_prompt]
            flat = place.transpose(0, 1).view(len(x), -1) if self.in_few_steps else place.flatten(2)
            _linear(x, product, out=flat)
            return place[0]
        new = _linear(x, product)
        new = new.view(len(x), 3, *self.heads).transpose(0, 1) if self.in_few_steps else new.unflatten(2, self.heads)
        if isinstance(position, int):
            cache[1:, :, :, position + self.n_prompt] = new[1:]
        else:
            cache[1:].index_copy_(3, position + self.n_prompt, new[1:].unsqueeze(3))
        return new[0]

    def _attend(self, query: Tensor, cache: Tensor, position: Position) -> Tensor:
        """Attention (rows, heads, width) of one query a row, (rows, heads, width), to the cache, at its `position`."""
        bias = None
        if isinstance(position, int):
            cache = cache[:, :, :, : position + 1]
        else:
            bias = torch.zeros(cache.shape[3], dtype=query.dtype, device=query.device)
            bias = bias.masked_fill(torch.arange(len(bias), device=query.device) > position, float("-inf"))
        _, keys, values = cache.unbind()
        if not self.by_sums:
            bias = None if bias is None else bias.view(1, 1, 1, -1)
            return F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=bias).squeeze(2)
        scaled = query * self.heads[1] ** -0.5
        scores = (keys.permute(2, 0, 1, 3) * scaled).sum(-1, keepdim=True)  # (positions, rows, heads, 1)
        weights = (scores if bias is None else scores + bias.view(-1, 1, 1, 1)).softmax(0)
        return (weights * values.permute(2, 0, 1, 3)).sum(0)


class _PromptCache:
    """What the prior's blocks take for a cache: writes the keys and values of a prompt into those of a `CodeWriter`."""

    def __init__(self, writer: CodeWriter, n_cells: int) -> None:
        self.writer, self.n_cells = writer, n_cells

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values (rows, heads, tokens, width) of a layer and give them back."""
        for kept, given in zip(self.writer.caches[layer][1:], (keys, values), strict=True):
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
            for cache in writer.caches:
                cache.zero_()  # positions not yet written are read with weight 0, and 0 * NaN would be NaN
            writer.begin(prior, modulation, uniform, scale, temperature, prompt)
            at = torch.zeros(1, dtype=torch.long, device=prior.device)
            for position in range(prior.n_codes):
                step(at.fill_(position))
            return _drawn(writer, prior, n_cells)
    writer = CodeWriter(prior, n_cells, is_guided, len(modulation))
    writer.begin(prior, modulation, uniform, scale, temperature, prompt)
    for position in range(prior.n_codes):
        writer.step(position)
    return _drawn(writer, prior, n_cells)


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
    for tensor in (*buffers, *writer.caches, *(t for pair in writer.products for t in pair)):
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


def _linear(x: Tensor, product: Product, out: Tensor | None = None) -> Tensor:
    """`x` (rows, inputs) -> (rows, outputs), or (parts, rows, outputs of a part) where there are several."""
    bias, weight = product
    if len(weight) == 1:
        return torch.addmm(bias, x, weight[0], out=out)
    return torch.baddbmm(bias.view(len(weight), 1, -1), x.expand(len(weight), -1, -1), weight, out=out)


def _drawn(writer: CodeWriter, prior: Any, n_cells: int) -> Tensor:
    """A copy of the codes of the first `n_cells`, (cells, latents)."""
    codes = writer.codes[1:, :n_cells].T.contiguous()
    return codes.clamp_max(prior.config.bos_token_id - 1)  # NaN finds no code
