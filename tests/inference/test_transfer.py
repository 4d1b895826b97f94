"""Predicted cells that are moved towards what other cell types show."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import evae
from evae.common.known_effects import FILE, KnownEffects
from evae.inference.carried_effects import CarriedEffects, around
from evae.inference.spread import PairMeans
from evae.inference.totals import mean_rates
from evae.inference.transfer import EffectTransfer, shown
from evae.models.contract_evae import EvaeError
from evae.models.names_evae import PerturbationNames
from evae.models.treatments_evae import readings
from evae.training.known_effects import measure_effects

GENES = 40
PSEUDO = 6.0  # a tenth of a molecule of these cells


def parts(names):
    """The parts of combinations."""
    return {name: name.split("+") for name in names}


def moved_cells(counts, obs, known, profiles, weight, **more):
    transfer = EffectTransfer(CarriedEffects(known, parts, **more), profiles)
    return transfer.move(counts, obs, 0, weight)


@pytest.fixture(scope="module")
def drawn():
    """Cells of two pairs, and effects known of the perturbation of one."""
    rng = np.random.default_rng(0)
    level = rng.gamma(1.0, 4.0, GENES)
    counts = sp.csr_matrix(rng.poisson(level * rng.gamma(2, 0.5, (120, 1))).astype(np.float32))
    obs = pd.DataFrame({"cell_type": "T", "perturbation": ["x"] * 100 + ["y"] * 20})
    change = np.repeat(rng.normal(size=(1, GENES)), 3, 0)
    known = KnownEffects(
        change, np.full_like(change, 1e-4), np.arange(3), ["x"] * 3, rng.normal(size=(3, GENES)), PSEUDO, 0.5
    )
    return counts, obs, known, {"T": level / level.sum() * 1e4}


def test_the_mean_lies_between_the_drawn_and_the_known_one(drawn):
    counts, obs, known, profiles = drawn
    as_drawn, aim = np.log2(mean_rates(counts[:100]) + PSEUDO), np.log2(profiles["T"] + PSEUDO) + known.change[0]
    reachable = np.exp2(aim) > 4 * PSEUDO  # the others lack molecules to be taken
    gaps = []
    for weight in (0.0, 0.5, 1.0):
        found, moved = moved_cells(counts, obs, known, profiles, weight)
        assert moved.measured == ({("T", "x"): weight} if weight else {})
        assert (found[100:] != counts[100:]).nnz == 0  # of this one nothing is known
        np.testing.assert_array_equal(found.data, np.round(found.data))
        assert found.sum() == counts.sum()
        reached = np.log2(mean_rates(found[:100]) + PSEUDO)
        shift = reached - as_drawn
        gaps.append(np.corrcoef(shift, aim - as_drawn)[0, 1] if weight else np.abs(shift).max())
        assert np.polyfit((aim - as_drawn)[reachable], shift[reachable], 1)[0] == pytest.approx(
            weight, abs=0.1
        )  # shares sum to 1
    assert gaps[0] < 0.05
    assert min(gaps[1:]) > 0.95


def test_the_mean_that_cells_shall_have_takes_the_place_of_their_own(drawn):
    """Whatever the cells' own mean is; and where nothing is told, they have it as it is."""
    counts, obs, known, profiles = drawn
    means = PairMeans(np.repeat([0, 1], [100, 20]))
    aims = [np.roll(mean_rates(counts[rows]), 7) for rows in (slice(100), slice(100, 120))]
    means.add({0: 100 * aims[0], 1: 20 * aims[1]})
    transfer = EffectTransfer(CarriedEffects(known, parts), profiles)
    told = np.log2(profiles["T"] + PSEUDO) + known.change[0]
    for weight in (0.0, 0.5, 1.0):
        found, moved = transfer.move(counts, obs, 0, weight, means)
        assert set(moved.measured) == ({("T", "x")} if weight else set())
        wanted = np.exp2((1 - weight) * np.log2(aims[0] + PSEUDO) + weight * told) - PSEUDO
        reached = [mean_rates(found[:100]), mean_rates(found[100:])]
        assert np.corrcoef(reached[0], wanted)[0, 1] > 0.99
        assert np.corrcoef(reached[1], aims[1])[0, 1] > 0.99


