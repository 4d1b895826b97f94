"""Baselines for what training never saw, against sums and formulas by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.unseen import sums_of_singles, unseen_shifts
from evae.models.contract_evae import EvaeError

GENES = np.array([f"G{i}" for i in range(25)])


def world(effects, pairs):
    """Training knows `effects`, of (cell type, perturbation), as shifts from controls of 5; `pairs` are evaluated."""
    means = {(c, "control"): np.full(len(GENES), 5.0) for c in "AB"}
    means |= {pair: 5.0 + shift for pair, shift in effects.items()}
    training = TrainingCells(means, dict.fromkeys(means, 10), None, None, "control")
    return SimpleNamespace(
        training=training, genes=GENES, pairs=pairs, notes=[], cell_types=sorted({c for c, _ in pairs}),
        perturbations=lambda cell_type: [p for c, p in pairs if c == cell_type],
    )  # fmt: skip


@pytest.fixture(scope="module")
def effects():
    rng = np.random.default_rng(0)
    return {(c, f"G{i}"): rng.normal(size=len(GENES)) for c in "AB" for i in range(12)}


def test_a_combination_is_the_sum_of_its_parts_in_the_own_cell_type_where_it_has_them(effects):
    own = {pair: e for pair, e in effects.items() if pair not in [("B", "G1"), ("A", "G2"), ("B", "G2")]}
    pairs = [("B", "G0+G1"), ("B", "G3+G0"), ("B", "G0+G2"), ("B", "G0")]
    found = sums_of_singles(world(own, pairs))
    assert set(found) == {("B", "G0+G1"), ("B", "G3+G0")}  # G2 is nowhere, G0 is no combination
    np.testing.assert_allclose(found[("B", "G0+G1")], effects[("B", "G0")] + effects[("A", "G1")])
    np.testing.assert_allclose(found[("B", "G3+G0")], effects[("B", "G3")] + effects[("B", "G0")])


def test_a_new_perturbation_is_the_mean_of_the_five_with_the_most_similar_vectors(effects):
    rng = np.random.default_rng(1)
    vectors = {f"G{i}": rng.normal(size=4) for i in range(25)}
    comparison = world(effects, [("A", "G20"), ("B", "G20"), ("B", "G3"), ("B", "G20+G1"), ("B", "never")])
    found = unseen_shifts(comparison, vectors)
    assert set(found) == {"nearest in features", "kernel ridge on features", "bilinear"}
    similar = {i: vectors[f"G{i}"] @ vectors["G20"] / np.linalg.norm(vectors[f"G{i}"]) for i in range(12)}
    near = sorted(similar, key=similar.get)[-5:]
    for c in "AB":  # each from its own cell type
        expected = np.mean([effects[(c, f"G{i}")] for i in near], axis=0)
        np.testing.assert_allclose(found["nearest in features"][(c, "G20")], expected)
    for name, shifts in found.items():
        assert set(shifts) == {("A", "G20"), ("B", "G20"), ("B", "G20+G1")}, name  # G3 was seen
        np.testing.assert_allclose(shifts[("B", "G20+G1")], shifts[("B", "G20")] + effects[("B", "G1")])
    assert comparison.notes == ["the features have no vector of 1 unseen perturbation (never)"]


def test_an_unseen_cell_type_gets_what_the_others_show(effects):
    vectors = {f"G{i}": np.random.default_rng(i).normal(size=4) for i in range(25)}
    only_a = {pair: e for pair, e in effects.items() if pair[0] == "A"}
    found = unseen_shifts(world(only_a, [("A", "G20"), ("B", "G20")]), vectors)
    for shifts in found.values():
        np.testing.assert_allclose(shifts[("B", "G20")], shifts[("A", "G20")])


def test_without_features_the_bilinear_model_knows_target_genes(effects):
    comparison = world(effects, [("A", "G20"), ("A", "elsewhere")])
    found = unseen_shifts(comparison, None)
    assert set(found) == {"bilinear"}
    assert set(found["bilinear"]) == {("A", "G20")}
    y = np.stack([effects[("A", f"G{i}")] for i in range(12)], axis=1)  # (genes, perturbations)
    u, s, _ = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    g, b = u[:, :10] * s[:10], y.mean(axis=1)
    told = found["bilinear"][("A", "G20")] - b
    np.testing.assert_allclose(g @ np.linalg.lstsq(g, told, rcond=None)[0], told, atol=1e-8)  # b and genes' components
    assert np.abs(told).max() > 1e-6
    assert unseen_shifts(world(dict(list(effects.items())[:4]), [("A", "G20")]), None) == {"bilinear": {}}


def test_features_that_are_not_needed_or_tell_nothing_are_named(effects):
    seen = world(effects, [("A", "G3")])
    assert not any(unseen_shifts(seen, {"G3": np.ones(2)}).values())
    assert "not needed" in seen.notes[0]
    with pytest.raises(EvaeError, match="has vectors of 1 of the 12 measured perturbations"):
        unseen_shifts(world(effects, [("A", "new")]), {"G3": np.ones(2), "new": np.ones(2)})
