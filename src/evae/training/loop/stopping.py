"""The two early ends of a run: a signal, and a loss that is not finite.

The signals are SIGTERM, as pre-emptible machines send it, and SIGINT, which is Ctrl-C. The step is finished, a
checkpoint written, and the exit code is 143 after SIGTERM and 130 after Ctrl-C, so that a script does not go on with a
model that is not there. Before the first step is done there is nothing to write: the process ends at once with the same
code, compiler or no compiler, and the run folder is as it was. Several ranks end together, and it is enough that one of
them gets the signal; only while the first step is being compiled does a rank end alone, upon which the launcher ends
the others. A second signal ends the process at once; the last checkpoint stays. A launcher has an exit code of its own:
`torchrun` and `accelerate launch` tell their ranks, wait 30 seconds for them and end with 1. A loss or gradient that is
not finite leaves the cells that caused it and a message that says what to do.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal, NoReturn

import psutil
import pyarrow as pa
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from evae.common.files import atomic_write, write_json
from evae.common.logs import logger
from evae.models.contract_evae import EvaeError
from evae.training.loop.validation import Batch
from evae.training.resume.run_folder import RESUMED, RunFolder
from evae.training.settings import Settings

LOG = logger(__name__)

StopCheck = Callable[[], None]
SIGNALS = {int(signal.SIGTERM): "SIGTERM", int(signal.SIGINT): "Ctrl-C"}
SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


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


def exit_code(number: int) -> int:
    """What a process ends with after a signal, as shells have it: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + number


class Termination:
    """What a signal has asked of this process, and how the process ends at once.

    Attributes:
        requested: the number of the signal that came; 0 for none.
        phase: how far the training is. Before the first step is done there is nothing to save.
    """

    def __init__(self, run: RunFolder, accelerator: Accelerator, compiled: bool):
        self.requested = 0
        self.phase: Literal["preparing", "first step", "later"] = "preparing"
        self._run, self._main, self._alone = run, accelerator.is_main_process, accelerator.num_processes == 1
        self._compiled, self._process = compiled, os.getpid()
        self._earlier_children = {child.pid for child in psutil.Process().children(recursive=True)}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:  # a forked worker has the handler too, but not the training
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.requested:
            self._end_at_once(f"stopped at once by a second {SIGNALS[number]}", number)
        else:
            self.requested = number
            compiling = self.phase == "first step" and self._compiled
            if compiling or (self._alone and self.phase != "later" and number == signal.SIGTERM):
                self._end_at_once(_before(number), number)  # other ranks would wait for a compiler for minutes
            elif self._alone and self.phase != "later":  # in a notebook, where Ctrl-C must leave the kernel alive
                self.leave(number)

    def leave(self, number: int) -> NoReturn:
        """End in order before the first step, together with the other ranks."""
        if self._main:
            self._undo(_before(number))
        raise SystemExit(exit_code(number))

    def _undo(self, said: str) -> None:
        """Leave the run folder as if a run without a checkpoint had never begun, and say how to go on."""
        with contextlib.suppress(OSError):  # another rank may do the same
            self._run.withdraw()
        last = self._run.latest_checkpoint() if self._run.status == RESUMED or self._run.begun else None
        on = "the same command starts again" if last is None else f"resume=true goes on from step {last}"
        # Not through Rich or sys.stderr: the signal may have come while they were being written to.
        with contextlib.suppress(OSError):
            os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}\n{said}; {on}\n".encode())

    def _end_at_once(self, said: str, number: int) -> NoReturn:
        """End without the interpreter's own end, which would wait for all that is still to be compiled."""
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended by itself
                if child.pid not in self._earlier_children:
                    child.kill()
        self._undo(said)
        os._exit(exit_code(number))


def _before(number: int) -> str:
    return f"stopped by {SIGNALS[number]} before training began"


_current: Termination | None = None  # signals belong to the process, so there is one at a time


@contextlib.contextmanager
def stop_on_signal(run: RunFolder, accelerator: Accelerator, compiled: bool) -> Iterator[Termination]:
    """A context in which a signal is remembered instead of ending the process, unless there is nothing to save.

    An inner context gets the object of the outer one. Outside the main thread, where Python takes no signal handlers,
    signals are left as they were. So is one that is ignored, as Ctrl-C is in the background of a script.

    Args:
        run: the folder that is left in order.
        accelerator: the rank.
        compiled: whether the first step compiles the model, which takes minutes.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or Termination(run, accelerator, compiled)
        return
    _current = Termination(run, accelerator, compiled)
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _current.receive) for number in heard}
    try:
        yield _current
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _current = None


@contextlib.contextmanager
def stopping_together(run: RunFolder, accelerator: Accelerator, compiled: bool) -> Iterator[StopCheck]:
    """A context around a whole training, in which all ranks end with the same exit code when one of them gets a signal.

    It yields a function that ends them if one was told to. Where there are several ranks, all call it together, before
    the first step and while they prepare for it: one that left alone would leave the others waiting. During the steps
    the loop does as much.

    Raises:
        SystemExit: `exit_code`, from the function, or after a training that ended while it was told to stop.
    """
    with stop_on_signal(run, accelerator, compiled) as stop:

        def check_stop() -> None:
            number = largest_of_ranks(stop.requested, accelerator)
            if not number:
                return
            if not finished:
                stop.leave(number)
            said = f"stopped by {SIGNALS[number]} after training ended"
            if accelerator.is_main_process:
                LOG.warning(said)
            raise SystemExit(exit_code(number))

        finished = False
        yield check_stop
        finished = True
        check_stop()


def end_after(step: int, number: int, says: bool) -> NoReturn:
    """End in order after a step and its checkpoint, and say how to go on, on the rank that `says` so."""
    if says:
        LOG.warning(f"stopped by {SIGNALS[number]} after step {step}; resume=true goes on from here")
    raise SystemExit(exit_code(number))


def largest_of_ranks(number: int, accelerator: Accelerator) -> int:
    """The largest of the ranks' numbers; all ranks call this together."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def checked_for_stop(batches: Iterable[Batch], check_stop: StopCheck) -> Iterator[Batch]:
    """The batches, with a look for a signal before each."""
    for batch in batches:
        check_stop()
        yield batch
