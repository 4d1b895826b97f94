"""Tables over splits: who is best where, and paired tests of two systems on the same held-out pairs."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, wilcoxon

from evae.study.compare import paired_tests, wins


def _pairs(n, metric="mse", group="perturbation"):
    """A prior over two seeds, a better baseline and one without values for all pairs; (table, mse by system)."""
    rng = np.random.default_rng(0)
    model, baseline = rng.random((2, n)) + 1, rng.random(n)
    rows = []
    for i in range(n):
        labels = {"split": f"s{i % 3}", "cell_type": f"type{i}", "perturbation": "p", "group": group, "metric": metric}
        rows += [{**labels, "system": "A", "prior": "AR", "seed": s, "value": model[s, i]} for s in (0, 1)]
        rows.append({**labels, "system": "shift", "prior": None, "seed": None, "value": baseline[i]})
        rows.append({**labels, "system": "rare", "prior": None, "seed": None, "value": np.nan if i > 1 else 9.0})
        rows.append({**labels, "system": "real split half", "prior": None, "seed": None, "value": 0.0})
    return pd.DataFrame(rows), model.mean(axis=0), baseline


def test_pairs_are_compared_by_the_signed_rank_test_of_their_means_over_seeds():
    table, model, baseline = _pairs(8)
    found = paired_tests(table).set_index("other")
    assert set(found.index) == {"shift", "rare"}  # the floor is nothing to be beaten
    expected = [wilcoxon(model - baseline).pvalue, wilcoxon(model[:2] - 9.0).pvalue]
    np.testing.assert_allclose(found.loc[["shift", "rare"], "p"], expected)
    np.testing.assert_allclose(found.loc[["shift", "rare"], "p_adjusted"], false_discovery_control(expected))
    assert found.loc["shift", "n_better"] == (model < baseline).sum()
    assert found.loc["rare", ["n_pairs", "n_better"]].tolist() == [2, 2]


def test_where_higher_is_better_the_higher_wins():
    table, model, baseline = _pairs(8, metric="pearson_delta")
    found = paired_tests(table).set_index("other")
    assert found.loc["shift", "n_better"] == (model > baseline).sum()
    assert found.loc["shift", "median_difference"] == pytest.approx(np.median(baseline - model))


def test_one_pair_is_no_test_and_equal_systems_are_not_told_apart():
    table, *_ = _pairs(1)
    assert paired_tests(table).empty
    table, *_ = _pairs(4)
    assert (paired_tests(table.assign(value=1.0))["p"] == 1).all()


def test_wins_leave_the_floor_and_tokenizers_alone_out():
    rows = []
    for split, values in {"s0": (3.0, 2.0, 1.0, 0.5), "s1": (1.0, 2.0, 0.1, 0.5)}.items():
        systems = ("A", "shift", "real split half", "FSQ, tokenizer alone")
        rows += [(split, s, "robust", "pooled", "fd", v) for s, v in zip(systems, values, strict=True)]
    rows.append(("s2", "A", "robust", "pooled", "fd", 1.0))  # alone there
    columns = ["split", "system", "group", "level", "metric", "value"]
    found = wins(pd.DataFrame(rows, columns=columns))
    assert found["FD ↓"].to_dict() == {"A": 1, "shift": 1}
