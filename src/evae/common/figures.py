"""One look for all figures: colours that colour-blind readers can tell apart, quiet axes, direct labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evae.common.files import atomic_write

REAL = "#0072B2"  # blue   } Okabe & Ito 2008
GENERATED = "#D55E00"  # vermillion
CONTROL = "#A0529B"  # purple, darker than theirs: it is text too
FLOOR = "#009E73"  # green: what real cells reach among themselves
BASELINE = "#8C8C8C"
BACKGROUND = "#DDDDDD"
GUIDE = "#BBBBBB"  # lines that only lead the eye
TEXT = "#333333"
# Several things side by side; the model's colour is the first.
PALETTE = (GENERATED, REAL, "#CC79A7", "#E69F00", "#56B4E9", FLOOR, "#000000")
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


def headline(figure: Figure, text: str) -> None:
    """The title of a figure of several panels, at its left edge."""
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=11)


def radar(ax: Axes, names: Sequence[str], zero: str, one: str) -> np.ndarray:
    """Make polar axes a radar with a ring at 0 and one at 1.

    Args:
        ax: polar axes.
        names: one a spoke, clockwise from the top.
        zero: what the ring at 0 stands for.
        one: what the ring at 1 stands for.

    Returns:
        The angles of the spokes, the first again at the end, (spokes + 1,).
    """
    angles = np.linspace(0, 2 * np.pi, len(names) + 1)
    around = np.linspace(0, 2 * np.pi, 200)
    ax.set_theta_zero_location("N")  # type: ignore[attr-defined]
    ax.set_theta_direction(-1)  # type: ignore[attr-defined]
    ax.plot(around, np.ones(200), color=FLOOR, lw=1.6, label=f"{one} (1)")
    ax.plot(around, np.zeros(200), color="#777777", lw=1.0, ls=(0, (3, 3)), label=f"{zero} (0)")
    ax.set(ylim=(-0.3, 1.2), yticks=[])
    ax.set_xticks(angles[:-1], names, fontsize=9)
    ax.tick_params(axis="x", pad=4)
    for label, angle in zip(ax.get_xticklabels(), angles, strict=False):  # they grow away from the rim
        sideways = float(np.sin(angle))
        label.set_horizontalalignment("center" if abs(sideways) < 0.3 else "left" if sideways > 0 else "right")
    ax.spines["polar"].set_visible(False)
    ax.grid(axis="x", color="#E5E5E5")
    return angles


def on_radar(scores: Sequence[float]) -> list[float]:
    """Scores as a closed line on a radar: what is not defined stands at 0, what lies far outside at the edge."""
    clipped = np.clip(np.nan_to_num(np.asarray(scores, dtype=float)), -0.25, 1.15)
    return [*clipped, clipped[0]]
