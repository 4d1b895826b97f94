"""Pieces of messages: the first of many names, and the first line of what a library says of its error."""

from collections.abc import Sequence


def first_of(names: Sequence[str], most: int) -> str:
    """The first names with commas, and "..." for those left out."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error; its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
