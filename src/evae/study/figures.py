"""The two plots of a study: radars of all metrics, and metrics along the heads."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evae.common.figures import PALETTE, headline, new_figure, on_radar, radar
from evae.common.numbers import format_number
from evae.evaluation.metrics.facts import BY_NAME, METRICS, TABLES
from evae.evaluation.metrics.radar import radar_scores
from evae.evaluation.systems.names import CONTROL_COPY, SPLIT_HALF

Key: TypeAlias = tuple[str, str, str]  # group, level, metric
# From the poorest to the richest distribution that a head draws from: a point, a gate and a point, a parametric
# distribution over counts, a free one.
HEADS_BY_RICHNESS = ("mse", "hurdle", "nb", "ce-quantile")


def plot_radars(numbers: pd.DataFrame) -> Figure | None:
    """A radar for every head: metrics of all systems, scaled from control copy (0) to real split half (1).

    None where fewer than three metrics can be scaled.
    """
    priors = numbers[numbers["prior"].notna()]
    baselines = numbers[numbers["tokenizer"].isna()]
    heads = _in_order(priors["head"])
    scores = {
        h: radar_scores(pd.concat([baselines, priors[priors["head"] == h]]), CONTROL_COPY, SPLIT_HALF) for h in heads
    }
    titles = list(next(iter(scores.values())).index) if scores else []
    if len(titles) < 3:
        return None
    systems = list(dict.fromkeys(priors["system"]))
    n_rows = 1 if len(heads) < 3 else 2
    figure = new_figure(6.2 * -(-len(heads) // n_rows), 4.8 * n_rows + 0.8)
    panels = figure.subplots(n_rows, -(-len(heads) // n_rows), subplot_kw={"projection": "polar"}, squeeze=False).flat
    for ax, head in zip(panels, [*heads, *[None] * (len(panels) - len(heads))], strict=True):
        ax.set_visible(head is not None)
        if head is None:
            continue
        angles = radar(ax, titles, zero=CONTROL_COPY, one=SPLIT_HALF)
        for system, color in zip(systems, PALETTE, strict=False):
            if system in scores[head] and scores[head][system].notna().any():
                ax.plot(angles, on_radar(scores[head][system]), color=color, lw=1.8, label=system)
        ax.set_title(head, pad=18)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    headline(figure, "From control copy (0) to real cells (1), by head\n")
    return figure


def plot_head_axis(numbers: pd.DataFrame) -> Figure | None:
    """Metrics along the heads, variance-sensitive beside mean-sensitive; None with fewer than two heads.

    Every line is scaled over the heads from worst (0) to best (1) within a system and a seed, then averaged; the
    label says between which values it moves.
    """
    priors = numbers[numbers["prior"].notna()]
    heads = [h for h in HEADS_BY_RICHNESS if (priors["head"] == h).any()]
    if len(heads) < 2:
        return None
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    families = (("Variance-sensitive", sensitive_to("variance")), ("Mean-sensitive", sensitive_to("mean")))
    for ax, (title, metrics), color in zip(panels, families, PALETTE, strict=False):
        lines = {key: scaled_over_heads(priors, key, heads) for key in _as_evaluated(numbers, metrics)}
        lines = {key: line for key, line in lines.items() if not np.isnan(line).any()}
        for at, (key, line) in enumerate(lines.items()):
            values = _values(priors, key).groupby(priors["head"])["value"].mean().reindex(heads)
            text = f"{BY_NAME[key[2]].title}  {format_number(values.iloc[0])} … {format_number(values.iloc[-1])}"
            ax.plot(range(len(heads)), line, color=color, lw=1, alpha=0.55, marker="os^Dvx"[at], ms=4, label=text)
        if lines:
            ax.plot(range(len(heads)), np.mean(list(lines.values()), axis=0), color=color, lw=3.2, label="mean")
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5)
        ax.set_xticks(range(len(heads)), heads)
        ax.set(ylim=(-0.05, 1.05), title=title, xlabel="head, from a point to a free distribution")
        ax.grid(axis="y")
    panels[0].set_ylabel("scaled over heads: 0 worst, 1 best")
    headline(figure, "What the head's sampling distribution decides")
    return figure


def sensitive_to(what: str) -> list[Key]:
    """The metrics that depend most on the "mean" or the "variance" of a model's cells, in robust tables."""
    tables = [table for table in TABLES if "radar" in table.places]
    return [
        (table.group, table.level, metric.name)
        for table in tables
        for metric in METRICS
        if table.group in metric.groups and metric.sensitive_to == what
    ]


def scaled_over_heads(priors: pd.DataFrame, key: Key, heads: list[str]) -> np.ndarray:
    """Score of every head from worst (0) to best (1), (heads,), mean over systems and seeds; NaN if there is none."""
    part = _values(priors, key)
    part = part.assign(bad=BY_NAME[key[2]].badness(part["value"]))
    grid = part.pivot_table(index=["system", "seed"], columns="head", values="bad")
    if not set(heads) <= set(grid):
        return np.full(len(heads), np.nan)
    grid = grid[heads].dropna()
    low, high = grid.min(axis=1), grid.max(axis=1)
    scores = grid.rsub(high, axis=0).div((high - low).where(high > low), axis=0)
    return scores.mean().to_numpy()


def _as_evaluated(numbers: pd.DataFrame, keys: Sequence[Key]) -> list[Key]:
    """Protocol `paper` in the place of `robust` where the suite did not compute that."""
    has_robust = bool((numbers["group"] == "robust").any())
    return [key if has_robust or key[0] != "robust" else ("paper", *key[1:]) for key in keys]


def _values(numbers: pd.DataFrame, key: Key) -> pd.DataFrame:
    group, level, metric = key
    return numbers[(numbers["group"] == group) & (numbers["level"] == level) & (numbers["metric"] == metric)]


def _in_order(heads: pd.Series) -> list[str]:
    found = set(heads.dropna())
    return [h for h in HEADS_BY_RICHNESS if h in found]
