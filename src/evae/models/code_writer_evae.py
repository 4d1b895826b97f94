"""CodeWriter: the autoregressive backbone laid out to write one code of every cell after another.

It computes what the blocks compute, for one token a cell. What stays the same from code to code is brought once into
the form in which it is used: weights lie as the products read them and, under autocast, in its precision, scales have
their 1 added, and keys and values go to memory that is laid out for the whole sequence.

A step is told its position as a whole number, and attends to what is written so far, or as a tensor. Then only numbers
on the device depend on the position: one graph serves all positions, which `torch.compile` compiles once and, on a
GPU, replays without the host. Its memory stays where it is, and is kept for the next cells of the same prior.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomness_evae import categorical

Product = tuple[Tensor, Tensor]  # bias (outputs) and weight (parts, inputs, outputs of a part)
Position = int | Tensor  # a tensor holds one whole number, shape (1,)


class CodeWriter:
    """Memory for the codes of cells, and the step that writes the next code of every cell.

    Args:
        prior: an autoregressive prior.
        n_cells: cells that are written.
        is_guided: whether the network sees every cell a second time, with the null condition.
        n_modulations: conditions that are told apart: one a row of the network, or 1 where all share it.
    """

    def __init__(self, prior: Any, n_cells: int, is_guided: bool, n_modulations: int) -> None:
        n_codes, layers, device = prior.n_codes, len(prior.blocks), prior.device
        self.n_cells, self.is_guided, self.eps = n_cells, is_guided, prior.norm.eps
        self.width, self.precision = prior.config.hidden_size, precision_of(prior)
        attention = prior.blocks[0].attention
        self.heads = (attention.n_heads, attention.head_width)
        self.products = [self._room_for(linears) for linears in _linears(prior)]
        self.tokens, self.places = (torch.empty_like(table) for table in _tables(prior))
        size = (2, n_cells * (1 + is_guided), attention.n_heads, n_codes, attention.head_width)
        self.keys_values = [torch.empty(size, dtype=self.precision, device=device) for _ in range(layers)]
        self.modulation = self.tokens.new_zeros(6 * layers + 2, n_modulations, self.width)
        self.codes = torch.full((n_codes + 1, n_cells), prior.config.bos_token_id, device=device)  # the first row stays
        self.uniform = torch.zeros(n_codes, n_cells, device=device)
        self.scale, self.temperature = torch.ones((), device=device), torch.ones((), device=device)

    def _room_for(self, linears: list[nn.Linear]) -> Product:
        """For products of one input, side by side; on a CPU in parts as wide as the model, which is a fifth faster."""
        weight, n_outputs = linears[0].weight, sum(linear.out_features for linear in linears)
        in_parts = n_outputs % self.width == 0 and weight.device.type == "cpu"
        n_parts = n_outputs // self.width if in_parts else 1
        empty = weight.detach().new_empty
        size = (n_parts, weight.shape[1], n_outputs // n_parts)
        return empty(n_outputs, dtype=self.precision), empty(size, dtype=self.precision)

    def begin(self, prior: Any, modulation: Tensor, uniform: Tensor, scale: float, temperature: float) -> None:
        """Take the prior's weights as they are now, and all that belongs to the cells; see `write_codes`.

        Cells beyond those of `uniform` are written too and belong to nobody.
        """
        for own, table in zip((self.tokens, self.places), _tables(prior), strict=True):
            own.copy_(table)
        for (bias, weight), linears in zip(self.products, _linears(prior), strict=True):
            bias.copy_(torch.cat([linear.bias for linear in linears]))
            sizes = [linear.out_features for linear in linears]
            parts = weight.unbind() if len(weight) > 1 else weight[0].split(sizes, dim=1)
            rows = [rows for linear in linears for rows in linear.weight.split(parts[0].shape[1])]
            for own, some in zip(parts, rows, strict=True):
                own.copy_(some.t())
        n_cells, given = len(uniform), modulation.transpose(0, 1)
        if self.modulation.shape[1] == 1:
            room = self.modulation
        else:
            room = self.modulation.unflatten(1, (-1, self.n_cells))[:, :, :n_cells]
            given = given.unflatten(1, (-1, n_cells)) if len(modulation) > 1 else given.unsqueeze(1)
        room.copy_(given)
        room[1::3] += 1  # the scales, of shift, scale, gate, shift, scale, gate, ..., shift, scale
        self.uniform[:, :n_cells] = uniform.T
        self.scale.fill_(scale)
        self.temperature.fill_(temperature)

    def step(self, position: Position) -> None:
        """Write the codes at `position`, of which those before are written."""
        x = F.embedding(_row(self.codes, position), self.tokens) + _row(self.places, position)
        if self.is_guided:
            conditional, null = self._logits(torch.cat([x, x]), position).float().chunk(2)
            logits = null + self.scale * (conditional - null)
        else:
            logits = self._logits(x, position).float()
        drawn = categorical((logits / self.temperature).softmax(-1), _row(self.uniform, position))
        if isinstance(position, int):
            self.codes[position + 1] = drawn
        else:
            self.codes.index_copy_(0, position + 1, drawn.unsqueeze(0))

    def _logits(self, x: Tensor, position: Position) -> Tensor:
        """Logits (rows, codes) of the code after the embedded tokens `x` (rows, width) and those before them."""
        modulation = self.modulation.unbind()
        for index, kept in enumerate(self.keys_values):
            to_heads, from_heads, up, down = self.products[4 * index : 4 * index + 4]
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[6 * index : 6 * index + 6]
            made = _linear(self._modulated(x, shift_a, scale_a), to_heads)
            query, new = made.reshape(len(x), 3, *self.heads).split((1, 2), dim=1)
            attended = _attend(query.transpose(1, 2), new.transpose(0, 1), kept, position)
            x = torch.addcmul(x, gate_a, _linear(attended.flatten(1), from_heads).flatten(1))
            hidden = F.gelu(_linear(self._modulated(x, shift_f, scale_f), up)).flatten(1)
            x = torch.addcmul(x, gate_f, _linear(hidden, down).flatten(1))
        return _linear(self._modulated(x, *modulation[-2:]), self.products[-1]).flatten(1)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[1:], eps=self.eps), scale)


def write_codes(
    prior: Any, modulation: Tensor, uniform: Tensor, scale: float, temperature: float, compiled: bool
) -> Tensor:
    """Draw code sequences, int64 (cells, latents).

    Args:
        prior: an autoregressive prior.
        modulation: its `condition_modulation` of the cells and then, with guidance, of their nulls; (1, ...) where all
            share it.
        uniform: a number on [0, 1) for every code, (cells, latents).
        scale: of the guidance; 1 is none.
        temperature: divides the logits.
        compiled: compile the step, or use what the last call compiled if that wrote as many cells or more.
    """
    n_cells, is_guided = len(uniform), scale != 1
    if compiled:
        with torch.inference_mode(False), torch.no_grad():  # memory that outlives the caller's mode
            writer, step = _compiled(prior, n_cells, is_guided)
            writer.begin(prior, modulation, uniform, scale, temperature)
            for kept in writer.keys_values:
                kept.zero_()  # what is not yet written is read too, with weight 0, which NaN would survive
            at = torch.zeros(1, dtype=torch.long, device=prior.device)
            for position in range(prior.n_codes):
                step(at.fill_(position))
            return writer.codes[1:, :n_cells].T.clone(memory_format=torch.contiguous_format)  # no view: it is reused
    writer = CodeWriter(prior, n_cells, is_guided, len(modulation))
    writer.begin(prior, modulation, uniform, scale, temperature)
    for position in range(prior.n_codes):
        writer.step(position)
    return writer.codes[1:].T.contiguous()


_COMPILED: WeakKeyDictionary[Any, tuple[CodeWriter, Any]] = WeakKeyDictionary()


def _compiled(prior: Any, n_cells: int, is_guided: bool) -> tuple[CodeWriter, Any]:
    """The last writer of this prior with its compiled step, or a new one where it does not fit."""
    if prior in _COMPILED:
        writer, step = _COMPILED[prior]
        same = (writer.is_guided, writer.precision, writer.tokens.device, writer.tokens.dtype) == (
            is_guided, precision_of(prior), prior.device, prior.dtype,
        )  # fmt: skip
        if same and writer.n_cells >= n_cells:
            return writer, step
    writer = CodeWriter(prior, n_cells, is_guided, n_cells * (1 + is_guided))
    own = [writer.tokens, writer.places, writer.modulation, writer.codes, writer.uniform, writer.scale]
    for tensor in (*own, writer.temperature, *writer.keys_values, *(t for pair in writer.products for t in pair)):
        torch._dynamo.mark_static_address(tensor)  # a graph on a GPU may then write to it, and copies nothing
    mode = "reduce-overhead" if prior.device.type == "cuda" else "default"
    _COMPILED[prior] = writer, torch.compile(writer.step, mode=mode, dynamic=False)
    return _COMPILED[prior]


def precision_of(prior: Any) -> torch.dtype:
    """In which the prior's products are computed."""
    kind = prior.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else prior.dtype


def _tables(prior: Any) -> tuple[Tensor, Tensor]:
    return prior.token_embedding.weight, prior.position_embedding.weight


def _linears(prior: Any) -> Iterator[list[nn.Linear]]:
    """The linear layers in the order in which a step uses them; those together that read the same."""
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


def _attend(query: Tensor, new: Tensor, kept: Tensor, position: Position) -> Tensor:
    """`query` (rows, heads, 1, width); `new` keys and values (2, rows, heads, width), to be `kept`."""
    if isinstance(position, int):
        kept[:, :, :, position] = new
        seen = kept[:, :, :, : position + 1]
        return F.scaled_dot_product_attention(query, seen[0], seen[1])
    kept.index_copy_(3, position, new.unsqueeze(3))
    is_written = torch.arange(kept.shape[3], device=kept.device) <= position
    return F.scaled_dot_product_attention(query, kept[0], kept[1], attn_mask=is_written.view(1, 1, 1, -1))
