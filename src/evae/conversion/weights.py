"""The tensors of a run by name: each is taken once, with the shape that the configuration asks for, or left out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from evae.common.messages import first_of, number_of
from evae.models.contract_evae import EvaeError

SHOWN = 5  # names in a message


class Weights:
    """Tensors of a state dict, and which of them were used.

    Args:
        tensors: by name.
        source: where they come from, for messages.
        prefix: what the names begin with in this view.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str, prefix: str = "") -> None:
        self.tensors, self.source, self.prefix = tensors, source, prefix
        self.used: set[str] = set()
        self.left_out: dict[str, str] = {}

    def under(self, prefix: str) -> "Weights":
        """A view of the names that begin with `prefix`; what it uses counts here too."""
        view = Weights(self.tensors, self.source, self.prefix + prefix)
        view.used, view.left_out = self.used, self.left_out
        return view

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor in float64, in which layers are fused without rounding.

        Raises:
            EvaeError: it is not there, has another shape, or holds NaN or infinity.
        """
        full = self.prefix + name
        if full not in self.tensors:
            raise EvaeError(
                f"{self.source} lacks the tensor {full}, which config.yaml asks for; give the run's own files."
            )
        found = self.tensors[full]
        if tuple(found.shape) != shape:
            raise EvaeError(
                f"{full} is {list(found.shape)} in {self.source}, {list(shape)} by config.yaml and the names given; "
                "give files of the same run."
            )
        if not found.isfinite().all():
            raise EvaeError(f"{full} in {self.source} holds NaN or infinity; convert an earlier checkpoint.")
        self.used.add(full)
        return found.double()

    def linear(self, name: str, n_outputs: int, n_inputs: int) -> tuple[Tensor, Tensor]:
        """Weight (outputs, inputs) and bias (outputs,) of a linear layer."""
        return self.take(f"{name}.weight", n_outputs, n_inputs), self.take(f"{name}.bias", n_outputs)

    def norm(self, name: str, width: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer norm, (width,) each."""
        return self.take(f"{name}.weight", width), self.take(f"{name}.bias", width)

    def leave_out(self, prefix: str, reason: str) -> None:
        """Report all names that begin with `prefix` as left out."""
        names = [name for name in self.tensors if name.startswith(self.prefix + prefix)]
        self.used.update(names)
        if names:
            self.left_out[f"{self.prefix}{prefix}* ({len(names)} tensors)"] = reason

    def refuse(self, prefix: str, reason: str) -> None:
        """Raise `EvaeError` if names begin with `prefix`: without them the model would compute something else."""
        if any(name.startswith(self.prefix + prefix) for name in self.tensors):
            raise EvaeError(f"{self.source} has {self.prefix}{prefix}*: {reason}.")

    def check_all_used(self) -> None:
        """Raise `EvaeError` if a tensor was neither used nor left out: the model has a part that is not known here."""
        rest = sorted(self.tensors.keys() - self.used)
        if rest:
            shown = first_of(rest, SHOWN)
            lacking = number_of(len(rest), "tensor has", "tensors have")
            raise EvaeError(
                f"{self.source}: {lacking} no counterpart here ({shown}); convert a run whose config.yaml names all "
                "parts of its model."
            )


def fused(outer: tuple[Tensor, Tensor], inner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear layer that does what `inner` and then `outer` do."""
    return outer[0] @ inner[0], outer[0] @ inner[1] + outer[1]


def named(layer: str, weight_and_bias: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """State dict of a layer."""
    return {f"{layer}.weight": weight_and_bias[0], f"{layer}.bias": weight_and_bias[1]}


def attention(weights: Weights, theirs: tuple[str, str, str], ours: str, width: int) -> dict[str, Tensor]:
    """State dict of an attention layer.

    Args:
        weights: of the block.
        theirs: names of the query's, the keys' and values', and the output's layer. Where the first is "", queries,
            keys and values are one layer.
        ours: name of our layer.
        width: of the model.
    """
    query, others, output = theirs
    parts = [weights.linear(query, width, width)] if query else []
    joined = weights.linear(others, (3 - len(parts)) * width, width)
    parts += list(zip(joined[0].split(width), joined[1].split(width), strict=True))
    state = named(f"{ours}.o_proj", weights.linear(output, width, width))
    for letter, part in zip("qkv", parts, strict=True):
        state |= named(f"{ours}.{letter}_proj", part)
    return state


def feed_forward(weights: Weights, ours: str, width: int, inner: int) -> dict[str, Tensor]:
    """State dict of a feed-forward layer."""
    up, down = weights.linear("ffn.0", inner, width), weights.linear("ffn.3", width, inner)
    return named(f"{ours}.up", up) | named(f"{ours}.down", down)


def in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in float32, every tensor contiguous and by itself."""
    return {
        name: tensor.to(torch.float32).clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
