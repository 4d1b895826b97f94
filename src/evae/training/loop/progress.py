"""What the user sees while a run goes on: a bar on a terminal or in a notebook, else plain lines of the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evae.common.logs import logger
from evae.common.progress import Advance, Bar, progress_bar

LOG = logger(__name__)

SECONDS_BETWEEN_LINES = 30  # in a log file, where no bar moves


class TrainingProgress:
    """A bar over the updates, with the loss, the cells per second and the share of the time spent waiting for data.

    Where nobody watches a bar the same stands in a line of the log now and then, the first at once.
    """

    def __init__(self, bar: Bar, advance: Advance, done: int, total: int, show: bool):
        self._bar, self._advance, self._done, self._total, self._show = bar, advance, done, total, show
        self._said = -float("inf")

    def update(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of the log."""
        note = f"loss {line['loss']:.4g}  {line['cells_per_second']:,.0f} cells/s  data wait {line['data_wait']:.0%}"
        self._advance(step - self._done, note)
        self._done = step
        now = time.monotonic()
        if not self._bar.moves and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            self.say(f"step {step}/{self._total}  {note}")

    def say(self, text: str) -> None:
        """Tell a line, on the rank that does."""
        if self._show:
            LOG.info(text)


@contextmanager
def training_progress(title: str, done: int, total: int, show: bool) -> Iterator[TrainingProgress]:
    """Yield the progress of a run.

    Args:
        title: what is trained.
        done: updates already made.
        total: updates in the whole run.
        show: whether this is the rank that prints.
    """
    with progress_bar(show, "updates") as bar:
        yield TrainingProgress(bar, bar.start(title, total, done), done, total, show)


def say_what_was_kept(step: int, total: int, best: dict[str, float] | None, choice: str) -> None:
    """Tell which step's weights a run ends with.

    Args:
        step: of the weights.
        total: updates made.
        best: "step" and "loss" of the lowest validation loss, if there was a validation.
        choice: the setting `final_weights`.
    """
    if choice == "best" and best is not None:
        why = f"the lowest validation loss, {best['loss']:.4g} (final_weights=best)"
    else:
        why = f"the last (final_weights={choice})"
    LOG.info(f"kept the weights of step {step}/{total}: {why}")
