"""Where the time of a training step goes: data, forward, backward, optimizer."""

import time
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "optimizer")


class StepClock:
    """Sums up the parts of steps without waiting for the device before it is read.

    Args:
        device: on a GPU the marks are events in its stream, elsewhere times of the host.
        on: whether to measure at all.
    """

    def __init__(self, device: torch.device, on: bool):
        self.on, self.cuda = on, device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self.steps = 0

    def mark(self, part: str = "") -> None:
        """What ran since the last mark was `part`; without a part, it does not count."""
        if not self.on:
            return
        if self.cuda:
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((part, now))
        self.steps += part == PARTS[-1]

    def read(self) -> dict[str, float]:
        """Seconds a step of every part since the last reading; empty where nothing was measured."""
        if not self.steps:
            return {}
        if self.cuda:
            torch.cuda.synchronize()
        sums = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, now) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                sums[part] += before.elapsed_time(now) / 1e3 if self.cuda else now - before
        seconds = {f"seconds_{part}": total / self.steps for part, total in sums.items()}
        self.marks, self.steps = [], 0
        return seconds
