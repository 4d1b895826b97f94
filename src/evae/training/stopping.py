"""The two early ends of a run: SIGTERM, as pre-emptible machines send it, and a loss that is no number.

After SIGTERM the step is finished, a checkpoint written, and the exit code is 0; before the first step there is nothing
to write. A loss or gradient that is no number leaves the cells that caused it and a message that says what to do.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from evae.models.contract_evae import EvaeError
from evae.training.progress import console
from evae.training.run_folder import RESUMED, RunFolder
from evae.training.settings import Settings
from evae.training.validation import Batch


def save_offending_batches(
    run: RunFolder,
    accelerator: Accelerator,
    step: int,
    losses: Tensor,
    batches: Sequence[Batch],
    settings: Settings,
) -> NoReturn:
    """Save this rank's batches of the step if its loss is no number, or if every loss is one; then raise.

    The file `nonfinite-step-*-rank-*.safetensors` holds "part0/counts", "part0/gene_ids" and so on: one
    part for every forward pass of the step.

    Args:
        run: where the file goes.
        accelerator: the rank.
        step: the update, counted from 1.
        losses: the loss of every rank in this step, (ranks,).
        batches: this rank's batches in this step.
        settings: named in the message.

    Raises:
        EvaeError: always.
    """
    loss_is_bad = not bool(losses.isfinite().all())
    if not loss_is_bad or not bool(losses[accelerator.process_index].isfinite()):
        path = run.path / f"nonfinite-step-{step:08d}-rank-{accelerator.process_index:05d}.safetensors"
        save_file({f"part{i}/{k}": t.contiguous() for i, b in enumerate(batches) for k, t in b.items()}, path)
    accelerator.wait_for_everyone()
    files = ", ".join(str(p) for p in sorted(run.path.glob(f"nonfinite-step-{step:08d}-*")))
    what = "the loss" if loss_is_bad else "the gradient"
    last = run.latest_checkpoint()
    since = f"resume=true goes on from step {last}" if last else "no checkpoint was written yet"
    raise EvaeError(
        f"{what} became NaN or infinite at step {step}; its batch is saved in {files}; look at those cells, "
        "or start "
        f"anew with a lower learning_rate (now {settings.learning_rate:g}) or mixed_precision=no ({since})."
    )


class StopOnTerminate:
    """A context in which SIGTERM sets `requested` instead of ending the process.

    Outside the main thread, where Python takes no signal handlers, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopOnTerminate":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@contextlib.contextmanager
def leaving_on_terminate(run: RunFolder, main: bool) -> Iterator[None]:
    """A context before the first step, in which SIGTERM ends the process at once, with exit code 0.

    Args:
        run: what would be gone on with.
        main: whether this is the rank that says how to go on.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        last = run.latest_checkpoint() if run.status == RESUMED else None
        on = "the same command starts again" if last is None else f"resume=true goes on from step {last}"
        console(main).print(f"stopped by SIGTERM before training began; {on}", highlight=False)
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():  # where Python takes no signal handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
