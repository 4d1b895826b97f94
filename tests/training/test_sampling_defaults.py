"""Predictions are drawn by default as is nearest to the validation cells."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evae.models.randomness_evae import draw_uniform
from evae.training.codes import EncodedCells
from evae.training.sampling_defaults import PerturbedCells, choose_guidance, choose_temperature

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
        chosen, curve = choose_guidance(PerturbedCells.of(Prior(), cells(scale), control=0, seed=seed))
        assert chosen == scale
        assert min(curve, key=curve.get) == f"{scale:g}"


def test_pairs_of_few_cells_choose_nothing():
    few = cells(2.0).part(slice(0, 3))
    perturbed = PerturbedCells.of(Prior(), few, control=0, seed=0)
    assert choose_guidance(perturbed) == (1.0, {})
    assert choose_temperature(perturbed, 1.0) == (1.0, {})


class Writer(Prior):
    """Writes codes, whose latents differ by the temperature, and more between pairs than within."""

    training_input = "codes"
    tokenizer = SimpleNamespace(codes_to_latents=lambda codes: codes.float() / 1_000)

    def sample(self, perturbation_ids, generator, guidance_scale, temperature, **conditions):
        noise = draw_uniform((len(perturbation_ids), WIDTH), self.device, generator)
        return (1_000 * (noise * temperature + 4 * perturbation_ids[:, None])).long()


@pytest.mark.parametrize("temperature", [0.6, 0.7, 0.8, 0.9, 1.0])
def test_the_temperature_gives_cells_of_a_pair_the_spread_of_real_ones(temperature):
    given, rng = cells(1.0), np.random.default_rng(1)
    spread = temperature * rng.random((len(given.perturbation_ids), WIDTH))
    codes = 1_000 * (spread + 9 * given.perturbation_ids[:, None])  # how far pairs lie apart says nothing
    real = replace(given, codes=codes.astype(np.uint16))
    chosen, curve = choose_temperature(PerturbedCells.of(Writer(), real, control=0, seed=0), 1.0)
    assert chosen == temperature
    assert curve[f"{temperature:g}"] == pytest.approx(1, abs=0.08)


def test_a_prior_without_a_temperature_chooses_none():
    assert choose_temperature(PerturbedCells.of(Prior(), cells(1.0), control=0, seed=0), 1.0) == (1.0, {})
