"""What the user sees while a run goes on: a bar on a terminal, plain lines in a log file."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def console(main: bool = True) -> Console:
    """A console that is silent on every rank but the main one."""
    return Console(stderr=True, quiet=not main, soft_wrap=True)


class TrainingProgress:
    """A bar over the updates, with the loss, the cells per second and the share of the time spent waiting for data.

    Args:
        title: what is trained.
        done: updates already made.
        total: updates in the whole run.
        main: whether this is the rank that prints.
    """

    def __init__(self, title: str, done: int, total: int, main: bool):
        self.console = console(main)
        self.total = total
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        self.bar = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=not main
        )
        self.task = self.bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def update(self, step: int, line: dict[str, Any]) -> None:
        """Show one line of the log."""
        note = f"loss {line['loss']:.4g}  {line['cells_per_second']:,.0f} cells/s  data wait {line['data_wait']:.0%}"
        self.bar.update(self.task, completed=step, note=note)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False)


def tracked(items: Iterable[Any], title: str, total: int, main: bool = True) -> Iterator[Any]:
    """Go through batches of cells with a bar that counts cells; `items` are dicts of tensors."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console(main), disable=not main) as bar:
        task = bar.add_task(title, total=total)
        for batch in items:
            yield batch
            bar.advance(task, len(next(iter(batch.values()))))
