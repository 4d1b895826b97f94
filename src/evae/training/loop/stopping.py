"""The two early ends of a run: SIGTERM, as pre-emptible machines send it, and a loss that is not finite.

After SIGTERM the step is finished, a checkpoint written, and the exit code is 0; before the first step there is nothing
to write. On several ranks it is enough that one of them gets it. A launcher has an exit code of its own: told to stop,
`torchrun` and `accelerate launch` tell their ranks, wait 30 seconds for them and end with 1. A loss or gradient that
is not finite leaves the cells that caused it and a message that says what to do.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import pyarrow as pa
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from evae.common.files import atomic_write, write_json
from evae.common.progress import console
from evae.models.contract_evae import EvaeError
from evae.training.loop.validation import Batch
from evae.training.resume.run_folder import RESUMED, RunFolder
from evae.training.settings import Settings

Ask = Callable[[], None]


def save_offending_batches(
    run: RunFolder,
    accelerator: Accelerator,
    step: int,
    losses: Tensor,
    batches: Sequence[Batch],
    settings: Settings,
    name_cells: Callable[[int], list[dict[str, Any]]],
) -> NoReturn:
    """Save this rank's batches of the step where its loss, or else the gradient, is not finite; then raise.

    The file `nonfinite-step-*-rank-*.safetensors` holds "part0/counts", "part0/gene_ids" and so on: one
    part for every forward pass of the step. The JSON file beside it names the cells: file, row in it, name; it is left
    out where the dataset can no longer be read.

    Args:
        run: where the file goes.
        accelerator: the rank.
        step: the update, counted from 1.
        losses: the loss of every rank in this step, (ranks,).
        batches: this rank's batches in this step.
        settings: named in the message.
        name_cells: says which cells were in the batch of a forward pass.

    Raises:
        EvaeError: always.
    """
    loss_is_bad = not bool(losses.isfinite().all())
    if not loss_is_bad or not bool(losses[accelerator.process_index].isfinite()):
        path = run.path / f"nonfinite-step-{step:08d}-rank-{accelerator.process_index:05d}.safetensors"
        with atomic_write(path) as temporary:
            save_file({f"part{i}/{k}": t.contiguous() for i, b in enumerate(batches) for k, t in b.items()}, temporary)
        with contextlib.suppress(EvaeError, OSError, pa.ArrowException):  # all ranks wait for this one below
            named = {f"part{i}": name_cells(i) for i in range(len(batches))}
            write_json(path.with_suffix(".json"), named)
    accelerator.wait_for_everyone()
    files = sorted(run.path.glob(f"nonfinite-step-{step:08d}-*"))
    named_too = all(file.with_suffix(".json") in files for file in files)
    saved = f"its batch is saved {'and its cells are named ' if named_too else ''}in {', '.join(map(str, files))}"
    what = "the loss" if loss_is_bad else "the gradient"
    last = run.latest_checkpoint()
    since = f"resume=true goes on from step {last}" if last else "no checkpoint was written yet"
    raise EvaeError(
        f"{what} became NaN or infinite at step {step}; {saved}; look at "
        f"those cells, or start anew with a lower learning_rate (now {settings.learning_rate:g}) or "
        f"mixed_precision=no ({since})."
    )


class StopOnTerminate:
    """A context in which SIGTERM sets `requested` instead of ending the process.

    An inner context knows what reached the outer one. Outside the main thread, where Python takes no signal handlers,
    it changes nothing.
    """

    def __init__(self) -> None:
        self._told = [False]
        self._previous: Any = None

    @property
    def requested(self) -> bool:
        return self._told[0]

    def __enter__(self) -> "StopOnTerminate":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGTERM)
            outer = getattr(self._previous, "__self__", None)
            if isinstance(outer, StopOnTerminate):
                self._told = outer._told
            signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._told[0] = True


@contextlib.contextmanager
def leaving_together(run: RunFolder, accelerator: Accelerator) -> Iterator[Ask]:
    """A context around a whole training, in which all ranks end with exit code 0 when one of them gets SIGTERM.

    It yields a function that ends them if one was told to. Where there are several ranks, all call it together, before
    the first step and while they prepare for it: one that left alone would leave the others waiting. During the steps
    the loop does as much with its own context, inside this one.

    Raises:
        SystemExit: code 0, from the function, or after a training that ended while it was told to stop.
    """
    with StopOnTerminate() as stop:

        def ask() -> None:
            told = float(stop.requested)
            if accelerator.num_processes > 1:
                told = float(accelerator.reduce(torch.tensor(told, device=accelerator.device), "sum"))
            if not told:
                return
            last = run.latest_checkpoint() if run.status == RESUMED else None
            on = "the same command starts again" if last is None else f"resume=true goes on from step {last}"
            said = "after training ended" if finished else f"before training began; {on}"
            console(accelerator.is_main_process).print(f"stopped by SIGTERM {said}", highlight=False)
            raise SystemExit(0)

        finished = False
        yield ask
        finished = True
        ask()


def asking(batches: Iterable[Batch], ask: Ask) -> Iterator[Batch]:
    """The batches, asking before each."""
    for batch in batches:
        ask()
        yield batch
