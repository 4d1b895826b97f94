"""Figures of the reversion benchmark: enrichment curves with the null band, and selectivity."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from evae.common.figures import BACKGROUND, BASELINE, GENERATED, GUIDE, PALETTE, REAL, TEXT, look, new_figure, save
from evae.reversion.enrichment import null_band, recovery_curve
from evae.reversion.numbers import MethodResult, ReversionNumbers

MAX_COLUMNS = 3


def write_figures(result: ReversionNumbers, folder: Path) -> list[Path]:
    """Draw all figures as PNG; returns their paths."""
    with look():
        return [
            save(plot_enrichment(result), folder / "enrichment.png"),
            save(plot_selectivity(result), folder / "selectivity.png"),
        ]


def plot_enrichment(result: ReversionNumbers) -> Figure:
    """Recovered positives against rank of every method, by distance and by selectivity, over the band of chance."""
    figure = new_figure(10.6, 4.3)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, column, title in (
        (axes[0], "distance", "Ranked by distance to rest"),
        (axes[1], "selectivity", "Ranked by selectivity"),
    ):
        first = next(iter(result.methods.values()))
        own = first.enrichment if column == "distance" else first.selectivity
        if own.n_positives:
            low, high = null_band(own.n_targets, own.n_positives)
            x = np.arange(own.n_targets + 1) / own.n_targets
            ax.fill_between(
                x, low, high, step="post", color=BACKGROUND, lw=0, alpha=0.7, label="95 % of random rankings"
            )
        ax.plot([0, 1], [0, 1], color=BASELINE, lw=1, ls=(0, (4, 3)))
        for i, (name, method) in enumerate(result.methods.items()):
            scores = _scores(method, column)
            enrichment = method.enrichment if column == "distance" else method.selectivity
            x, y = recovery_curve(scores, method.ranking["positive"].to_numpy(dtype=bool))
            label = f"{name} · {enrichment.auc:.3f}"
            ax.plot(
                x, y, color=PALETTE[i % len(PALETTE)], lw=3.4 if i == 0 else 1.6, drawstyle="steps-post", label=label
            )
        ax.set_title(title)
        ax.set_xlabel("share of the ranking read")
        ax.set_xlim(-0.01, 1.01)
        ax.set_ylim(-0.02, 1.04)
        ax.grid()
        ax.legend(loc="lower right", title="AUC", title_fontsize=8, fontsize=8, alignment="left")
    axes[0].set_ylabel("positive controls recovered")
    return figure


def plot_selectivity(result: ReversionNumbers) -> Figure:
    """Distance to rest of every target without and with the stress, one panel a method; positives are labelled."""
    methods = list(result.methods.values())
    columns = min(MAX_COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(4.3 * columns, 4.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, method in zip(axes, methods, strict=False):
        _selectivity_panel(ax, method)
    for ax in axes[len(methods) :]:
        ax.set_axis_off()
    figure.supxlabel("distance to rest, untreated arm", fontsize=9)
    figure.supylabel("distance to rest, treated arm", fontsize=9)
    return figure


def _selectivity_panel(ax: Axes, method: MethodResult) -> None:
    known = method.ranking.dropna(subset=["distance", "distance_untreated"])
    positive = known["positive"].to_numpy(dtype=bool)
    x, y = known["distance_untreated"].to_numpy(), known["distance"].to_numpy()
    ax.scatter(x[~positive], y[~positive], s=12, color=GUIDE, lw=0, zorder=2)
    ax.scatter(x[positive], y[positive], s=34, color=GENERATED, lw=0, zorder=4)
    stressed = [d for d in method.controls.values() if np.isfinite(d)]
    if stressed:
        ax.axhline(float(np.mean(stressed)), color=REAL, lw=1.2, zorder=1)
        at = float(np.mean(stressed))
        text = ax.annotate("treated controls", (1, at), xycoords=ax.get_yaxis_transform(), xytext=(-2, 3),
                           textcoords="offset points", ha="right", color=REAL, fontsize=7.5, zorder=5)  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    _limits(ax, x, y, stressed)
    both = [max(ax.get_xlim()[0], ax.get_ylim()[0]), min(ax.get_xlim()[1], ax.get_ylim()[1])]
    if both[0] < both[1]:
        ax.plot(both, both, color=BASELINE, lw=0.8, ls=(0, (4, 3)), zorder=1)
    _label(ax, known[positive])
    ax.set_title(f"{method.name} · selectivity AUC {method.selectivity.auc:.3f}")
    ax.grid()


def _limits(ax: Axes, x: np.ndarray, y: np.ndarray, stressed: list[float]) -> None:
    """The bulk of the targets fills the panel; a lone far one does not squeeze it."""
    if not len(x):
        return
    for values, set_limits in ((x, ax.set_xlim), (np.append(y, stressed), ax.set_ylim)):
        low, high = float(values.min()), float(np.quantile(values, 0.995))
        pad = 0.08 * (high - low) + 1e-9
        set_limits(low - pad, high + pad)


def _label(ax: Axes, positives: pd.DataFrame) -> None:
    """Names beside the points; those that would overlap are moved apart vertically and tied to their point."""
    width, height = ax.get_xlim(), ax.get_ylim()
    step = 0.055 * (height[1] - height[0])
    last = -np.inf
    for name, row in positives.sort_values("distance").iterrows():
        x, y = float(row["distance_untreated"]), float(row["distance"])
        at = max(y, last + step)
        last = at
        right = x < width[0] + 0.7 * (width[1] - width[0])
        offset = 0.03 * (width[1] - width[0]) * (1 if right else -1)
        text = ax.annotate(
            str(name), (x, y), xytext=(x + offset, at), ha="left" if right else "right", va="center", fontsize=8,
            color=TEXT, zorder=5, annotation_clip=True,
            arrowprops={"arrowstyle": "-", "color": BASELINE, "lw": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _scores(method: MethodResult, column: str) -> np.ndarray:
    values = method.ranking[column].to_numpy()
    return values if column == "distance" else -values
