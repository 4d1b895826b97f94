"""What a study says over its splits: values by split, wins, and paired tests between systems.

A test compares two systems on the same held-out (cell type, perturbation) pairs, each pair's value a mean over seeds:
Wilcoxon's signed-rank test on the differences, two-sided, with the false discovery rate of Benjamini and Hochberg over
all tests of the table. Pairs of one split share their training cells, and so are not wholly independent.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, wilcoxon

from evae.evaluation.metrics.facts import BY_NAME, Metric, MetricTable, shown
from evae.evaluation.systems.names import SPLIT_HALF, TOKENIZER_ALONE

LEVELS = (("paper", "pooled"), ("robust", "pooled"), ("perturbation", "pair"))  # whose metrics are compared
MIN_PAIRS = 2
TEST_COLUMNS = ("system", "other", "group", "metric", "n_pairs", "n_better", "median_difference", "p", "p_adjusted")


def compared_metrics(numbers: pd.DataFrame) -> list[tuple[MetricTable, Metric]]:
    """The metrics of `LEVELS` that a study shows and that are defined in it."""
    found = numbers[numbers["value"].notna()]
    there = set(zip(found["group"], found["level"], found["metric"], strict=True))
    return [
        (table, metric)
        for table, metrics in shown("study")
        for metric in metrics
        if (table.group, table.level) in LEVELS and (table.group, table.level, metric.name) in there
    ]


def by_split(numbers: pd.DataFrame, table: MetricTable, metric: Metric) -> pd.DataFrame:
    """Values of one metric, (systems, splits): means over seeds."""
    part = numbers[
        (numbers["group"] == table.group) & (numbers["level"] == table.level) & (numbers["metric"] == metric.name)
    ]
    named = part.assign(system=system_names(part))
    order = list(dict.fromkeys(named["system"]))
    grid = named.pivot_table(index="system", columns="split", values="value", aggfunc="mean")
    return grid.reindex(index=order, columns=list(dict.fromkeys(part["split"]))).dropna(how="all")


def wins(numbers: pd.DataFrame) -> pd.DataFrame:
    """In how many splits a system is the best of all, (systems, metrics); the floor and tokenizers alone do not count.

    A split counts for a metric where at least two systems have a value.
    """
    counts: dict[str, pd.Series] = {}
    for table, metric in compared_metrics(numbers):
        grid = by_split(numbers, table, metric)
        bad = grid[[is_rival(name) for name in grid.index]].apply(metric.badness)
        bad = bad.loc[:, bad.notna().sum() > 1]
        best = bad.eq(bad.min()) & bad.notna()
        name = metric.heading if table.group != "paper" else f"{metric.heading} (paper)"
        counts[name] = best.sum(axis=1)
    found = pd.DataFrame(counts).fillna(0).astype(int)
    found["all"] = found.sum(axis=1)
    return found.sort_values("all", ascending=False, kind="stable")


def paired_tests(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every prior against every other system, by every metric of pairs, with the columns `TEST_COLUMNS`.

    Args:
        pairs: as in `Results`.
    """
    named = pairs.assign(system=system_names(pairs))
    priors = list(dict.fromkeys(named.loc[named["prior"].notna(), "system"]))
    rivals = [name for name in dict.fromkeys(named["system"]) if is_rival(name)]
    others = [(a, b) for a in priors for b in rivals if a != b and (b not in priors or a < b)]
    rows = []
    for (group, metric), part in named.groupby(["group", "metric"], sort=False):
        units = part.pivot_table(index=["split", "cell_type", "perturbation"], columns="system", values="value")
        bad = BY_NAME[metric].badness(units)
        for system, other in others:
            if {system, other} <= set(bad):
                rows += _tested(bad[system] - bad[other], {"system": system, "other": other}, group, metric)
    found = pd.DataFrame(rows, columns=list(TEST_COLUMNS))
    if len(found):
        found["p_adjusted"] = false_discovery_control(found["p"])
    return found


def _tested(difference: pd.Series, names: dict[str, str], group: str, metric: str) -> list[dict[str, object]]:
    """One row, or none with fewer than `MIN_PAIRS` pairs; differences are negative where the first system is better."""
    d = difference.dropna().to_numpy()
    if len(d) < MIN_PAIRS:
        return []
    p = float(wilcoxon(d).pvalue) if np.any(d) else 1.0
    return [
        {
            **names, "group": group, "metric": metric, "n_pairs": len(d), "n_better": int((d < 0).sum()),
            "median_difference": float(np.median(d)), "p": p, "p_adjusted": p,
        }
    ]  # fmt: skip


def system_names(frame: pd.DataFrame) -> pd.Series:
    """A system with its head, where a study has several."""
    heads = frame["head"] if "head" in frame else pd.Series(index=frame.index, dtype=object)
    if heads.dropna().nunique() < 2:
        return frame["system"]
    return frame["system"].where(heads.isna(), frame["system"] + ", " + heads.astype(str))


def is_rival(system: str) -> bool:
    """Whether a system is to be beaten: not the real cells themselves, and no tokenizer alone."""
    return system != SPLIT_HALF and TOKENIZER_ALONE not in system


def grid_lines(grid: pd.DataFrame, corner: str) -> list[str]:
    """A Markdown table of a frame with one row for every index value."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    head = [line([corner, *grid.columns]), line(["---", *["---:"] * grid.shape[1]])]
    return head + [line([name, *row]) for name, row in zip(grid.index, grid.to_numpy(), strict=True)]
