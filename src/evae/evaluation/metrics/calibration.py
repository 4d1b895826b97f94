"""Every metric between a control that knows nothing of the perturbation and one that is real cells.

score = (badness of the negative control - badness) / (badness of the negative control - badness of the positive one)

so 0.6 is 60 % of the way that these cells allow, whatever the metric. The negative control is the best system that
gives the same effect, or none, for all perturbations; the positive one the better of half of the real cells and the
interpolated duplicate. Both come from the same cells as the values. There is no score where the metric tells nothing on
these cells: where the positive control is not better than the negative one by more than two standard deviations of that
difference over the splits in halves (two standard errors over perturbations where there is a single split). After
Miller et al. 2025 (calibrated metrics, interpolated duplicate) and the Virtual Cell Challenge 2026 (the scale).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evae.evaluation.metrics.facts import BY_NAME, TABLES, Metric

GROUPS = ("paper", "robust", "perturbation", "differential expression", "extended", "diversity")
MATCHED = "matched"  # level of records against the same half of the real cells that the positive control stands against
COLUMNS = (
    *("group", "level", "metric", "system", "value", "negative", "negative_control", "positive", "positive_control"),
    *("score", "n_pairs", "why_not"),
)


@dataclass(frozen=True)
class Controls:
    """Which systems a score runs between.

    Attributes:
        negative: those that know nothing of the perturbation.
        positive: those that are the real cells again.
    """

    negative: Sequence[str]
    positive: Sequence[str]


def calibrated(records: pd.DataFrame, controls: Controls) -> pd.DataFrame:
    """Scores of all systems on all metrics that have a better direction.

    Args:
        records: one row a number, with the columns of `protocols.Record`.
        controls: the systems to run between.

    Returns:
        One row a metric and system with the columns `COLUMNS`; `score` is NaN where `why_not` says why.
    """
    rows: list[dict[str, object]] = []
    for table in TABLES:
        if table.group not in GROUPS:
            continue
        part = records[records["group"] == table.group]
        levels = {table.level, MATCHED} if table.level == "pair" else {table.level}
        part = part[part["level"].isin(levels)]
        for name, of_metric in part.groupby("metric", sort=False):
            metric = BY_NAME.get(str(name))
            if metric is not None and metric.better is not None:
                rows += _scores(metric, of_metric, controls, table.level)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _scores(metric: Metric, records: pd.DataFrame, controls: Controls, level: str) -> list[dict[str, object]]:
    """The rows of one metric."""
    matched = records["level"] == MATCHED
    if matched.any():  # all but the positive controls once more, against the half that these stand against
        records = records[matched | records["system"].isin(controls.positive)]
    units = _by_unit(records)
    if metric.nothing is not None:
        known = [s for s in controls.negative if s in units]
        units[known] = units[known].fillna(metric.nothing)
    negative, positive = (_best(metric, units, names) for names in (controls.negative, controls.positive))
    noise = _noise(metric, records, units, negative, positive)
    head = {"group": str(records["group"].iloc[0]), "level": level, "metric": metric.name}
    return [
        {**head, **_score(metric, units, str(system), negative, positive, noise)}
        for system in units
        if system not in controls.positive
    ]


def _by_unit(records: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every pair, or of all where nothing is of a pair: one column a system."""
    keys = ["cell_type", "perturbation"]
    return records.groupby([*keys, "system"], sort=False)["value"].mean().unstack("system")


def _best(metric: Metric, units: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Of some systems the best one that has a value for as many units as any of them."""
    known = units[[name for name in names if name in units]]
    counts = known.notna().sum()
    full = [name for name in known if counts[name] == counts.max() > 0]
    return min(full, key=lambda name: float(metric.badness(known[name]).mean()), default=None)


def _noise(
    metric: Metric, records: pd.DataFrame, units: pd.DataFrame, negative: str | None, positive: str | None
) -> float:
    """How much the difference of the two controls varies by chance; 0 where nothing can tell."""
    if negative is None or positive is None:
        return 0.0
    means = metric.badness(records.groupby(["system", "seed"])["value"].mean())
    by_seed = {name: means.get(name, pd.Series(dtype=float)) for name in (negative, positive)}
    splits = [seed for seed in by_seed[positive].index if seed >= 0]
    if len(splits) > 1:
        there = by_seed[positive][splits] - by_seed[negative].reindex(splits).fillna(
            metric.badness(units[negative]).mean()
        )
        return float(np.std(there, ddof=1))
    difference = (metric.badness(units[negative]) - metric.badness(units[positive])).dropna()
    return float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 2 else 0.0


def _score(
    metric: Metric, units: pd.DataFrame, system: str, negative: str | None, positive: str | None, noise: float
) -> dict[str, object]:
    row: dict[str, object] = {"system": system, "negative_control": negative, "positive_control": positive}
    named = [name for name in (system, negative, positive) if name is not None]
    common = units[list(dict.fromkeys(named))].dropna()
    means = common.mean()
    values = {"value": system, "negative": negative, "positive": positive}
    row |= {key: float("nan") if name is None else float(means[name]) for key, name in values.items()}
    row |= {"n_pairs": len(common), "score": float("nan"), "why_not": ""}
    if negative is None or positive is None:
        missing = "negative" if negative is None else "positive"
        return {**row, "why_not": f"no {missing} control has a value"}
    if not len(common):
        return {**row, "why_not": "not defined where both controls are"}
    bad = {key: float(metric.badness(common[str(name)]).mean()) for key, name in values.items()}
    reachable = bad["negative"] - bad["positive"]
    if not reachable > max(2 * noise, 1e-12):
        return {**row, "why_not": f"empty range: {positive} is not surely better than {negative}"}
    return {**row, "score": (bad["negative"] - bad["value"]) / reachable}
