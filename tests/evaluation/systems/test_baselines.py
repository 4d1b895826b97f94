"""Baselines: each is what its name says."""

import anndata as ad
import numpy as np
import pytest

from evae.evaluation.cells.comparison import compare
from evae.evaluation.cells.projection import dense
from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.baselines import baselines, linear_predictions, model_system
from evae.evaluation.systems.latent_additive import latent_additive

from ..conftest import make_screen

PAIR = ("B", "G1")


@pytest.fixture(scope="module")
def comparison(screen, real, perfect):
    return compare(perfect, real, screen)


@pytest.fixture(scope="module")
def systems(comparison):
    return {s.name: s for s in baselines(comparison)}


def draw(system, n=30, seed=0):
    return dense(system.draw(PAIR, n, np.random.default_rng(seed)))


def rows_in(cells, pool):
    known = {row.tobytes() for row in np.ascontiguousarray(pool, dtype=np.float64)}
    return np.mean([row.tobytes() in known for row in np.ascontiguousarray(cells, dtype=np.float64)])


def test_all_baselines_are_there(systems):
    assert list(systems) == [
        "control copy",
        "mean-collapsed model",
        "perturbation mean",
        "mean of all perturbations",
        "additive shift",
        "mean of all shifts",
        "shrunken transfer",
        "marginal resample",
        "other contexts",
    ]  # linear needs three perturbations that both cell types share


def test_control_copy_gives_controls_of_the_cell_type(comparison, systems):
    pool = comparison.controls.matrix.toarray()
    cells = draw(systems["control copy"])
    assert rows_in(cells, pool) == 1
    assert len(np.unique(cells, axis=0)) == 30  # without replacement while they last
    assert draw(systems["control copy"], n=300).shape == (300, 60)


def test_perturbation_mean_is_over_training_cell_types(comparison, systems):
    expected = comparison.training.means[("A", "G1")]  # B with G1 is held out
    np.testing.assert_allclose(draw(systems["perturbation mean"]), np.tile(expected, (30, 1)))


def test_training_cell_types_weigh_the_same():
    means = {("a", "p"): np.zeros(2), ("b", "p"): np.ones(2), ("b", "control"): np.full(2, 9.0)}
    training = TrainingCells(means, {("a", "p"): 1, ("b", "p"): 99, ("b", "control"): 1}, None, None, "control")
    np.testing.assert_array_equal(training.perturbation_mean("p"), [0.5, 0.5])
    assert training.perturbation_mean("q") is None


def test_mean_of_all_perturbations_is_of_the_own_cell_type(comparison, systems):
    np.testing.assert_allclose(
        systems["mean of all perturbations"].mean(PAIR), comparison.training.means[("B", "none")]
    )


def test_the_mean_of_all_shifts_is_the_same_for_every_perturbation(comparison, systems):
    means, system = comparison.training.means, systems["mean of all shifts"]
    shift = means[("B", "none")] - means[("B", "control")]  # all that training holds of B
    control = comparison.control_means["B"]
    np.testing.assert_allclose(system.mean(PAIR), (control + shift).clip(min=0))
    np.testing.assert_array_equal(system.mean(("B", "G0")), system.mean(PAIR))
    elsewhere = comparison.training.mean_shift("unseen")  # all types, every perturbation once
    shifts = [np.mean([means[(c, p)] - means[(c, "control")] for c in ("A", "B") if (c, p) in means], axis=0)
              for p in ("G0", "G1", "G2", "none")]  # fmt: skip
    np.testing.assert_allclose(elsewhere, np.mean(shifts, axis=0))


def test_the_noise_of_a_mean_is_its_variance_by_the_number_of_cells(comparison, systems):
    cells = comparison.controls.matrix.toarray()
    np.testing.assert_allclose(
        systems["control copy"].noise(PAIR), cells.var(axis=0, ddof=1) / len(cells), rtol=1e-4, atol=1e-9
    )
    assert systems["perturbation mean"].noise is None


def test_additive_shift_adds_the_training_shift_to_controls(comparison, systems):
    means = comparison.training.means
    shift = means[("A", "G1")] - means[("A", "control")]
    cells = draw(systems["additive shift"])
    controls = draw(systems["control copy"])
    np.testing.assert_allclose(cells, (controls + shift).clip(min=0))
    np.testing.assert_allclose(
        systems["additive shift"].mean(PAIR),
        (means[("B", "control")] + shift).clip(min=0),
        atol=1e-6,
    )


