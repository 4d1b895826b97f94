"""What is stored of the real cells: the same records come back, and others where cells or code changed."""

import numpy as np
import pandas as pd
import pytest

from evae.evaluation import evaluate
from evae.evaluation.protocols import stored
from evae.evaluation.protocols.record import Record
from evae.evaluation.protocols.stored import is_stored, stored_records, stored_values

SETTINGS = {"suite": "perturbation", "seeds": (0, 1), "with_baselines": False, "progress": False}


def test_records_come_back_exactly(tmp_path):
    records = [
        Record("g", "pair", "s", "m", 0.1 + 0.2, 3, 4, 5, "B", "p"),
        Record("g", "pooled", "s", "m", float("nan"), -1, 4, 5),
        Record("g", "pooled", "s", "m", -np.inf, -1, 4, 5),
    ]
    assert not is_stored(tmp_path / "deep", "key")
    first = stored_records(tmp_path / "deep", "key", lambda: records)
    again = stored_records(tmp_path / "deep", "key", lambda: pytest.fail("computed again"))
    for found in (first, again):
        assert repr(found) == repr(records)
    assert is_stored(tmp_path / "deep", "key")
    assert stored_records(None, "key", list) == []
    assert not is_stored(None, "key")


def test_values_come_back_exactly(tmp_path):
    values = np.array([[0.1, np.nan], [np.inf, -0.0]]).T  # not in the order of C
    for found in (
        stored_values(tmp_path, "key", lambda: values),
        stored_values(tmp_path, "key", lambda: pytest.fail("computed again")),
        stored_values(None, "key", lambda: values),
    ):
        np.testing.assert_array_equal(found, values)


def test_the_split_half_of_a_second_prediction_is_the_stored_one(real, perfect, screen, tmp_path, monkeypatch):
    first = evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    for name in ("differential.de_metrics", "distribution._half_pseudobulks"):
        monkeypatch.setattr(f"evae.evaluation.protocols.{name}", lambda *_: {})
    second = evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    monkeypatch.undo()
    halves = [r.records.query("system == 'real split half'").reset_index(drop=True) for r in (first, second)]
    assert len(halves[0]) > 100
    pd.testing.assert_frame_equal(*halves)
    uncached = evaluate(perfect, real, screen, cache=None, **SETTINGS)
    pd.testing.assert_frame_equal(first.records, uncached.records)


def test_other_real_cells_have_records_of_their_own(real, perfect, screen, tmp_path):
    evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    changed = real.copy()
    changed.X = changed.X.copy()
    changed.X.data[0] += 1
    found = evaluate(perfect, changed, screen, cache=tmp_path, **SETTINGS)
    pd.testing.assert_frame_equal(found.records, evaluate(perfect, changed, screen, cache=None, **SETTINGS).records)


def test_changed_code_has_records_of_its_own(real, perfect, screen, tmp_path, monkeypatch):
    evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    n = len(list(tmp_path.glob("*.json")))
    evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    assert len(list(tmp_path.glob("*.json"))) == n
    monkeypatch.setattr(stored, "_code", lambda: "other")
    evaluate(perfect, real, screen, cache=tmp_path, **SETTINGS)
    assert len(list(tmp_path.glob("*.json"))) == 2 * n
