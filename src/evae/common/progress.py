"""How far the work is: a bar for each stage on a terminal or in a notebook, and nothing where nobody watches."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


class Advance(Protocol):
    """Tells that `n` more units are done, and shows a note beside the rate if there is one."""

    def __call__(self, n: int, note: str = "") -> None: ...


def no_progress(n: int, note: str = "") -> None:
    """The `Advance` of work that nobody watches."""


def watched() -> bool:
    """Whether somebody sees bars: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def progress_bar(show: bool, unit: str = "cells", transient: bool = False) -> Iterator["Bar"]:
    """Yield a `Bar` that shows the stages of some work while the block runs.

    Args:
        show: False shows nothing, for callers that do not want it and for all ranks but the main one.
        unit: what is counted, for the rate.
        transient: remove the bars in the end.
    """
    with ExitStack() as stack:
        yield Bar(stack, show and watched(), unit, transient)


class Bar:
    """One bar for each stage of the work.

    Attributes:
        moves: whether bars are seen while the work goes on.
    """

    def __init__(self, stack: ExitStack, moves: bool, unit: str, transient: bool):
        self.moves = moves
        self._stack, self._unit, self._leave = stack, unit, not transient

    def start(self, title: str, total: int | None, done: int = 0) -> Advance:
        """Begin a stage of `total` units (None where that is not known), `done` of them already."""
        if not self.moves:
            return no_progress
        bar: Any = self._stack.enter_context(
            tqdm(
                desc=title, total=total, initial=done, unit=f" {self._unit}" if self._unit else "", leave=self._leave,
                dynamic_ncols=True, file=sys.stderr,
            )
        )  # fmt: skip

        def advance(n: int, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)

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
