"""Scores between controls, by hand."""

import numpy as np
import pandas as pd
import pytest

from evae.evaluation.metrics.calibration import MATCHED, Controls, calibrated

CONTROLS = Controls(negative=("copy", "mean"), positive=("half", "duplicate"))


def records(values, metric="mse", group="perturbation", level="pair", seed=-1):
    """One row a system and perturbation; `values` are system -> one value a perturbation."""
    rows = [
        {"group": group, "level": level, "system": s, "metric": metric, "value": v, "seed": seed,
         "cell_type": "A", "perturbation": f"p{i}"}
        for s, of in values.items() for i, v in enumerate(of)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def score(table, system="model"):
    return table.set_index("system").loc[system]


def test_a_score_is_the_way_from_the_better_negative_to_the_better_positive_control():
    table = calibrated(
        records({"model": [0.4, 0.4], "copy": [1, 1], "mean": [0.6, 1.2], "half": [0.1, 0.3], "duplicate": [0.3, 0.3]}),
        CONTROLS,
    )
    row = score(table)
    assert (row["negative_control"], row["positive_control"]) == ("mean", "half")  # 0.9 < 1.0 and 0.2 < 0.3
    assert row["score"] == pytest.approx((0.9 - 0.4) / (0.9 - 0.2))
    assert score(table, "mean")["score"] == 0
    assert "half" not in set(table["system"])


def test_higher_and_nearest_are_better_where_they_are():
    high = calibrated(records({"model": [0.5], "copy": [0.1], "half": [0.9]}, "pearson_delta"), CONTROLS)
    assert score(high)["score"] == pytest.approx(0.5)
    ratio = {"model": [1.5], "copy": [2.0], "half": [1.0]}
    near = calibrated(records(ratio, "variance_ratio", "diversity", "pooled"), CONTROLS)
    assert score(near)["score"] == pytest.approx(0.5)


def test_no_correlation_of_a_prediction_of_nothing_counts_as_zero():
    table = calibrated(records({"model": [0.4], "copy": [np.nan], "half": [0.8]}, "pearson_delta"), CONTROLS)
    assert score(table)["score"] == pytest.approx(0.5)
    error = calibrated(records({"model": [0.4], "copy": [np.nan], "half": [0.1]}), CONTROLS)
    assert "no negative control" in score(error)["why_not"]


def test_an_empty_range_says_so():
    table = calibrated(records({"model": [0.4], "copy": [0.2], "half": [0.3]}), CONTROLS)
    assert np.isnan(score(table)["score"])
    assert score(table)["why_not"] == "empty range: half is not surely better than copy"


def test_a_range_within_its_noise_is_empty():
    def over_seeds(halves):
        parts = [records({"half": [v]}, seed=i) for i, v in enumerate(halves)]
        return calibrated(pd.concat([records({"model": [0.5], "copy": [1.0]}), *parts]), CONTROLS)

    assert score(over_seeds([0.85, 0.8, 0.9]))["score"] == pytest.approx(0.5 / 0.15)
    assert score(over_seeds([1.1, 0.7, 0.75]))["why_not"].startswith("empty")
    single = {"model": [0.5] * 4, "copy": [1.0, 1.1, 0.9, 1.0], "half": [0.2, 1.5, 1.4, 0.1]}  # one split, four pairs
    assert score(calibrated(records(single), CONTROLS))["why_not"].startswith("empty")


def test_systems_are_taken_against_the_half_of_the_positive_control():
    full = records({"model": [0.1], "copy": [0.5], "half": [0.3]})
    matched = records({"model": [0.4], "copy": [0.9]}, level=MATCHED, seed=0)
    row = score(calibrated(pd.concat([full, matched]), CONTROLS))
    assert (row["value"], row["negative"], row["positive"]) == (0.4, 0.9, 0.3)


def test_only_perturbations_where_all_three_are_defined_count():
    values = {"model": [0.4, np.nan], "copy": [1.0, 9.0], "half": [0.2, 0.3]}
    row = score(calibrated(records(values), CONTROLS))
    assert (row["n_pairs"], row["score"]) == (1, pytest.approx(0.75))
