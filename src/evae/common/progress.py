"""How far the work is: a line with a bar for each stage on a terminal, plain lines in a log file, or nothing at all."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")


class Advance(Protocol):
    """Tells that `n` more units are done, and shows a note in place of the rate if there is one."""

    def __call__(self, n: int, note: str = "") -> None: ...


def no_progress(n: int, note: str = "") -> None:
    """The `Advance` of work that nobody watches."""


class _Rate(TextColumn):
    """The note of the stage, else units a second."""

    def render(self, task: Task) -> Text:
        rate = "" if task.speed is None or not self.text_format else f"{task.speed:,.0f} {self.text_format}/s"
        return Text(task.fields["note"] or rate, style="progress.data.speed")


def console(show: bool = True) -> Console:
    """The console that progress and remarks are written to, standard error; silent unless `show`."""
    return Console(stderr=True, quiet=not show, soft_wrap=True)


@contextmanager
def progress_bar(show: bool, unit: str = "cells", transient: bool = False) -> Iterator["Bar"]:
    """Yield a `Bar` that shows the stages of some work while the block runs.

    Args:
        show: False shows nothing, for callers that do not want it and for all ranks but the main one.
        unit: what is counted, for the rate; "" shows none.
        transient: remove the lines in the end.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console(show), transient=transient, disable=not show) as progress:
        yield Bar(progress)


class Bar:
    """One line for each stage of the work."""

    def __init__(self, progress: Progress):
        self._progress = progress

    @property
    def moves(self) -> bool:
        """Whether the bars are seen while the work goes on; in a log file they are written once, at the end."""
        return self._progress.console.is_terminal

    def start(self, title: str, total: int | None, done: int = 0) -> Advance:
        """Begin a stage of `total` units (None where that is not known), `done` of them already."""
        task = self._progress.add_task(title, total=total, completed=done, note="")

        def advance(n: int, note: str = "") -> None:
            self._progress.update(task, advance=n, note=note)

        return advance

    def track(
        self, work: Iterable[Item], title: str, total: int | None = None, size: Callable[[Item], int] = lambda item: 1
    ) -> Iterator[Item]:
        """Go through `work` as a stage of its own.

        Args:
            work: what to go through.
            title: of the stage.
            total: units in all; the length of `work`, where it has one, if None.
            size: units of an item.
        """
        advance = self.start(title, len(work) if total is None and isinstance(work, Sized) else total)
        for item in work:
            yield item
            advance(size(item))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)
