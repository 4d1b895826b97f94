"""Ranks of the heads by three groups of metrics, along the axis from a point to a free distribution."""

import pandas as pd
from scipy.stats import spearmanr

from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import BY_NAME
from evae.study.compare import grid_lines
from evae.study.figures import HEADS_BY_RICHNESS, sensitive_to

GROUPS = {"robust": "distance of distributions", "diversity": "spread", "perturbation": "mean effect"}
RANKS = (
    "Rank of every head among the others, 1 is best, of the same system, seed and split; means over these. Heads stand "
    "from a point to a free distribution; ρ is Spearman's correlation of the rank with that order: below 0 the richer "
    "head is better, above 0 the poorer one."
)


def head_ranks(numbers: pd.DataFrame) -> pd.DataFrame:
    """Mean ranks, one row a metric with the columns `group`, `metric` and the heads; a group's mean comes last.

    Empty with fewer than two heads.
    """
    priors = numbers[numbers["prior"].notna()]
    heads = [head for head in HEADS_BY_RICHNESS if (priors["head"] == head).any()]
    rows = []
    for group, title in GROUPS.items():
        own = [
            {"group": title, "metric": BY_NAME[name].heading, **ranks}
            for table, level, name in (*sensitive_to("variance"), *sensitive_to("mean"))
            if table == group and (ranks := _ranks(priors, (table, level, name), heads))
        ]
        if own:
            mean = pd.DataFrame(own)[heads].mean().to_dict()
            rows += [*own, {"group": title, "metric": "mean", **mean}]
    return pd.DataFrame(rows) if len(heads) > 1 else pd.DataFrame()


def rank_lines(ranks: pd.DataFrame) -> list[str]:
    """A Markdown table of `head_ranks`."""
    heads = [head for head in HEADS_BY_RICHNESS if head in ranks]
    texts = ranks[heads].map(format_number)
    trend = [float(spearmanr(range(len(heads)), row).statistic) for row in ranks[heads].to_numpy()]
    texts["ρ"] = [UNDEFINED if pd.isna(value) else format_number(value) for value in trend]
    texts.index = pd.Index(ranks["group"] + ": " + ranks["metric"])
    return grid_lines(texts, "metric")


def _ranks(priors: pd.DataFrame, key: tuple[str, str, str], heads: list[str]) -> dict[str, float]:
    """Mean rank of every head; empty where no system and seed has a value of all."""
    group, level, metric = key
    part = priors[(priors["group"] == group) & (priors["level"] == level) & (priors["metric"] == metric)]
    part = part.assign(bad=BY_NAME[metric].badness(part["value"]))
    grid = part.pivot_table(index=["split", "system", "seed"], columns="head", values="bad")
    if not set(heads) <= set(grid):
        return {}
    ranks = grid[heads].dropna().rank(axis=1)
    return {str(head): float(value) for head, value in ranks.mean().items()} if len(ranks) else {}
