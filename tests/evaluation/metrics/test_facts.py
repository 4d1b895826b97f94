"""The facts of every metric: nothing that is computed lacks them, and nothing is shown that is not computed."""

import numpy as np
import pandas as pd
import pytest

from evae.evaluation import evaluate
from evae.evaluation.metrics.facts import BY_NAME, METRICS, TABLES, Metric, shown


def test_every_metric_stands_once_and_in_tables_that_exist():
    assert len(BY_NAME) == len(METRICS)
    groups = {table.group for table in TABLES}
    for metric in METRICS:
        assert set(metric.groups) <= groups
        assert metric.meaning
        assert set(metric.places) <= {place for t in TABLES if t.group in metric.groups for place in t.places}


def test_what_is_computed_is_what_is_shown(screen, real, perfect):
    """All but cell-eval's own metrics and those of tokenizers, which come from a training's log."""
    computed = set()
    for suite in ("paper", "robust", "extended", "vcc2026"):
        how = {"seeds": (0,), "progress": False, "cache": None, "depth_matched": suite == "robust"}
        result = evaluate(perfect, real, screen, suite=suite, **how)
        rows = result.summary()
        computed |= set(zip(rows["group"], rows["level"], rows["metric"], strict=True))
        assert {metric for *_, metric in computed} <= set(BY_NAME)
        tables = {table.title: [m.name for m in table.metrics] for table in result.tables()}
        for table, metrics in shown("table"):
            if (table.group, table.level) in set(zip(rows["group"], rows["level"], strict=True)):
                assert tables[table.title] == [metric.name for metric in metrics]
    listed = {(t.group, t.level, m.name) for t in TABLES for m in METRICS if t.group in m.groups}
    elsewhere = {key for key in listed if key[0] in ("cell-eval", "tokenizer")}
    assert listed - elsewhere <= computed


@pytest.mark.parametrize(
    ("better", "heading", "badness"),
    [("low", "M ↓", [0.2, 0.9]), ("high", "M ↑", [-0.2, -0.9]), (0.5, "M →0.5", [0.3, 0.4]), (0.0, "M →0", [0.2, 0.9])],
)
def test_which_way_is_better(better, heading, badness):
    metric = Metric("m", "M", better, "what it says")
    assert metric.heading == heading
    assert list(metric.badness(pd.Series([0.2, 0.9]))) == pytest.approx(badness)
    assert metric.badness(0.9) == pytest.approx(badness[1])
    assert np.isnan(metric.badness(float("nan")))


def test_a_count_has_no_direction():
    assert BY_NAME["de_nsig_counts_real"].heading == "DE genes real"
