"""One look for all figures: colours that colour-blind readers can tell apart, quiet axes, direct labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evae.common.files import atomic_write

REAL = "#0072B2"  # blue   } Okabe & Ito 2008
GENERATED = "#D55E00"  # vermillion
FLOOR = "#009E73"  # green: what real cells reach among themselves
BASELINE = "#8C8C8C"
BACKGROUND = "#DDDDDD"
TEXT = "#333333"
DPI = 180

_SETTINGS: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": "#EBEBEB",
    "grid.linewidth": 0.8,
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw with the figures' settings, leaving the user's own untouched."""
    with mpl.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window and no global state."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return path


def bare(ax: Axes) -> None:
    """No ticks: the axes of an embedding carry no scale worth reading."""
    ax.set_xticks([])
    ax.set_yticks([])
