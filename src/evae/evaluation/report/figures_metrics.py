"""Figures of numbers: metrics beside baselines, per perturbation, and as a radar."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from evae.common.figures import BASELINE, FLOOR, GENERATED, GUIDE, TEXT, headline, new_figure, on_radar, radar
from evae.common.numbers import format_number
from evae.evaluation.metrics.facts import BY_NAME, Metric, shown
from evae.evaluation.metrics.radar import radar_scores
from evae.evaluation.report.tables import EvaluationNumbers
from evae.evaluation.systems.names import (
    CONTROL_COPY,
    MODEL,
    OF_THE_MODEL,
    PERTURBATION_MEAN,
    REAL_AGAIN,
    SPLIT_HALF,
)

MAX_PERTURBATIONS = 40


def plot_metrics(numbers: EvaluationNumbers, group: str, level: str, title: str) -> Figure | None:
    """One panel a metric of a table: a dot for every system, a line where two halves of real cells stand.

    A metric that is defined nowhere has no panel; None where that holds of all.
    """
    summary = numbers.summary()
    summary = summary[(summary["group"] == group) & (summary["level"] == level)]
    columns = next(metrics for table, metrics in shown("figure") if (table.group, table.level) == (group, level))
    metrics = [m for m in columns if summary.loc[summary["metric"] == m.name, "value"].notna().any()]
    if not metrics:
        return None
    systems = [MODEL, *[s for s in dict.fromkeys(summary["system"]) if s not in (MODEL, *REAL_AGAIN)]]
    figure = new_figure(3.3 * len(metrics) + 1.6, 0.32 * len(systems) + 1.5)
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        part = summary[summary["metric"] == metric.name].set_index("system")
        _metric_panel(ax, part, systems, metric)
    axes[0].set_yticks(range(len(systems)), systems)
    for label in axes[0].get_yticklabels():
        if label.get_text() == MODEL:
            label.set(color=GENERATED, fontweight="bold")
    axes[0].set_ylim(len(systems) - 0.4, -0.9)
    headline(figure, title)
    return figure


def _metric_panel(ax: Axes, part: pd.DataFrame, systems: list[str], metric: Metric) -> None:
    values = part["value"]
    shown = values[values.notna()]
    positive = shown[shown > 0]
    log = metric.better == "low" and len(positive) == len(shown) and shown.max() > 20 * shown.min()
    if log:
        ax.set_xscale("log")
    for y, system in enumerate(systems):
        value = values.get(system, np.nan)
        if np.isnan(value):
            ax.text(
                0.02,
                y,
                "not defined",
                transform=ax.get_yaxis_transform(),
                va="center",
                color=BASELINE,
                fontsize=7,
            )
            continue
        own = system == MODEL
        ax.plot(value, y, "o", ms=8 if own else 6, color=GENERATED if own else BASELINE, zorder=3)
        number = ax.annotate(
            format_number(value),
            (value, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8 if own else 7,
            color=GENERATED if own else TEXT,
            fontweight="bold" if own else "normal",
        )
        number.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    limit = values.get(SPLIT_HALF, np.nan)
    if not np.isnan(limit):
        ax.axvline(limit, color=FLOOR, lw=1.6, zorder=1)
        word = {"low": " (floor)", "high": " (ceiling)"}.get(str(metric.better), "")
        ax.text(limit, -0.62, f" {SPLIT_HALF}{word} {format_number(limit)} ", color=FLOOR, fontsize=7.5,
                va="center", ha=_side(ax, shown, limit, log))  # fmt: skip
    ax.set_title(metric.heading)
    ax.grid(axis="x")
    ax.margins(x=0.22)


def _side(ax: Axes, values: pd.Series, limit: float, log: bool) -> str:
    """Write the line's label towards the side with more room."""
    scale = np.log(values) if log else values
    at = np.log(limit) if log else limit
    return "left" if at < (scale.min() + scale.max()) / 2 else "right"