def test_cells_that_show_the_effect_weigh_as_much_as_what_is_told(drawn):
    """And those that show nothing of it give way, as far as what is told can be trusted."""
    counts, obs, known, profiles = drawn
    rates = profiles["T"] * np.exp2(known.change[0] / 2)
    half = sp.csr_matrix(np.random.default_rng(3).poisson(np.tile(rates / rates.sum() * 400, (100, 1))), dtype=float)
    for cells, weight in ((counts[:100], 0.5), (half, 0.375)):
        found = moved_cells(cells, obs.iloc[:100], known, profiles, None)[1]
        assert found.measured["T", "x"] == pytest.approx(weight, abs=0.04)
        assert found.facts() == {
            "effect_transfer": found.measured["T", "x"], "effect_transfer_pairs": 1, "effect_transfer_new_pairs": 0
        }  # fmt: skip
    untrusted = replace(known, calibration=0.0)
    assert not moved_cells(counts, obs, untrusted, profiles, None)[1].measured
    change = np.random.default_rng(4).normal(size=GENES)
    assert shown(change, change) == pytest.approx(1)
    assert shown(change / 4, change) == pytest.approx(0.25)
    assert (shown(2 * change, change), shown(-change, change), shown(change, 0 * change)) == (1, 0, 1)


def test_few_cells_told_effects_and_unmeasured_genes_stay_as_drawn(drawn):
    counts, obs, known, profiles = drawn
    few = np.arange(19)
    found, moved = moved_cells(counts[few], obs.iloc[few], known, profiles, 0.5)
    assert not moved.measured
    assert (found != counts[few]).nnz == 0
    assert not moved_cells(counts, obs, known, profiles, 0.5, given={"x": None})[1].measured
    lacking = {"T": np.where(np.arange(GENES) < 5, np.nan, profiles["T"])}
    found, _ = moved_cells(counts, obs, known, lacking, 1.0)
    share = [np.asarray(c[:100, :5].sum(0)).ravel() for c in (found, counts)]
    np.testing.assert_allclose(share[0] / share[0].sum(), share[1] / share[1].sum(), atol=0.01)


