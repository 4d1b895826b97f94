"""The effect at the nearest dose, against known effects."""

from types import SimpleNamespace

import numpy as np
import pytest

from evae.evaluation.cells.training_cells import TrainingCells
from evae.evaluation.systems.nearest_dose import shifts_at_nearest_dose

KNOWN = ["A 1 uM 24 h", "A 100 uM 24 h", "A 3 uM 6 h", "A 3 ng/mL 24 h", "A drug 3 uM 24 h", "B 3 uM 24 h", "B"]


def shifts_of(pairs, lacking=()):
    """Baseline shifts of pairs where training knows, in the cell types X and Y, effect i in X and 100 + i in Y."""
    means = {(c, "control"): np.full(3, 5.0) for c in "XY"}
    means |= {(c, p): np.full(3, 5.0 + i + 100 * (c == "Y")) for i, p in enumerate(KNOWN) for c in "XY"}
    means = {pair: mean for pair, mean in means.items() if pair not in lacking}
    comparison = SimpleNamespace(
        training=TrainingCells(means, dict.fromkeys(means, 10), None, None, "control"),
        pairs=pairs, cell_types=sorted({c for c, _ in pairs}),
        perturbations=lambda cell_type: [p for c, p in pairs if c == cell_type],
    )  # fmt: skip
    return {pair: float(shift[0]) for pair, shift in shifts_at_nearest_dose(comparison).items()}


@pytest.mark.parametrize(("dose", "effect"), [("9.9", 0), ("10.1", 1), ("0.01", 0), ("1e+06", 1), ("10", 0.5)])
def test_the_nearest_dose_on_the_log_scale_and_the_mean_of_two_that_are_equally_near(dose, effect):
    assert shifts_of([("X", f"A {dose} uM 24 h")]) == {("X", f"A {dose} uM 24 h"): effect}


def test_the_own_cell_type_comes_before_the_mean_of_the_others():
    pair = ("Y", "A 2 uM 24 h")
    assert shifts_of([pair]) == {pair: 100}
    assert shifts_of([pair], lacking=[("Y", "A 1 uM 24 h")]) == {pair: 0}
    other = ("Z", "A 2 uM 24 h")
    assert shifts_of([other]) == {other: 50}


def test_nothing_is_said_of_seen_doses_other_times_kinds_units_and_combinations():
    others = ["A 1 uM 24 h", "A 1 uM 12 h", "A activation 1 uM 24 h", "A 1 U/mL 24 h", "C 1 uM 24 h", "new"]
    assert shifts_of([("X", p) for p in (*others, "B 3 uM 24 h+A 2 uM 24 h", "A 1 uM 24 h+B 2 uM 24 h")]) == {}
