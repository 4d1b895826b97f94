"""The labels of a screen, checked: which cells are in which arm with which target."""

from dataclasses import dataclass

import numpy as np

from evae.data.reading.anndata_counts import Counts
from evae.models.contract_evae import EvaeError, near_matches
from evae.reversion.names import ScreenNames

UNTREATED, TREATED = 0, 1


@dataclass(frozen=True)
class Screen:
    """A screen's cells as group codes.

    Attributes:
        names: what the screen calls things.
        targets: all targets, controls included, sorted, (targets,).
        codes: arm * targets + target of every cell, int32 (cells,); -1 for cells of other conditions.
    """

    names: ScreenNames
    targets: list[str]
    codes: np.ndarray

    @classmethod
    def read(cls, source: Counts, names: ScreenNames) -> "Screen":
        """Read and check the labels.

        Raises:
            EvaeError: a column, an arm, the anchor's cells or a positive control is missing, or targets whose names
                differ in blanks or case only.
        """
        condition, conditions = source.labels(names.condition_key)
        target, found = source.labels(names.target_key)
        arm = np.full(len(condition), -1, dtype=np.int32)
        for code, label in ((UNTREATED, names.untreated), (TREATED, names.treated)):
            if label not in conditions:
                known = near_matches(label, sorted(conditions))
                raise EvaeError(f"no cell has the condition '{label}' in obs column '{names.condition_key}'. {known}")
            arm[condition == conditions.index(label)] = code
        used = arm >= 0
        targets = sorted({found[t] for t in np.unique(target[used])})
        _check_distinct(targets)
        place = {name: i for i, name in enumerate(targets)}
        lookup = np.array([place.get(name, 0) for name in found], dtype=np.int32)
        codes = np.where(used, arm * len(targets) + lookup[target], -1).astype(np.int32)
        screen = cls(names, targets, codes)
        screen._check()
        return screen

    @property
    def n_cells(self) -> int:
        return len(self.codes)

    @property
    def n_groups(self) -> int:
        """Pairs of arm and target, with or without cells."""
        return 2 * len(self.targets)

    def sizes(self) -> np.ndarray:
        """Cells of every (arm, target), int64 (2, targets)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=self.n_groups).reshape(2, -1)

    def is_control(self) -> np.ndarray:
        """Which targets are controls, bool (targets,)."""
        return np.isin(self.targets, self.names.controls)

    def group(self, arm: int, target: str) -> int:
        """Code of an (arm, target)."""
        return arm * len(self.targets) + self.targets.index(target)

    def sample(self, per_group: int, seed: int) -> np.ndarray:
        """At most so many cells of every (arm, target), chosen at random; sorted indices."""
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(np.flatnonzero(self.codes >= 0))
        order = shuffled[np.argsort(self.codes[shuffled], kind="stable")]
        codes = self.codes[order]
        first = np.searchsorted(codes, codes, side="left")
        return np.sort(order[np.arange(len(order)) - first < per_group])

    def _check(self) -> None:
        names, sizes = self.names, self.sizes()
        for label in (names.anchor, *names.positives):
            if label not in self.targets:
                kind = "anchor" if label == names.anchor else "positive control"
                raise EvaeError(
                    f"no cell has the {kind} '{label}' in obs column '{names.target_key}'; correct the name, or leave "
                    f"it out. {near_matches(label, self.targets)}"
                )
        if not sizes[UNTREATED, self.targets.index(names.anchor)]:
            raise EvaeError(
                f"no cell is both '{names.untreated}' and '{names.anchor}', the group that all are compared with; "
                "name another anchor."
            )
        for label in names.positives:
            if not sizes[TREATED, self.targets.index(label)]:
                raise EvaeError(
                    f"the positive control '{label}' has no cell of the condition '{names.treated}'; leave it out."
                )


def _check_distinct(targets: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in targets:
        plain = name.strip().lower()
        if plain in seen:
            raise EvaeError(
                f"the targets '{seen[plain]}' and '{name}' differ in blanks or case only; give them one name."
            )
        seen[plain] = name
