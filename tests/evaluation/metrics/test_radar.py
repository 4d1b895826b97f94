"""The scale of a radar: 0 and 1 are where they belong, and better is outside for every metric."""

import numpy as np
import pandas as pd
import pytest

from evae.evaluation.metrics.radar import radar_scores

TITLES = {"fd": "FD", "discrimination_l1": "discrimination L1", "classifier_auc": "classifier AUC"}
GROUPS = {
    "fd": ("robust", "pooled"),
    "discrimination_l1": ("perturbation", "pair"),
    "classifier_auc": ("diversity", "pooled"),
}


def summary(**metrics):
    """A summary of metrics, each as a mapping from system to value."""
    rows = [
        (*GROUPS[metric], system, metric, value)
        for metric, values in metrics.items()
        for system, value in values.items()
    ]
    return pd.DataFrame(rows, columns=["group", "level", "system", "metric", "value"])


def test_the_scale_runs_from_one_system_to_the_other_whichever_way_is_better():
    found = radar_scores(
        summary(
            fd={"copy": 10.0, "half": 2.0, "model": 6.0},
            discrimination_l1={"copy": 0.5, "half": 0.9, "model": 0.7},
            classifier_auc={"copy": 0.9, "half": 0.6, "model": 0.25},  # as far from 0.5 as 0.75
        ),
        "copy",
        "half",
    )
    assert list(found.index) == list(TITLES.values())
    np.testing.assert_allclose(found["copy"], 0, atol=1e-12)
    np.testing.assert_allclose(found["half"], 1)
    np.testing.assert_allclose(found["model"], 0.5)


@pytest.mark.parametrize("half", [10.0, 10.5, float("nan")])
def test_a_metric_that_would_be_drawn_inside_out_is_left_out(half):
    found = radar_scores(
        summary(
            fd={"copy": 10.0, "half": half, "model": 20.0},
            discrimination_l1={"copy": 0.5, "half": 0.9, "model": 0.7},
        ),
        "copy",
        "half",
    )
    assert list(found.index) == ["discrimination L1"]


def test_several_rows_of_a_system_are_averaged_and_paper_stands_in_for_robust():
    table = summary(fd={"copy": 10.0, "half": 2.0, "model": 5.0})
    more = pd.concat([table, table[table["system"] == "model"].assign(value=7.0)]).assign(group="paper")
    assert radar_scores(more, "copy", "half").loc["FD", "model"] == pytest.approx(0.5)
    both = pd.concat([table, more.assign(value=0.0)])
    assert radar_scores(both, "copy", "half").loc["FD", "model"] == pytest.approx(0.625)


def test_without_one_of_the_two_there_is_no_scale():
    assert radar_scores(summary(fd={"copy": 10.0, "model": 5.0}), "copy", "half").empty
