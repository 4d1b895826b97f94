"""Simulated dose screens: the counts follow the stored Hill curves."""

import numpy as np
import pytest

from evae.data.simulation.dose_curves import simulate_dose_screen, strength
from evae.models.contract_evae import EvaeError


def test_the_counts_follow_the_curves():
    cells = simulate_dose_screen(
        6_000, 120, 1, 2, seed=3, median_library_size=400, doses=(0.01, 1, 100), times=(6, 48), effect_size=2.0
    )
    truth, control = cells.uns["simulation"], (cells.obs["perturbation"] == "control").to_numpy()
    assert (cells.obs["dose_value"].to_numpy()[control] == 0).all()

    def profile(rows: np.ndarray) -> np.ndarray:
        counts = np.asarray(cells.X[rows].sum(0)).ravel() + 1
        return np.log(counts / counts.sum())

    for d, drug in enumerate(truth["drugs"]):
        shown, wanted = [], []
        for dose, time in ((0.01, 6), (1, 6), (100, 6), (1, 48), (100, 48)):
            rows = (cells.obs[["perturbation", "dose_value", "time"]] == [drug, dose, time]).all(axis=1).to_numpy()
            shift, whole = profile(rows) - profile(control), truth["log_fold_change"][d]
            seen = np.asarray(cells.X[control].sum(0)).ravel() > 200  # where a fold change can be told
            centred = (whole - whole[seen].mean())[seen]
            shown.append(shift[seen] @ centred / (centred @ centred))
            wanted.append(float(strength(dose, time, truth["ec50"][d], truth["hill"][d], truth["tau"][d])))
        np.testing.assert_allclose(shown, wanted, atol=0.12)
        assert wanted[0] < wanted[1] < wanted[2]


@pytest.mark.parametrize("wrong", [{"doses": (0.0, 1.0)}, {"times": ()}, {"n_drugs": 0}])
def test_what_cannot_be_simulated(wrong):
    with pytest.raises((EvaeError, IndexError)):
        simulate_dose_screen(100, 40, **wrong)