def test_genes_that_the_controls_lack_keep_their_share_of_the_molecules(drawn):
    counts, obs, known, profiles = drawn
    own = np.arange(GENES) >= 15
    few = np.where(own, profiles["T"], np.nan)
    few *= 1e4 / np.nansum(few)  # controls are scaled by the molecules that they measure
    flat = replace(known, change=np.zeros_like(known.change))
    found, _ = moved_cells(counts, obs, flat, {"T": few}, 1.0)
    shares = [float(cells[:100, own].sum() / cells[:100].sum()) for cells in (found, counts)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_parts_and_feature_vectors_tell_of_what_no_cell_has():
    rng = np.random.default_rng(1)
    n = 40
    vectors = {f"p{i}": rng.normal(size=6) for i in range(n)} | {"far": rng.normal(size=6)}
    turn = rng.normal(size=(6, GENES)) / 3
    change = np.stack([vectors[f"p{i}"] @ turn for i in range(n)])
    names = [f"p{i}" for i in range(n)]
    profiles = rng.normal(size=(1, GENES))
    known = KnownEffects(change, np.full_like(change, 1e-4), np.zeros(n, int), names, profiles, PSEUDO, 0.3)
    effects = CarriedEffects(known, parts, vectors=vectors)
    found = effects.among(["p1", "p2+p1", "far", "far+p1", "nobody", "nobody+p1"], "T", profiles[0])
    assert set(found) == {"p1", "p2+p1", "far", "far+p1"}
    assert {name: (one.trust, one.measured) for name, one in found.items()} == {
        "p1": (0.3, True), "p2+p1": (1, False), "far": (1, False), "far+p1": (1, False)
    }  # fmt: skip
    np.testing.assert_allclose(found["p2+p1"].effect, change[1] + change[2], atol=0.05)
    assert np.corrcoef(found["far"].effect, vectors["far"] @ turn)[0, 1] > 0.9
    np.testing.assert_allclose(found["far+p1"].effect, found["far"].effect + found["p1"].effect)
    few = {name: vectors[name] for name in ("p1", "p2", "far")}
    assert set(CarriedEffects(known, parts, vectors=few).among(["far", "p1"], "T", profiles[0])) == {"p1"}


def test_doses_around_tell_of_one_between_alone_and_in_combinations():
    rng = np.random.default_rng(2)
    labels = ["A 1 uM", "A 100 uM", "A 1 uM 6 h", "B knock-out"]
    change = rng.normal(size=(4, GENES))
    known = KnownEffects(
        change, np.full_like(change, 1e-4), np.zeros(4, int), labels, rng.normal(size=(1, GENES)), PSEUDO, 0.3
    )
    treatments = {label: list(readings(label))[-1] for label in labels}
    names = PerturbationNames([*labels, "A 1 uM+B knock-out"], ["A", "B"], None, "+", treatments)
    effects = CarriedEffects(known, names.parts, lambda *given: around(names.known, *given))
    asked = ["A 10 uM", "A 1000 uM", "A 10 uM 48 h", "B activation", "A 10 uM+B knock-out", "A 10 uM+A 1 uM 7 h"]
    found = effects.among(asked, "T", known.profiles[0])
    wanted = {"A 10 uM": (change[0] + change[1]) / 2, "A 1000 uM": change[1]}
    wanted["A 10 uM+B knock-out"] = wanted["A 10 uM"] + change[3]
    assert found.keys() == wanted.keys()
    for name, effect in wanted.items():
        np.testing.assert_allclose(found[name].effect, effect, atol=0.1)
        assert (found[name].trust, found[name].measured) == (1, False)


@pytest.fixture(scope="module")
def prior_with_effects(tmp_path_factory, trained_prior, screen_dataset):
    """A trained prior, whose folder holds the effects of its training cells with a calibration that can be seen."""
    folder = tmp_path_factory.mktemp("effects") / "prior"
    shutil.copytree(trained_prior, folder)
    genes = evae.pipeline(folder).processor.genes
    known = measure_effects([evae.data.format.Dataset.open(screen_dataset)], genes)
    replace(known, calibration=0.5).save(folder)
    return folder


def test_a_prediction_takes_the_weight_that_training_found(prior_with_effects, controls):
    pipe = evae.pipeline(prior_with_effects)
    name = next(iter(pipe.checkpoint.effects.pairs_of))
    kind = pipe.processor.cell_types[0]
    how = {"perturbation": name, "cell_type": kind, "n_cells": 40, "progress": False}
    moved, again = pipe.predict(controls, **how), pipe.predict(controls, batch_size=7, **how)
    plain = pipe.predict(controls, effect_transfer=0, **how)
    assert (moved.X != again.X).nnz == 0
    assert (moved.X != plain.X).nnz > 0
    assert 0.25 <= moved.uns["evae"]["effect_transfer"] <= 0.5
    assert moved.uns["evae"]["effect_transfer_pairs"] == 1
    assert plain.uns["evae"].get("effect_transfer", 0) == 0


def test_wrong_weights_and_models_without_effects_are_refused(prior_with_effects, pipe, controls):
    full = evae.pipeline(prior_with_effects)
    name, kind = full.processor.perturbations[1], full.processor.cell_types[0]
    assert full.predict(controls, name, kind, 20, effect_transfer=np.float32(0.5), progress=False).n_obs == 20
    for wrong in (1.5, "0.5"):
        with pytest.raises(EvaeError, match="from 0"):
            full.predict(controls, name, kind, 4, effect_transfer=wrong, progress=False)
    with pytest.warns(UserWarning, match="moves no cells: no pair has 20 cells"):
        full.predict(controls, name, kind, 4, effect_transfer=0.5, progress=False)
    with pytest.raises(EvaeError, match="keeps no effects"):
        pipe.predict(controls, pipe.processor.perturbations[1], n_cells=4, effect_transfer=0.5, progress=False)


def test_a_damaged_file_of_effects_is_named(prior_with_effects, tmp_path):
    folder = tmp_path / "prior"
    shutil.copytree(prior_with_effects, folder)
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaeError, match=FILE):
        evae.pipeline(folder)


def test_the_command_says_how_far_means_were_moved(prior_with_effects, screen_dataset, tmp_path, run):
    def predict(*options):
        done = run(
            "predict",
            prior_with_effects,
            "--held-out",
            screen_dataset,
            "--out",
            tmp_path / "x.h5ad",
            "--overwrite",
            *options,
        )
        assert done.code == 0, done.err
        return done.out

    assert "are moved towards what training cells show, by " in predict("--n-cells", "20")
    assert "effect transfer: none" in predict("--n-cells", "5")
    assert "effect transfer" not in predict("--n-cells", "20", "--effect-transfer", "0")
