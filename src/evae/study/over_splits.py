"""The parts of a study's Markdown that look at several splits or pairs at once."""

import pandas as pd

from evae.common.numbers import UNDEFINED, format_number
from evae.evaluation.metrics.facts import BY_NAME, METRICS
from evae.study.compare import by_split, compared_metrics, grid_lines, is_rival, wins

WINS = "In how many splits a system has the best mean over seeds; “real split half” and “tokenizer alone” are left out."
TESTS = (
    "Each prior against every other system on the same held-out pairs (cell type, perturbation), values being means "
    "over seeds: in how many pairs it is better, and p of Wilcoxon's signed-rank test, two-sided, after Benjamini and "
    "Hochberg over all tests of this table. With n pairs p cannot be below 2 / 2ⁿ before that. Pairs of one split "
    "share their training cells, so read p as a guide."
)


def over_splits(numbers: pd.DataFrame) -> list[str]:
    """Lines: wins, then a table of every metric with systems as rows and splits as columns."""
    found = wins(numbers)
    lines = ["", "## Wins", "", WINS, "", *grid_lines(found, "system")] if len(found) else []
    for table, metric in compared_metrics(numbers):
        grid = by_split(numbers, table, metric)
        ranks = grid[[is_rival(name) for name in grid.index]].apply(metric.badness).rank().mean(axis=1)
        texts = grid.map(_number)
        texts["mean ± sd of splits"] = [
            f"{_number(row.mean())} ±{_number(row.std())}" if row.notna().all() else UNDEFINED
            for _, row in grid.iterrows()
        ]
        texts["mean rank"] = ranks.reindex(grid.index).where(grid.notna().all(axis=1)).map(_number)
        paper = " (paper)" if table.group == "paper" else ""
        lines += ["", f"## {metric.heading}{paper} by split", "", *grid_lines(texts, "system")]
    return lines


def test_lines(tests: pd.DataFrame) -> list[str]:
    """A Markdown table of paired tests, one row for two systems, one column for a metric."""
    order = {metric.name: at for at, metric in enumerate(METRICS)}
    tests = tests.sort_values("metric", key=lambda names: names.map(order), kind="stable")
    texts = [f"{row.n_better} of {row.n_pairs}, p {row.p_adjusted:.2g}" for row in tests.itertuples(index=False)]
    headings = [
        f"{BY_NAME[metric].heading}{' (by perturbation)' if group == 'robust' else ''}"
        for group, metric in zip(tests["group"], tests["metric"], strict=True)
    ]
    rows = tests["system"] + " against " + tests["other"]
    cells = pd.DataFrame({"row": rows, "column": headings, "text": texts})
    grid = cells.pivot(index="row", columns="column", values="text").fillna(UNDEFINED)
    grid = grid.reindex(index=list(dict.fromkeys(rows.sort_index())), columns=list(dict.fromkeys(headings)))
    return grid_lines(grid, "systems")


def _number(value: object) -> str:
    return format_number(float(value)) if pd.notna(value) else UNDEFINED  # type: ignore[arg-type]
