"""The labels of a data set as a split sees them: the pairs that there are, agents and parts of perturbations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evae.models.contract_evae import parts_of
from evae.models.treatments_evae import Treatment


@dataclass(frozen=True)
class Known:
    """The labels of a data set.

    Attributes:
        cell_types, perturbations: the vocabularies.
        control: the control's name.
        cells: number of cells of every pair, (cell types, perturbations).
        seed: of what is drawn.
        treatments: of the perturbations and their parts, where labels say more than a name.
    """

    cell_types: Sequence[str]
    perturbations: Sequence[str]
    control: str
    cells: np.ndarray
    seed: int = 0
    treatments: Mapping[str, Treatment] = field(default_factory=dict)

    @property
    def perturbed(self) -> list[str]:
        """The perturbations but for the control."""
        return [p for p in self.perturbations if p != self.control]

    def parts(self, name: str) -> list[str]:
        """What a combination combines; of a single perturbation itself."""
        return parts_of(name, {*self.perturbations, *self.treatments}, self.control)

    def agent(self, name: str) -> str:
        """The agent of a single perturbation, which is the name itself where the label says no more."""
        return self.treatments[name].agent if name in self.treatments else name

    def of_agents(self, agents: Iterable[str]) -> list[str]:
        """The single perturbations with these agents."""
        wanted = set(agents)
        return [p for p in self.singles() if self.agent(p) in wanted]

    def singles(self) -> list[str]:
        """The perturbations that are no combinations; all if there are none."""
        return [p for p in self.perturbed if self.parts(p) == [p]] or self.perturbed

    def n_cells(self, cell_type: str, perturbation: str) -> int:
        return int(self.cells[list(self.cell_types).index(cell_type), list(self.perturbations).index(perturbation)])

    def pairs(self, cell_types: Iterable[str], perturbations: Iterable[str]) -> list[tuple[str, str]]:
        """The pairs of a cross product that have cells."""
        given = list(perturbations)
        return [(c, p) for c in cell_types for p in given if self.n_cells(c, p)]

    def generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2])
