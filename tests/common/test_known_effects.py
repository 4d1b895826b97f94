"""Effects carried over to another cell type: who is believed, how far, and what is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from evae.common.known_effects import FILE, NEAR, KnownEffects

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


def test_an_effect_that_all_share_is_carried_over_and_true_as_it_stands():
    known, common = known_effects(np.random.default_rng(0))
    np.testing.assert_allclose(known.carried("p1", np.zeros(GENES)), common[1], atol=0.15)
    assert known.judged().calibration == pytest.approx(1.0, abs=0.02)
    assert known.carried("other", np.zeros(GENES)) is None


def test_effects_of_one_cell_type_alone_tell_nothing():
    rng = np.random.default_rng(1)
    assert known_effects(rng, own=1.0, shared=0.0)[0].judged().calibration < 0.04
    middle = known_effects(rng, own=0.7, shared=1.0, noise=0.01)[0].judged().calibration
    assert middle == pytest.approx(1.0, abs=0.05)  # the shrunken mean allows for what differs
    lonely = known_effects(rng, contexts=1)[0]
    assert lonely.judged().calibration == 0
    assert lonely.carried("p0", np.zeros(GENES), but=0) is None


def test_the_noise_of_weak_effects_does_not_lower_the_calibration():
    weak = known_effects(np.random.default_rng(2), shared=0.2, noise=0.3, contexts=12, perturbations=30)[0]
    assert weak.judged().calibration == pytest.approx(1.0, abs=0.12)


def test_how_near_a_cell_type_must_be_is_learnt_from_the_cells():
    rng = np.random.default_rng(8)
    alike, _ = known_effects(rng, contexts=8, noise=0.5)
    assert alike.judged().near == max(NEAR)  # all tell the same, so that all are needed against the noise
    centres = rng.normal(size=(4, GENES))
    change = np.repeat(rng.normal(size=(4, 4, GENES)), 2, 0).reshape(-1, GENES)
    families = replace(alike, profiles=np.repeat(centres, 2, 0) + 0.1 * rng.normal(size=(8, GENES)), change=change)
    found = families.judged()
    assert found.near == min(NEAR)  # each answers as its twin does, and as no other
    assert found.calibration > 0.9


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
    known = known.judged()
    profile = np.full(GENES, 0.3)
    profile[100:] = np.nan
    effect = known.carried("p2", profile)
    assert np.isfinite(effect).all()
    assert (effect[:50] == 0).all()
    np.testing.assert_allclose(effect[50:], common[2, 50:], atol=0.15)


def test_what_is_stored_is_what_is_read(tmp_path):
    known = replace(known_effects(np.random.default_rng(5))[0].judged(), near=1.0)
    found = KnownEffects.load(known.save(tmp_path))
    assert (tmp_path / FILE).is_file()
    assert (found.calibration, found.near) == (known.calibration, known.near)
    assert list(found.perturbation) == list(known.perturbation)
    np.testing.assert_allclose(
        found.carried("p3", known.profiles[1]), known.carried("p3", known.profiles[1]), atol=2e-2
    )


def test_older_files_hold_half_of_a_correlation(tmp_path):
    known = known_effects(np.random.default_rng(5))[0].judged()
    path = known.save(tmp_path)
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["evae"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = {name: facts[name] for name in ("pseudo", "perturbations")} | {"weight": 0.45}
    path.write_bytes(save(arrays, {"evae": json.dumps(old)}))
    found = KnownEffects.load(path)
    assert (found.calibration, found.near) == (0.9, 0.25)


def test_more_effects_are_added_to_known_ones():
    rng = np.random.default_rng(6)
    first, common = known_effects(rng, contexts=1)
    assert first.judged().calibration == 0
    second = replace(first, change=first.change + 0.02 * rng.normal(size=first.change.shape))
    both = first.joined(second)
    assert both.context.tolist() == [0] * 4 + [1] * 4
    assert both.calibration == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(both.carried("p0", np.zeros(GENES)), common[0], atol=0.2)
