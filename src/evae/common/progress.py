"""A progress bar with rate and remaining time, or nothing at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Advance(Protocol):
    def __call__(self, n: int) -> None: ...


class _Rate(TextColumn):
    def render(self, task: Task) -> Text:
        speed = "" if task.speed is None else f"{task.speed:,.0f} {self.text_format}/s"
        return Text(speed, style="progress.data.speed")


@contextmanager
def progress_bar(show: bool, unit: str = "cells") -> Iterator["Bar"]:
    """Yield a bar whose `start(title, total)` gives a function to call with the number of units done."""
    if not show:
        yield Bar(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        yield Bar(progress)


class Bar:
    """One line for each stage of the work."""

    def __init__(self, progress: Progress | None):
        self._progress = progress

    def start(self, title: str, total: int) -> Advance:
        progress = self._progress
        if progress is None:
            return lambda n: None
        task = progress.add_task(title, total=total)
        return lambda n: progress.advance(task, n)
