"""Pieces of messages: counts with their noun, the first of many names, the first line of a library's error."""

from collections.abc import Sequence

from evae.models.contract_evae import number_of

__all__ = ["first_line", "first_of", "number_of"]  # number_of stands where models on the Hub have it, too


def first_of(names: Sequence[str], most: int) -> str:
    """The first names with commas, and "..." for those left out."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error; its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
