"""Remarks of the library, through Python's logging under "evae".

They stand on standard error. Unless `logging.getLogger("evae").setLevel(...)` says otherwise, the verbosity of
transformers holds (`transformers.utils.logging.set_verbosity_info()` and its like), which shows warnings by default. As
those of the HuggingFace libraries, they go to other handlers only after `logging.getLogger("evae").propagate = True`.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

ROOT = logging.getLogger("evae")
_AS_TRANSFORMERS = logging.INFO - 1  # a level that nobody sets by hand


class _StandardError(logging.Handler):
    """Writes plain lines to what is standard error at that time, above bars that are moving there."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= (verbosity() if ROOT.level == _AS_TRANSFORMERS else ROOT.level)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def logger(name: str) -> logging.Logger:
    """The logger of a module, by its `__name__`."""
    if not any(isinstance(handler, _StandardError) for handler in ROOT.handlers):
        ROOT.addHandler(_StandardError())
        ROOT.propagate = False
        if ROOT.level == logging.NOTSET:
            ROOT.setLevel(_AS_TRANSFORMERS)
    return logging.getLogger(name)


def verbosity() -> int:
    """The level that transformers shows; warnings where it is not imported."""
    module = sys.modules.get("transformers.utils.logging")
    return int(module.get_verbosity()) if module else logging.WARNING


class _InWords(logging.Formatter):
    """Remarks in other words."""

    def __init__(self, words: Callable[[str], str]) -> None:
        super().__init__()
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        return self.words(super().format(record))


@contextmanager
def talkative(words: Callable[[str], str] = str) -> Iterator[None]:
    """Show all remarks, as the command line does, while the block runs; `words` says them in its own."""
    before = logger("evae").level
    own = [handler for handler in ROOT.handlers if isinstance(handler, _StandardError)]
    ROOT.setLevel(logging.INFO)
    for handler in own:
        handler.setFormatter(_InWords(words))
    try:
        yield
    finally:
        ROOT.setLevel(before)
        for handler in own:
            handler.setFormatter(None)
