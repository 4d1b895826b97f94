"""What the user sees while a run goes on: a bar on a terminal, plain lines in a log file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evae.common.progress import Advance, Bar, progress_bar


class TrainingProgress:
    """A bar over the updates, with the loss, the cells per second and the share of the time spent waiting for data."""

    def __init__(self, bar: Bar, advance: Advance, done: int):
        self._bar, self._advance, self._done = bar, advance, done

    def update(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of the log."""
        note = f"loss {line['loss']:.4g}  {line['cells_per_second']:,.0f} cells/s  data wait {line['data_wait']:.0%}"
        self._advance(step - self._done, note)
        self._done = step

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.say(text)


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
        yield TrainingProgress(bar, bar.start(title, total, done), done)
