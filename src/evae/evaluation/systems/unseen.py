"""Arithmetic for what training never saw: combinations of known perturbations, and perturbations that are new.

sum of singles            a combination has the summed effects of its parts; the additive baseline of Ahlmann-Eltze,
                          Huber and Anders (Nature Methods 2025)
nearest in features       a new perturbation has the mean effect of the 5 training perturbations that are nearest in a
                          feature table
kernel ridge on features  its effect is what kernel ridge regression on the table predicts
bilinear                  its effect is  G W P + b,  the linear model of Ahlmann-Eltze et al.; P from the table or,
                          without one, the components of the gene that a perturbation is named after

Effects are shifts of mean log1p expression from control, those of the evaluated cell type where training has them, else
the mean over the training cell types. All are added to real controls. The models are those of `evae.effects.features`.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from evae.common.numbers import counted
from evae.effects.features import LEAST, gene_components, told_by_features
from evae.evaluation.cells import Comparison, Pair
from evae.evaluation.systems.names import BILINEAR, KERNEL_RIDGE, NEAREST
from evae.models.contract_evae import parts_of

OF_FEATURES = {NEAREST: "nearest", KERNEL_RIDGE: "kernel", BILINEAR: "bilinear"}
Shifts = dict[Pair, np.ndarray]


def sums_of_singles(comparison: Comparison) -> Shifts:
    """Shifts of the evaluated combinations whose parts training all knows by themselves, (genes,) each."""
    training = comparison.training
    assert training is not None
    everywhere = training.shifts()
    known = {cell_type: everywhere | training.shifts({cell_type}) for cell_type in comparison.cell_types}
    found = {}
    for cell_type, perturbation in comparison.pairs:
        parts = parts_of(perturbation, everywhere, training.control)
        if len(parts) > 1 and everywhere.keys() >= set(parts):
            found[(cell_type, perturbation)] = np.sum([known[cell_type][part] for part in parts], axis=0)
    return found


def unseen_shifts(comparison: Comparison, features: Mapping[str, np.ndarray] | None) -> dict[str, Shifts]:
    """Shifts of the evaluated perturbations that training knows neither as a whole nor by their parts.

    Args:
        comparison: with training cells.
        features: vectors by name. Without them the bilinear model alone has answers, for perturbations that are named
            after genes of the panel.

    Returns:
        Name of the baseline -> pair -> shift, (genes,).

    Raises:
        EvaeError: the features know too few perturbations of the training cells.
    """
    training = comparison.training
    assert training is not None
    everywhere = training.shifts()
    named = {str(gene) for gene in comparison.genes} if features is None else set(features)
    evaluated = sorted({p for _, p in comparison.pairs if p not in everywhere})
    parts = {p: [p] if p in named else parts_of(p, {*named, *everywhere}, training.control) for p in evaluated}
    parts = {p: own for p, own in parts.items() if not everywhere.keys() >= set(own)}
    lacking = [p for p, own in parts.items() if not everywhere.keys() | named >= set(own)]
    if features is not None:
        _explain(comparison, parts, lacking)
    found: dict[str, Shifts] = {name: {} for name in (OF_FEATURES if features is not None else [BILINEAR])}
    for cell_type in comparison.cell_types:
        wanted = {p: parts[p] for p in comparison.perturbations(cell_type) if p in parts and p not in lacking}
        if not wanted:
            continue
        measured = training.shifts({cell_type})
        measured = measured if len(measured.keys() & named) >= LEAST else everywhere
        if features is None and len(measured.keys() & named) < LEAST:
            continue
        vectors = _components(measured, comparison.genes) if features is None else features
        single = sorted({part for own in wanted.values() for part in own if part not in everywhere})
        for name, shifts in found.items():
            effects = everywhere | measured | told_by_features(measured, vectors, single, OF_FEATURES[name])
            for p, own in wanted.items():
                shifts[(cell_type, p)] = np.sum([effects[part] for part in own], axis=0)
    return found


def _components(measured: Mapping[str, np.ndarray], genes: np.ndarray) -> dict[str, np.ndarray]:
    """Every gene's components over the measured perturbations, for perturbations that are named after it."""
    return dict(zip(genes.astype(str), gene_components(np.stack(list(measured.values()))), strict=True))


def _explain(comparison: Comparison, new: Collection[str], lacking: Sequence[str]) -> None:
    if not new:
        comparison.notes.append("the features were not needed: training has cells of every evaluated perturbation")
    if lacking:
        comparison.notes.append(f"the features have no vector of {counted(lacking, 'unseen perturbation')}")
