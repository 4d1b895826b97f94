"""The two early ends of a run: SIGTERM, as pre-emptible machines send it, and a loss that is not finite.

After SIGTERM the step is finished, a checkpoint written, and the exit code is 0. Before the first step is done there is
nothing to write: the process ends at once with 0, compiler or no compiler, and the run folder is as it was. Several
ranks end together, and it is enough that one of them gets the signal; only while the first step is being compiled does
a rank end alone, with 143, upon which the launcher ends the others. A second SIGTERM ends the process at once with 143;
the last checkpoint stays. A launcher has an exit code of its own: told to stop, `torchrun` and `accelerate launch` tell
their ranks, wait 30 seconds for them and end with 1. A loss or gradient that is not finite leaves the cells that caused
it and a message that says what to do.
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
from evae.common.progress import console
from evae.models.contract_evae import EvaeError
from evae.training.loop.validation import Batch
from evae.training.resume.run_folder import RESUMED, RunFolder
from evae.training.settings import Settings

StopCheck = Callable[[], None]
BEFORE = "stopped by SIGTERM before training began"
SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides
SECOND_SIGTERM = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ends without further ado


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


class Termination:
    """What SIGTERM has asked of this process, and how the process ends at once.

    Attributes:
        requested: whether SIGTERM came.
        phase: how far the training is. Before the first step is done there is nothing to save.
    """

    def __init__(self, run: RunFolder, accelerator: Accelerator, compiled: bool):
        self.requested = False
        self.phase: Literal["preparing", "first step", "later"] = "preparing"
        self._run, self._main, self._alone = run, accelerator.is_main_process, accelerator.num_processes == 1
        self._compiled, self._process = compiled, os.getpid()
        self._earlier_children = {child.pid for child in psutil.Process().children(recursive=True)}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM."""
        if os.getpid() != self._process:  # a forked worker has the handler too, but not the training
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.requested:
            self._end_at_once("stopped at once by a second SIGTERM", SECOND_SIGTERM)
        else:
            self.requested = True
            if self.phase != "later" and self._alone:
                self._end_at_once(BEFORE, 0)
            elif self.phase == "first step" and self._compiled:  # the other ranks would wait for minutes
                self._end_at_once(BEFORE, SECOND_SIGTERM)

    def leave(self) -> NoReturn:
        """End in order before the first step, together with the other ranks."""
        if self._main:
            self._undo(BEFORE)
        raise SystemExit(0)

    def _undo(self, said: str) -> None:
        """Leave the run folder as if a run without a checkpoint had never begun, and say how to go on."""
        with contextlib.suppress(OSError):  # another rank may do the same
            self._run.withdraw()
        last = self._run.latest_checkpoint() if self._run.status == RESUMED or self._run.begun else None
        on = "the same command starts again" if last is None else f"resume=true goes on from step {last}"
        # Not through Rich or sys.stderr: the signal may have come while they were being written to.
        with contextlib.suppress(OSError):
            os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}\n{said}; {on}\n".encode())

    def _end_at_once(self, said: str, code: int) -> NoReturn:
        """End without the interpreter's own end, which would wait for all that is still to be compiled."""
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended by itself
                if child.pid not in self._earlier_children:
                    child.kill()
        self._undo(said)
        os._exit(code)


_current: Termination | None = None  # signals belong to the process, so there is one at a time


@contextlib.contextmanager
def stop_on_terminate(run: RunFolder, accelerator: Accelerator, compiled: bool) -> Iterator[Termination]:
    """A context in which SIGTERM is remembered instead of ending the process, unless there is nothing to save.

    An inner context gets the object of the outer one. Outside the main thread, where Python takes no signal handlers,
    SIGTERM is left as it was.

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
    previous = signal.signal(signal.SIGTERM, _current.receive)
    try:
        yield _current
    finally:
        signal.signal(signal.SIGTERM, previous)
        _current = None


@contextlib.contextmanager
def stopping_together(run: RunFolder, accelerator: Accelerator, compiled: bool) -> Iterator[StopCheck]:
    """A context around a whole training, in which all ranks end with exit code 0 when one of them gets SIGTERM.

    It yields a function that ends them if one was told to. Where there are several ranks, all call it together, before
    the first step and while they prepare for it: one that left alone would leave the others waiting. During the steps
    the loop does as much.

    Raises:
        SystemExit: code 0, from the function, or after a training that ended while it was told to stop.
    """
    with stop_on_terminate(run, accelerator, compiled) as stop:

        def check_stop() -> None:
            if not any_rank(stop.requested, accelerator):
                return
            if not finished:
                stop.leave()
            console(accelerator.is_main_process).print("stopped by SIGTERM after training ended", highlight=False)
            raise SystemExit(0)

        finished = False
        yield check_stop
        finished = True
        check_stop()


def any_rank(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set on any rank; all ranks call this together."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def checked_for_stop(batches: Iterable[Batch], check_stop: StopCheck) -> Iterator[Batch]:
    """The batches, with a look for SIGTERM before each."""
    for batch in batches:
        check_stop()
        yield batch