def test_shrunken_transfer_is_a_part_of_the_shift_elsewhere(comparison, systems):
    """A single other cell type cannot tell amplitudes, so half of everything is carried over."""
    means = comparison.training.means
    shift = means[("A", "G1")] - means[("A", "control")]
    found = systems["shrunken transfer"].mean(PAIR)
    np.testing.assert_allclose(found, (means[("B", "control")] + shift / 2).clip(min=0), atol=1e-6)
    assert any("shrunken transfer to B: amplitude 0.50" in note for note in comparison.notes)


def test_no_baseline_sees_a_held_out_cell(screen, real, perfect):
    """Training files that hold the held-out cells too, and held-out cells with other counts: the same answers."""
    vectors = {f"G{i}": np.random.default_rng(i).normal(size=3) for i in range(9)} | {"none": np.ones(3)}
    found = []
    for held_out in (real, ad.AnnData(real.X.multiply(3).tocsr(), real.obs, real.var)):
        seen = compare(perfect, held_out, ad.concat([screen, held_out]))
        assert seen.training.n_held_out == len(real)
        systems = [*baselines(seen, vectors), latent_additive(seen, steps=2)]
        found.append({s.name: s.mean(PAIR) for s in systems if PAIR in s.pairs})
    assert {"additive shift", "shrunken transfer", "latent additive", "control copy"} <= set(found[0])
    for name, mean in found[0].items():
        np.testing.assert_array_equal(mean, found[1][name], err_msg=name)


def test_marginal_resample_keeps_marginals_and_breaks_cells(comparison, systems):
    elsewhere = comparison.training.elsewhere
    pool = elsewhere.matrix[elsewhere.perturbation == "G1"].toarray()
    cells = draw(systems["marginal resample"], n=len(pool))
    np.testing.assert_allclose(np.sort(cells, axis=0), np.sort(pool, axis=0))
    assert rows_in(cells, pool) < 0.1


def test_other_contexts_are_real_cells_of_other_cell_types(comparison, systems):
    elsewhere = comparison.training.elsewhere
    pool = elsewhere.matrix[(elsewhere.perturbation == "G1") & (elsewhere.cell_type == "A")].toarray()
    assert rows_in(draw(systems["other contexts"]), pool) == 1


def test_other_contexts_leave_out_the_own_cell_type(screen, real, perfect):
    """Training that holds some cells of the evaluated pair: another split of the same pair."""
    same_pair = make_screen(cell_types=("B",), seed=8, prefix="same", perturbations=("G1",))
    train = ad.concat([screen, same_pair[same_pair.obs.perturbation == "G1"]])
    found = compare(perfect, real, train)
    systems = {s.name: s for s in baselines(found)}
    elsewhere = found.training.elsewhere
    assert ("B", "G1") in found.training.means
    pool = elsewhere.matrix[(elsewhere.perturbation == "G1") & (elsewhere.cell_type == "A")].toarray()
    assert rows_in(draw(systems["other contexts"]), pool) == 1


def test_mean_collapsed_keeps_the_models_mean_and_no_variance(comparison, systems):
    model = model_system(comparison)
    cells = draw(systems["mean-collapsed model"])
    np.testing.assert_allclose(cells[0], model.mean(PAIR))
    assert cells.std(axis=0).max() < 1e-12


def test_the_model_gives_each_own_cell_once(comparison):
    model = model_system(comparison)
    assert model.available[PAIR] == 40
    assert len(np.unique(draw(model, n=40), axis=0)) == 40


def test_without_training_cells_two_baselines_remain(screen, real, perfect):
    found = baselines(compare(perfect, real, controls=screen))
    assert [s.name for s in found] == ["control copy", "mean-collapsed model"]


def test_linear_recovers_a_linear_world():
    """Shifts of the target cell type are a linear map of the other's: the baseline must find it."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(3, 50))
    scores = rng.normal(size=(40, 3))
    base = np.full(50, 20.0)  # far from the clip at 0
    elsewhere, own = scores @ axes, scores * np.array([2.0, -1.0, 0.5]) @ axes
    means = {("other", "control"): base, ("target", "control"): base}
    means |= {("other", f"p{i}"): base + e for i, e in enumerate(elsewhere)}
    means |= {("target", f"p{i}"): base + o for i, o in enumerate(own[:30])}
    pairs = [("target", f"p{i}") for i in range(30, 40)]
    training = TrainingCells(means, dict.fromkeys(means, 1), None, None, "control")

    class World:
        cell_types = ("target",)

        def perturbations(self, cell_type):
            return [p for _, p in pairs]

    World.training, World.genes = training, np.arange(50)
    found = linear_predictions(World(), penalty=1e-9)
    truth = {pair: base + own[int(pair[1][1:])] for pair in pairs}
    for pair in pairs:
        np.testing.assert_allclose(found[pair], truth[pair], atol=1e-4)
