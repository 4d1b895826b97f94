"""The small network: it learns effects that carry over, and gives controls back that are changed by them."""

import anndata as ad
import numpy as np
import pytest

from evae.evaluation.cells.comparison import compare
from evae.evaluation.systems.latent_additive import latent_additive
from evae.models.contract_evae import EvaeError

from ..conftest import make_screen

PAIR = ("B", "G1")


@pytest.fixture(scope="module")
def comparison(screen, real, perfect):
    return compare(perfect, real, screen)


def test_the_effect_of_another_cell_type_is_learned(comparison):
    system = latent_additive(comparison, steps=250)
    assert system.pairs == comparison.pairs
    control = comparison.control_means["B"]
    truth = comparison.real.matrix[comparison.real_rows[PAIR]].toarray().mean(axis=0) - control
    shift = system.mean(PAIR) - control
    assert np.corrcoef(shift, truth)[0, 1] > 0.5  # of means of 40 cells; an additive shift has 0.73
    assert ((shift - truth) ** 2).mean() < 0.8 * (truth**2).mean()  # nearer than a control copy
    cells = system.draw(PAIR, 30, np.random.default_rng(0))
    assert cells.shape == (30, 60)
    assert cells.min() >= 0
    np.testing.assert_array_equal(latent_additive(comparison, steps=3).mean(PAIR),
                                  latent_additive(comparison, steps=3).mean(PAIR))  # fmt: skip


def test_a_combination_has_the_vectors_of_its_parts_and_a_new_perturbation_no_answer(screen, perfect, real):
    def renamed(cells):
        names = cells.obs["perturbation"].astype(str).replace({"G0": "G1+G2", "G1": "new"})
        return ad.AnnData(cells.X, cells.obs.assign(perturbation=names), cells.var)

    system = latent_additive(compare(renamed(perfect), renamed(real), screen), steps=2)
    assert system.pairs == [("B", "G1+G2"), ("B", "G2")]


def test_cell_types_without_controls_teach_nothing(real, perfect, screen):
    only = make_screen(cell_types=("A",))
    train = only[only.obs["perturbation"] != "control"].copy()
    with pytest.raises(EvaeError, match="both perturbed cells and controls"):
        latent_additive(compare(perfect, real, train, controls=screen))
