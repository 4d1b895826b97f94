"""SIGTERM, as pre-emptible machines send it: finish the step, write a checkpoint, leave with exit code 0."""

import signal
import threading
from types import FrameType
from typing import Any


class StopOnTerminate:
    """A context in which SIGTERM sets `requested` instead of ending the process.

    Outside the main thread, where Python takes no signal handlers, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopOnTerminate":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