def plot_per_perturbation(numbers: EvaluationNumbers, metric: str = "pearson_delta") -> Figure | None:
    """Pearson delta of every perturbation: model, training mean of the perturbation, real split half."""
    records = numbers.records
    part = records[(records["group"] == "perturbation") & (records["metric"] == metric)]
    if part.empty:
        return None
    part = part.assign(pair=_pair_names(part))
    table = part.groupby(["pair", "system"])["value"].mean().unstack("system")
    order = SPLIT_HALF if SPLIT_HALF in table else MODEL
    table = table.sort_values(order, ascending=True)
    cut = len(table) > MAX_PERTURBATIONS
    if cut:  # evenly spaced over the ranking, so that the picture is not of the best only
        table = table.iloc[np.linspace(0, len(table) - 1, MAX_PERTURBATIONS).astype(int)]
    figure = new_figure(6.4, 0.24 * len(table) + 1.4)
    ax = figure.subplots()
    y = np.arange(len(table))
    ax.hlines(y, -1, 1, color="#F2F2F2", lw=1, zorder=0)
    ax.axvline(0, color=GUIDE, lw=0.8, zorder=1)
    marks = [
        (SPLIT_HALF, "|", FLOOR, 11),
        (PERTURBATION_MEAN, "D", BASELINE, 4.5),
        (MODEL, "o", GENERATED, 7),
    ]
    for system, marker, color, size in marks:
        if system in table:
            ax.plot(table[system], y, marker, color=color, ms=size, mew=2.2 if marker == "|" else 0, zorder=3,
                    label=system)  # fmt: skip
    ax.set_yticks(y, table.index)
    low = min(-0.15, float(np.nanmin(table[[s for s, *_ in marks if s in table]].to_numpy())) - 0.05)
    ax.set_xlim(low, 1.03)
    ax.set_ylim(-0.7, len(table) - 0.3)
    ax.set_xlabel(BY_NAME[metric].title + " (correlation of shifts from control over genes)")
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        borderaxespad=0.2,
        handletextpad=0.3,
        columnspacing=1.4,
    )
    heading = "Pearson Δ per perturbation" + (f" ({MAX_PERTURBATIONS} of {part['pair'].nunique()})" if cut else "")
    headline(figure, heading)
    return figure


def _pair_names(part: pd.DataFrame) -> pd.Series:
    if part["cell_type"].nunique() == 1:
        return part["perturbation"]
    return part["perturbation"] + " · " + part["cell_type"]


def plot_radar(numbers: EvaluationNumbers) -> Figure | None:
    """Metrics scaled from control copy (0) to real split half (1, the rim); None below three metrics.

    Beside the model stand the two baselines with the highest mean score, as the radar shows it.
    """
    scores = radar_scores(numbers.summary(), CONTROL_COPY, SPLIT_HALF)
    if len(scores) < 3:
        return None
    figure = new_figure(6.4, 5.8)
    ax = figure.add_subplot(projection="polar")
    angles = radar(ax, list(scores.index), zero=CONTROL_COPY, one=SPLIT_HALF)
    for system, style in zip(best_baselines(scores), (("-", "best baseline"), ("-.", "second best")), strict=False):
        line, place = style
        ax.plot(angles, on_radar(scores[system]), color=BASELINE, lw=1.6, ls=line, label=f"{system} ({place})")
    ax.plot(angles, on_radar(scores[MODEL]), color=GENERATED, lw=2.4, label=MODEL)
    ax.fill(angles, on_radar(scores[MODEL]), color=GENERATED, alpha=0.12)
    figure.legend(loc="outside lower center", ncols=2)
    headline(figure, "From control copy (0) to real cells (1)")
    return figure


def best_baselines(scores: pd.DataFrame) -> list[str]:
    """The baselines of a radar from best to worst, by the mean over the metrics of what it shows of them."""
    others = scores.drop(columns=[s for s in (*OF_THE_MODEL, CONTROL_COPY, *REAL_AGAIN) if s in scores])
    means = {str(system): float(np.mean(on_radar(others[system])[:-1])) for system in others}
    return sorted(means, key=lambda system: -means[system])
