"""The table that values are looked up in, against numpy's binary search."""

import numpy as np
import pytest

from evae.evaluation.metrics import lookup
from evae.evaluation.metrics.lookup import Lookup

BITS = 31


def table(values_of_genes):
    """Keys of the values of each gene, with room for one more."""
    keys = [(gene << BITS) | np.unique(np.array(values, np.int64)) for gene, values in enumerate(values_of_genes)]
    return np.concatenate([*keys, [0]]).astype(np.int64)


def asked(keys, n_genes, rng):
    """The keys themselves, their neighbours, and others of all genes, sorted."""
    around = [keys[:-1], keys[:-1] + 1, np.maximum(keys[:-1] - 1, 0)]
    others = (rng.integers(0, n_genes, 500) << BITS) | rng.integers(0, 1 << BITS, 500)
    found = np.sort(np.concatenate([*around, others, np.arange(n_genes) << BITS]))
    return found[found >> BITS < n_genes]


@pytest.mark.parametrize(
    "values_of_genes",
    [
        [[]],
        [[], [], [7], []],
        [[0], [(1 << BITS) - 1]],
        [range(1000, 1400), [5], range(0, 1 << 30, 1 << 22)],
        [np.float32(np.log1p(np.arange(1, 300))).view(np.uint32), [3, 4, 5]],
    ],
    ids=["nothing", "one value", "ends", "clumps", "expression"],
)
@pytest.mark.parametrize("chunk", [1 << 16, 7])
def test_values_are_found_where_a_binary_search_finds_them(values_of_genes, chunk, monkeypatch):
    monkeypatch.setattr(lookup, "_CHUNK", chunk)
    keys, n_genes = table(values_of_genes), len(values_of_genes)
    expected = keys.copy()
    wanted = asked(keys, n_genes, np.random.default_rng(0))
    found = Lookup(keys, n_genes, BITS).find(wanted)
    np.testing.assert_array_equal(found, np.searchsorted(expected[:-1], wanted))


def test_nothing_is_found_for_nothing():
    assert Lookup(table([[1, 2]]), 1, BITS).find(np.empty(0, dtype=np.int64)).shape == (0,)
