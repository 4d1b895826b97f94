"""Calibrated scores as people read them: every metric between what knows nothing and what is real cells again."""

import math
from typing import NamedTuple

import pandas as pd

from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import BY_NAME, shown
from evae.evaluation.systems.names import MODEL, OF_THE_MODEL, UNINFORMED

TITLE = "Scores: 0 knows nothing of the perturbation, 1 is the real cells again"
HEADINGS = ("metric", MODEL, "at 0", "at 1", "score", "best baseline")
EXPLAINED = (
    "A score is the way from a negative control (at 0: the best of control copy, mean of all perturbations and mean of "
    "all shifts) to a positive one (at 1: the better of half of the real cells and the interpolated duplicate) that a "
    "system has gone: 0.6 is 60 % of what these cells allow, whatever the metric. A good model may pass 1, for half of "
    "the real cells is noisy. Values here are against the same half of the real cells as the positive control's."
)


class ScoreTable(NamedTuple):
    """The table, and what is to be said below it."""

    rows: list[list[str]]
    note: str


def score_table(scores: pd.DataFrame, short: bool = True) -> ScoreTable:
    """The scores of the model beside the best baseline's, one row a metric.

    Args:
        scores: of `calibrated`.
        short: only the metrics that the terminal shows.
    """
    wanted = [(t.group, t.level, m.name) for t, metrics in shown("score" if short else "table") for m in metrics]
    parts = dict(list(scores.groupby(["group", "level", "metric"], sort=False)))
    pooled = {metric for _, level, metric in wanted if level == "pooled"}
    rows, empty = [], []
    for key in wanted:
        part = parts.get(key)
        own = None if part is None else part[part["system"] == MODEL]
        if part is None or own is None or own.empty:
            continue
        row, metric = own.iloc[0], BY_NAME[key[2]]
        # distances stand there twice, of all cells together and as means over perturbations
        mean = ", mean of pairs" if key[1] == "pair" and metric.name in pooled else ""
        if row["why_not"].startswith("empty"):
            empty.append(metric.title + mean)
        values = [format_number(row[name], 2 if short else 3) for name in ("value", "negative", "positive")]
        rows.append([metric.heading + mean, *values, _score(row["score"]), _best(part)])
    note = ""
    if empty:
        note = (
            f"No score for {', '.join(empty)}: neither half of the real cells nor the interpolated duplicate is surely "
            "better there than what knows nothing of the perturbation, so these tell no models apart on these cells."
        )
    return ScoreTable(rows, note)


def _best(part: pd.DataFrame) -> str:
    """The best score of a system that is neither the model's nor a negative control, and whose."""
    others = part[~part["system"].isin([*OF_THE_MODEL, *UNINFORMED]) & part["score"].notna()]
    if others.empty:
        return UNDEFINED
    best = others.loc[others["score"].idxmax()]
    return f"{_score(best['score'])} {best['system']}"


def _score(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.2f}"
