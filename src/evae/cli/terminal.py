"""What commands print: their results as plain lines, without the talk of the libraries below."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


def console() -> Console:
    """A console that neither colours numbers nor breaks lines, so that its output can be searched and copied."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str, style: str | None = None) -> None:
    """Print one line."""
    console().print(text, style=style, markup=False)


@contextmanager
def plain_warnings(words: Callable[[str], str]) -> Iterator[None]:
    """Warnings to the user as one line in the `words` of the command, without the place in the code."""
    written = warnings.formatwarning

    def one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        if issubclass(category, UserWarning):
            return f"warning: {words(' '.join(str(message).split()))}\n"
        return written(message, category, *place, **more)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = written


def quiet_transformers() -> None:
    """Its bars and warnings would stand between the user and the command's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def join_names(names: list[Any], limit: int = 12) -> str:
    """Names with commas, the first few of many."""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
