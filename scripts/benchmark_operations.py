"""How many operations a call starts: an exact number, the same on every machine, and no card is needed.

On an accelerator every operation is at least one kernel, and small kernels take longer to launch than to run. Views
and empty tensors start nothing and are not counted. What reads a value back makes the host wait for the device.

Without a card the models compute as on one (`evae.models.device_evae`), in bfloat16 under autocast, on tensors that
have a device and a shape but no values: nothing is computed, and reading back is impossible. The CPU's autocast and
attention stand for the card's; what a kernel of theirs does inside is not seen.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from evae.models.device_evae import as_on_accelerator

FREE = {
    "device",
    "_record_function_enter_new",
    "_record_function_exit",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "_unsafe_view",
    "lift_fresh",
    "alias",
}
READ_BACK = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "equal", "item"}


class ReadBack(RuntimeError):
    """A value was read back from the device."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched.

    Args:
        allow_read_back: whether to go on where a value is read back.

    Attributes:
        names: how often each operation ran.
        read_back: the operations among them that read values back.
    """

    def __init__(self, allow_read_back: bool = True) -> None:
        super().__init__()
        self.allow_read_back = allow_read_back
        self.names: Counter[str] = Counter()
        self.read_back: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname
        if name in READ_BACK:
            self.read_back[name] += 1
            if not self.allow_read_back:
                raise ReadBack(f"{name} reads a value back from the device")
        if not func.is_view and name not in FREE:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.names.total()


class NoCard:
    """Stands for an accelerator: models and tensors made inside `with` have no values."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        if FakeTensor not in _foreach_supported_types:  # clipping then works on all gradients at once, as on a card
            _foreach_supported_types.append(FakeTensor)

    def __call__(self, make: Callable[[], Any]) -> Any:
        """What `make` gives when it computes real values, as tensors without values."""
        with unset_fake_temporarily():
            made = make()
        return tree_map_only(Tensor, self.mode.from_tensor, made)

    @contextmanager
    def on(self) -> Iterator[None]:
        with self.mode, as_on_accelerator(), torch.autocast("cpu", torch.bfloat16):
            yield


@dataclass
class Count:
    """Operations of one call.

    Attributes:
        names: how often each operation ran.
        read_back: those among them that read a value back.
        stopped_at: what read a value back where there was none, which ended the call; "" where nothing did.
    """

    names: Counter[str]
    read_back: Counter[str]
    stopped_at: str = ""

    @property
    def total(self) -> int:
        return self.names.total()


def count(work: Callable[[], Any], allow_read_back: bool = True) -> Count:
    """Count the second of two calls, the first makes what is kept; without values, up to the first read-back."""
    operations, stopped_at = Operations(allow_read_back), ""
    try:
        work()
        torch.clear_autocast_cache()  # in use, every call casts the weights anew
        with operations:
            work()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        stopped_at = error.func._opname
    return Count(operations.names, operations.read_back, stopped_at)


def count_row(title: str, contenders: dict[str, Callable[[], Any]]) -> list[dict[str, Any]]:
    """Operations of a row's contenders, one record each."""
    records = []
    for name, work in contenders.items():
        found = count(work)
        kinds = dict(found.names.most_common())
        records.append(
            {
                "row": title,
                "contender": name,
                "operations": None if found.stopped_at else found.total,
                "read_back": found.stopped_at or found.read_back.total(),
                "kinds": kinds,
            }
        )
    return records


def operations_table(records: list[dict[str, Any]]) -> str:
    """The counts in Markdown; a call that cannot go on without a value has none."""
    lines = ["| | | operations | read back | most frequent |", "| --- | --- | --- | --- | --- |"]
    for r, previous in zip(records, [None, *records], strict=False):
        title = "" if previous and previous["row"] == r["row"] else r["row"]
        often = ", ".join(f"{kind} {n:,}" for kind, n in list(r["kinds"].items())[:4])
        total = "-" if r["operations"] is None else f"{r['operations']:,}"
        lines.append(f"| {title} | {r['contender']} | {total} | {r['read_back']} | {often} |")
    return "\n".join(lines) + "\n"
