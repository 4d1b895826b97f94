"""Remarks of the library, through Python's logging under "evae".

They stand on standard error. Unless `logging.getLogger("evae").setLevel(...)` says otherwise, the verbosity of
transformers holds (`transformers.utils.logging.set_verbosity_info()` and its like), which shows warnings by default. As
those of the HuggingFace libraries, they go to other handlers only after `logging.getLogger("evae").propagate = True`.
"""

import logging
import sys
from collections.abc import Iterator
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


@contextmanager
def talkative() -> Iterator[None]:
    """Show all remarks, as the command line does, while the block runs."""
    before = logger("evae").level
    ROOT.setLevel(logging.INFO)
    try:
        yield
    finally:
        ROOT.setLevel(before)
