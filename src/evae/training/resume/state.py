"""What a run must remember, as named tensors and JSON: weights, AdamW, moving average, random states.

Frozen parameters (a prior's tokenizer) are left out: the run reloads them from where they came. Where FSDP has cut a
tensor into shards, one a rank, the whole of it is stored, so that a checkpoint fits any number of ranks, with FSDP or
without.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

OPTIMIZER_FIELDS = ("step", "exp_avg", "exp_avg_sq")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for every parameter that is trained; shared parameters once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters and all persistent buffers."""
    parameters = {name: p.detach() for name, p in trainable(model).items()}
    persistent = model.state_dict().keys()
    return parameters | {name: b for name, b in model.named_buffers() if name in persistent}


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with every shard put together; all ranks call this together."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def _cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a whole tensor where `like` is one, else the tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _own_part(tensor: Tensor) -> Tensor:
    """The memory that this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """Give back what FSDP put together for a pass without gradient: it would outlive the next change of the weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole `weights` into the model in place.

    Raises:
        KeyError: the names differ from the model's.
    """
    own = weights_of(model)
    if own.keys() != weights.keys():
        raise KeyError(sorted(own.keys() ^ weights.keys())[0])
    for name, tensor in own.items():
        tensor.copy_(_cut_like(weights[name], tensor))


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, fused where torch has it; decay on weight matrices only.

    Norms, biases and embedding tables are not decayed: decay there shrinks scales and rare genes, and
    regularises nothing.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.endswith("gene_offsets")}  # biases by gene
    parameters = list(trainable(model).values())
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in tables]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=fused)


def _ordered_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which the optimiser numbers them."""
    names = {id(p): name for name, p in trainable(model).items()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as "field/parameter name" -> tensor."""
    state = optimizer.state_dict()["state"]
    ordered = _ordered_parameters(model, optimizer)
    return {f"{f}/{ordered[i][0]}": torch.as_tensor(s[f]) for i, s in state.items() for f in OPTIMIZER_FIELDS}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, from whole tensors."""
    state = {
        i: {"step": tensors[f"step/{name}"]}
        | {f: _cut_like(tensors[f"{f}/{name}"], parameter) for f in ("exp_avg", "exp_avg_sq")}
        for i, (name, parameter) in enumerate(_ordered_parameters(model, optimizer))
        if f"step/{name}" in tensors
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class MovingAverage:
    """Exponential moving average of trained parameters and buffers: a <- d * a + (1 - d) * p.

    After step n, d = min(decay, (1 + n) / (10 + n)): early on it forgets the initial weights faster. Buffers
    such as running statistics are averaged too, so that they go with the averaged weights.

    Args:
        model: the model that is averaged; the average starts at its present values.
        decay: weight of the past, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.live = {name: t for name, t in weights_of(model).items() if t.is_floating_point()}
        self.decay = decay
        self.average = {name: t.clone() for name, t in self.live.items()}
        self._averages = [_own_part(t) for t in self.average.values()]
        self._lives = [_own_part(t) for t in self.live.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the optimiser step number `step`, counted from 1."""
        past = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._lives, 1 - past)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with the average; a second call exchanges them back."""
        for average, live in zip(self._averages, self._lives, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor]) -> None:
        """Copy a stored average, whole, in."""
        for name, tensor in self.average.items():
            tensor.copy_(_cut_like(average[name], tensor))


@contextmanager
def averaged(average: MovingAverage | None) -> Iterator[None]:
    """A context in which the model has its averaged weights, where there is an average."""
    if average:
        average.swap()
    yield
    if average:
        average.swap()


def random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every generator that training may draw from: tensors (uint8) and a JSON record."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - a model may draw from the global generator
    record = {"python": _listed(random.getstate()), "numpy": [kind, np.asarray(keys).tolist(), *rest]}
    return tensors, record


def restore_random_states(tensors: dict[str, Tensor], record: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(tensors["torch"].cpu())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].cpu(), device)
    version, internal, gauss = record["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = record["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


def _listed(state: Iterable[Any]) -> list[Any]:
    return [list(part) if isinstance(part, tuple) else part for part in state]
