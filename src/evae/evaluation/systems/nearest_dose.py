"""What training knows of an agent at its nearest dose, for a dose that training never saw.

With D the doses of the agent in training, of the same kind, time and unit, and d the evaluated dose, the effect is

    e(d) = e(argmin over D of |log D - log d|)

the mean of both where two doses are equally near. Effects are shifts of mean log1p expression from control, those of
the evaluated cell type where training has them, else the mean over the training cell types.
"""

from collections.abc import Collection
from math import log

import numpy as np

from evae.evaluation.cells import Comparison, Pair
from evae.models.contract_evae import parts_of
from evae.models.treatments_evae import Treatment, readings

SAME = 1e-6  # natural log units: conversion between units adds less


def shifts_at_nearest_dose(comparison: Comparison) -> dict[Pair, np.ndarray]:
    """Shifts of the evaluated treatments whose dose alone is new, (genes,) each; combinations have none."""
    training = comparison.training
    assert training is not None
    everywhere = training.shifts()
    doses = _doses(everywhere, everywhere, training.control)
    wanted = _doses({p for _, p in comparison.pairs} - everywhere.keys(), everywhere, training.control)
    found = {}
    for cell_type in comparison.cell_types:
        effects = everywhere | training.shifts({cell_type})
        for perturbation in comparison.perturbations(cell_type):
            if perturbation in wanted and (near := _nearest(wanted[perturbation], doses)):
                found[(cell_type, perturbation)] = np.mean([effects[name] for name in near], axis=0)
    return found


def _doses(names: Collection[str], known: Collection[str], control: str) -> dict[str, Treatment]:
    """The treatments with a dose, by their canonical labels; a combination has no single dose."""
    single = [name for name in names if len(parts_of(name, known, control)) == 1]
    return {name: said for name in single for said in readings(name) if said.dose is not None and said.label == name}


def _nearest(wanted: Treatment, known: dict[str, Treatment]) -> list[str]:
    """The labels of the same treatment at the nearest dose: none, one, or two that are equally near."""
    assert wanted.dose is not None
    steps = {
        name: abs(log(said.dose) - log(wanted.dose))
        for name, said in known.items()
        if said.dose and _but_dose(said) == _but_dose(wanted)
    }
    least = min(steps.values(), default=0.0)
    return [name for name, step in steps.items() if step <= least + SAME]


def _but_dose(said: Treatment) -> tuple[str, str, float | None, str]:
    return said.agent, said.kind, said.time, said.dose_unit
