"""Effects carried over to another cell type: who is believed, how far, and what is stored."""

from dataclasses import replace

import numpy as np
import pytest

from evae.common.known_effects import FILE, KnownEffects

GENES = 200


def known_effects(rng, own=0.0, shared=1.0, contexts=6, perturbations=4, noise=0.05):
    """Effects that all contexts share, and a part that is each one's own."""
    common = shared * rng.normal(size=(perturbations, GENES))
    change = common[None] + own * rng.normal(size=(contexts, perturbations, GENES))
    change += noise * rng.normal(size=change.shape)
    context = np.repeat(np.arange(contexts), perturbations)
    names = [f"p{i}" for i in range(perturbations)] * contexts
    change = change.reshape(-1, GENES)
    profiles = rng.normal(size=(contexts, GENES))
    return KnownEffects(change, np.full_like(change, noise**2), context, names, profiles, 0.1), common


def test_an_effect_that_all_share_is_carried_over_and_weighs_half():
    known, common = known_effects(np.random.default_rng(0))
    np.testing.assert_allclose(known.carried("p1", np.zeros(GENES)), common[1], atol=0.15)
    assert known.weighed().weight == pytest.approx(0.5, abs=0.02)
    assert known.carried("other", np.zeros(GENES)) is None


def test_effects_of_one_cell_type_alone_weigh_nothing():
    rng = np.random.default_rng(1)
    assert known_effects(rng, own=1.0, shared=0.0)[0].weighed().weight < 0.02
    middle = known_effects(rng, own=0.7, shared=1.0, noise=0.01)[0].weighed().weight
    assert 0.25 < middle < 0.47
    lonely = known_effects(rng, contexts=1)[0]
    assert lonely.weighed().weight == 0
    assert lonely.carried("p0", np.zeros(GENES), but=0) is None


def test_the_noise_of_weak_effects_does_not_lower_their_weight():
    weak = known_effects(np.random.default_rng(2), shared=0.2, noise=0.3, contexts=12, perturbations=30)[0]
    assert weak.weighed().weight == pytest.approx(0.5, abs=0.12)


def test_cell_types_like_the_new_one_count_more():
    rng = np.random.default_rng(3)
    known = known_effects(rng, contexts=4, perturbations=1)[0]
    known.change[:, :20] = np.array([[1.5], [1.5], [-1.5], [-1.5]])  # two families of cell types differ in 20 genes
    first, second = (known.carried("p0", known.profiles[row] + 0.1)[:20].mean() for row in (0, 2))
    assert first > 0.8
    assert second < -0.8
    assert abs(known.carried("p0", known.profiles.mean(0))[:20].mean()) < 0.8


def test_genes_that_a_cell_type_does_not_measure_are_left_alone(tmp_path):
    known, common = known_effects(np.random.default_rng(4))
    known.variance[known.context == 0, :50] = np.inf
    known.change[known.context == 0, :50] = 0
    known.profiles[0, :50] = np.nan
    known = known.weighed()
    profile = np.full(GENES, 0.3)
    profile[100:] = np.nan
    effect = known.carried("p2", profile)
    assert np.isfinite(effect).all()
    assert (effect[:50] == 0).all()
    np.testing.assert_allclose(effect[50:], common[2, 50:], atol=0.15)


def test_what_is_stored_is_what_is_read(tmp_path):
    known = known_effects(np.random.default_rng(5))[0].weighed()
    found = KnownEffects.load(known.save(tmp_path))
    assert (tmp_path / FILE).is_file()
    assert found.weight == known.weight
    assert list(found.perturbation) == list(known.perturbation)
    np.testing.assert_allclose(
        found.carried("p3", known.profiles[1]), known.carried("p3", known.profiles[1]), atol=2e-2
    )


def test_more_effects_are_added_to_known_ones():
    rng = np.random.default_rng(6)
    first, common = known_effects(rng, contexts=1)
    assert first.weighed().weight == 0
    second = replace(first, change=first.change + 0.02 * rng.normal(size=first.change.shape))
    both = first.joined(second)
    assert both.context.tolist() == [0] * 4 + [1] * 4
    assert both.weight == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(both.carried("p0", np.zeros(GENES)), common[0], atol=0.2)
