"""The axes that a picture is drawn on, and the colours of what stands beside one another."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from evae.common.figures import CONTROL, GENERATED, PALETTE, REAL, look

_USUAL = {"real": REAL, "predicted": GENERATED, "control": CONTROL, "controls": CONTROL}


@contextmanager
def axes(ax: Axes | None, width: float = 4.6, height: float = 4.2) -> Iterator[Axes]:
    """The given axes, or those of a new figure that pyplot, and so a notebook, knows; drawn on with one look."""
    if ax is None:
        # Loads a notebook's backend, which turns the showing of figures on. Within `look` that would be undone.
        plt.draw_if_interactive()  # type: ignore[no-untyped-call]
    with look():
        yield plt.figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def colours(groups: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each name: real, predicted and control have theirs, the others what is left of the palette."""
    free = iter([c for c in PALETTE if c not in {_USUAL.get(name) for name in groups}] * len(groups))
    return {name: _USUAL.get(name) or next(free) for name in groups}
