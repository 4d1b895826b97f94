"""The default guidance scale is the one whose cells have the means of the validation cells."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evae.models.randomness_evae import draw_uniform
from evae.training.codes import EncodedCells
from evae.training.guidance import choose_guidance

N_PAIRS, N_EACH, WIDTH = 6, 8, 16
SHIFT = 0.6


class Prior:
    """Draws latents around SHIFT times the guidance scale, of which only the noise differs between seeds."""

    training_input = "latents"
    device = torch.device("cpu")
    config = SimpleNamespace(cell_type_context=False)

    def sample(self, perturbation_ids, generator, guidance_scale, **conditions):
        noise = draw_uniform((len(perturbation_ids), 1, WIDTH), self.device, generator)
        return (noise - 0.5) * 3 + SHIFT * guidance_scale


def cells(scale, n_control=10):
    rng = np.random.default_rng(0)
    n = N_PAIRS * N_EACH + n_control
    latents = rng.normal(SHIFT * scale, 0.2, (n, 1, WIDTH)).astype(np.float32)
    perturbation = np.r_[np.repeat(np.arange(1, 1 + N_PAIRS), N_EACH), np.zeros(n_control)].astype(np.int32)
    return EncodedCells(latents, perturbation, np.zeros(n, dtype=np.int32), np.ones(n, dtype=np.float32))


@pytest.mark.parametrize("scale", [1.0, 1.25, 1.5, 2.0])
def test_the_scale_that_fits_is_chosen_whatever_the_seed(scale):
    for seed in range(5):
        chosen, curve = choose_guidance(Prior(), cells(scale), control=0, seed=seed)
        assert chosen == scale
        assert min(curve, key=curve.get) == f"{scale:g}"


def test_pairs_of_few_cells_choose_nothing():
    few = cells(2.0).part(slice(0, 3))
    assert choose_guidance(Prior(), few, control=0, seed=0) == (1.0, {})
