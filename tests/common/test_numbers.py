"""Numbers for people and for JSON."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from evae.common.numbers import format_number, plain


@pytest.mark.parametrize("significant", [1, 2, 3, 5])
def test_the_text_is_the_number_to_so_many_digits(significant):
    rng = np.random.default_rng(0)
    for value in rng.choice([-1, 1], 200) * rng.uniform(1, 10, 200) * 10.0 ** np.arange(-5, 5).repeat(20):
        text = format_number(float(value), significant)
        assert "e" not in text
        assert float(text) == pytest.approx(value, rel=0.5 * 10 ** (1 - significant), abs=1e-5)  # five decimals at most


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3e-7, "3e-07"), (0.09996, "0.100"), (math.nan, "–")])
def test_numbers_without_digits_to_count(value, text):
    assert format_number(value) == text


def test_plain_values_are_what_json_holds():
    table = pd.DataFrame({"n": np.array([1, 2]), "value": [0.5, math.nan], "name": ["a", "b"]})
    content = {1: (np.float32(0.5), np.int64(3), -math.inf), "table": table, "inner": {"x": [np.bool_(True), None]}}
    assert json.loads(json.dumps(plain(content), allow_nan=False)) == {
        "1": [0.5, 3, None],
        "table": [{"n": 1, "value": 0.5, "name": "a"}, {"n": 2, "value": None, "name": "b"}],
        "inner": {"x": [True, None]},
    }
