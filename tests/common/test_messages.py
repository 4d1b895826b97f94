"""Pieces of messages."""

import numpy as np
import pytest

from evae.common.messages import number_of
from evae.common.numbers import counted
from evae.data.preparing.card import held_out_in_words
from evae.models.contract_evae import EvaeError, check_unique


@pytest.mark.parametrize(
    ("n", "words", "said"),
    [
        (0, ("pair",), "0 pairs"),
        (1, ("pair",), "1 pair"),
        (np.int64(1), ("held-out cell",), "1 held-out cell"),
        (12_345, ("cell",), "12,345 cells"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
        (1, ("cell has", "cells have"), "1 cell has"),
        (1_000, ("cell has", "cells have"), "1,000 cells have"),
    ],
)
def test_a_count_has_its_noun(n, words, said):
    assert number_of(n, *words) == said


def test_counts_in_messages():
    assert counted(["a"], "cell") == "1 cell (a)"
    assert counted(list("abcdefg"), "cell") == "7 cells (a, b, c, d, e and 2 more)"
    for twice, said in ((["A", "A"], "1 gene stands more than once"), (list("AABB"), "2 genes stand more than once")):
        with pytest.raises(EvaeError, match=said):
            check_unique(twice, "gene")
    assert held_out_in_words({"cell_type": ["A"], "pert": ["STAT1"]}) == "A x 1 perturbation"
    assert held_out_in_words({"pairs": [["A", "STAT1"]]}) == "1 (cell type, perturbation) pair"
