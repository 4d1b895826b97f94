"""What arithmetic on the training cells tells of a perturbation in some cell type.

measured   some cell type of training has it: see `evae.common.known_effects`, which says how far to trust it
dose       a dose between those that training saw of the same agent, kind and time: the effect between theirs, linear in
           log dose; beyond them that of the nearest
parts      a combination whose parts are known: the sum of their effects, each at its dose, in log2
features   no cell has it, but the prior knows its feature vector: kernel ridge regression on the vectors of the
           measured ones, see `evae.effects.features`

For perturbations that training never saw, linear models and means have the better mean effects than networks
(Ahlmann-Eltze, Huber & Anders, Nature Methods 2025), so that the last three are trusted fully.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np

from evae.common.known_effects import KnownEffects
from evae.effects.features import LEAST, told_by_features
from evae.inference.checkpoint import Checkpoint

MOST_KERNEL = 2_000  # measured perturbations, above which their kernel takes too long and ridge regression stands in


@dataclass(frozen=True)
class Carried:
    """An effect in some cell type.

    Attributes:
        effect: log2 fold changes, (genes,).
        trust: from 0, it says nothing, to 1.
        measured: whether some cell type of training has the perturbation.
    """

    effect: np.ndarray
    trust: float = 1.0
    measured: bool = False


@dataclass(frozen=True)
class CarriedEffects:
    """The effects that a prior's training cells tell.

    Attributes:
        known: those measured.
        parts_of_all: names -> name -> the parts of a combination, or itself.
        around: a label and those of which effects are known -> these labels around it by dose, with weights.
        vectors: perturbation -> its feature vector, (features,).
        given: perturbations that are left out, since the user gave their effects.
    """

    known: KnownEffects
    parts_of_all: Callable[[Iterable[str]], Mapping[str, list[str]]]
    around: Callable[[str, Container[str]], list[tuple[str, float]]] = lambda label, usable: []
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    given: Container[str] = ()
    _shown: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # cell type -> the measured with a vector

    @classmethod
    def of(cls, prior: Checkpoint, given: Container[str] = ()) -> Self:
        """Those of a checkpoint that keeps effects, with the feature vectors that it knows."""
        assert prior.effects is not None
        vectors, n = {}, getattr(prior.model.config, "n_perturbation_features", 0)
        if n:
            features = prior.model.condition.perturbation.features.float().cpu().numpy()
            vectors = dict(zip(prior.processor.known_units()[-n:], features, strict=True))
        known = prior.processor.names().known
        return cls(prior.effects, prior.processor.parts_of_all, partial(around, known), vectors, given)

    def among(self, names: Iterable[str], cell_type: str, log: np.ndarray) -> dict[str, Carried]:
        """Perturbation -> its effect, for those of which something is known.

        Names with the same parts are the same: `B+A` is `A+B`, and `A+control` is `A`.

        Args:
            names: of perturbations.
            cell_type: whose controls `log` is of.
            log: log2 of their mean counts per 10,000, plus `pseudo`, (genes,); NaN of a gene that is not measured.
        """
        parts = {n: frozenset(own) for n, own in self.parts_of_all(names).items() if n not in self.given}
        by_parts = {frozenset(own): name for name, own in self.parts_of_all(self.known.pairs_of).items()}
        singles = frozenset().union(*parts.values()) if parts else frozenset()
        new = [p for p in sorted(singles) if frozenset([p]) not in by_parts and p in self.vectors]
        told = self._told(new, cell_type, log)
        alone = {label: name for own, name in by_parts.items() if len(own) == 1 for label in own}
        found = {}
        for name, own in parts.items():
            if own in by_parts:
                effect = self.known.carried(by_parts[own], log)
                assert effect is not None
                found[name] = Carried(effect, self.known.calibration, measured=True)
                continue
            each = [told[p] if p in told else self._single(p, alone, log) for p in sorted(own)]
            effects = [effect for effect in each if effect is not None]
            if len(effects) == len(own):
                found[name] = Carried(np.sum(effects, axis=0))
        return found

    def _single(self, part: str, alone: Mapping[str, str], log: np.ndarray) -> np.ndarray | None:
        """The effect of one part, (genes,): as some cell type has it, or from known doses around its own.

        Args:
            part: its label.
            alone: labels that some cell type has by themselves, and the names that they have there.
            log: as in `among`.
        """
        around = [(part, 1.0)] if part in alone else self.around(part, alone)
        effects = [(self.known.carried(alone[label], log), weight) for label, weight in around]
        found = [weight * effect for effect, weight in effects if effect is not None]
        return np.sum(found, axis=0) if found else None

    def _told(self, names: Collection[str], cell_type: str, log: np.ndarray) -> dict[str, np.ndarray]:
        """Effects of perturbations by their vectors alone, (genes,) each."""
        if not names:
            return {}
        if cell_type not in self._shown:
            shown = [name for name in self.known.pairs_of if name in self.vectors]
            self._shown[cell_type] = {name: self.known.mean_effect(name, log) for name in shown}
        measured = self._shown[cell_type]
        if len(measured) < LEAST:
            return {}
        method = "kernel" if len(measured) <= MOST_KERNEL else "ridge"
        return told_by_features(measured, self.vectors, list(names), method)


def around(known: Any, label: str, usable: Container[str]) -> list[tuple[str, float]]:
    """The `usable` labels around one by its dose, and weights; see `KnownTreatments.neighbours`."""
    said = known.read(label)
    found = [] if said is None else known.neighbours(said, usable.__contains__)
    return [(treatment.label, weight) for treatment, weight in found]
