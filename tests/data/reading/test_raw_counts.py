"""Counts in the narrowest type that holds them."""

import numpy as np
import pytest

from evae.data.reading.raw_counts import narrowest
from evae.models.contract_evae import EvaeError


@pytest.mark.parametrize("stored", [np.float32, np.float64, np.int16, np.int64, np.uint32])
@pytest.mark.parametrize(
    ("largest", "wanted"), [(255, np.uint8), (256, np.uint16), (1 << 16, np.uint32), (1 << 33, np.int64)]
)
def test_the_narrowest_type(stored, largest, wanted):
    if np.dtype(stored).kind in "iu" and largest > np.iinfo(stored).max:
        return
    values = np.array([0, 1, largest], dtype=stored)
    found = narrowest(values, "the counts")
    assert found.dtype == wanted
    np.testing.assert_array_equal(found, values.astype(np.int64))


@pytest.mark.parametrize(
    ("bad", "message"), [(-1.0, "negative"), (0.5, "fractional"), (np.nan, "NaN"), (np.inf, "infinite"), ("a", "hold")]
)
def test_what_is_no_count(bad, message):
    with pytest.raises(EvaeError, match=message):
        narrowest(np.array([3.0, bad, 1.0]) if bad != "a" else np.array(["a"]), "the counts")


def test_no_values_and_truth():
    assert narrowest(np.array([], np.float32), "the counts").dtype == np.uint8
    assert narrowest(np.array([True, False]), "the counts").tolist() == [1, 0]
