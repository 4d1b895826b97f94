"""Effects that perturbations have in the cell types of training, carried over to another cell type.

An effect is a log2 fold change of mean counts per 10,000, each plus `pseudo`, from the controls of the same cell type.
What a perturbation does in a new cell type is the mean of what it does in the others, by three weights: the error of
each, how much they differ (see `shrinkage.combine`), and how near their controls are to those of the new one:
exp(-(d - smallest d) / bandwidth), with d the mean squared difference of log2 profiles of controls. The bandwidth is a
share of the median d between training cell types: that of `NEAR` with which every pair is best told by the others.

`calibration` is the slope of the effects in one cell type on what the others tell of them, from 0, where every cell
type answers in its own way, to 1, where what they tell is true as it stands.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from evae.common.files import write_bytes
from evae.common.shrinkage import combine, shrink

FILE = "effects.safetensors"
PER = 10_000.0  # counts of a cell are scaled to so many
NEAR = (0.1, 0.25, 1.0)  # of the median distance between cell types, the bandwidth
MOST_JUDGED = 500  # pairs, each left out, that tell the bandwidth and the calibration
LEAST_VARIANCE = 1e-6  # of an effect as it is stored, 16 bits


@dataclass(frozen=True)
class KnownEffects:
    """What the training cells show.

    Attributes:
        change: log2 fold changes, (pairs, genes).
        variance: their squared standard errors, (pairs, genes); infinite where nothing is known of a gene.
        context: of each pair the row of `profiles`, (pairs,).
        perturbation: of each pair the name.
        profiles: log2 of the mean counts per 10,000 of controls, plus `pseudo`, (contexts, genes); NaN of a gene that
            was not measured.
        pseudo: counts per 10,000 that are added before logarithms.
        calibration: from 0 to 1, see the module's docstring.
        near: the bandwidth, as a share of the median distance between cell types.
    """

    change: np.ndarray
    variance: np.ndarray
    context: np.ndarray
    perturbation: Sequence[str]
    profiles: np.ndarray
    pseudo: float
    calibration: float = 0.0
    near: float = 0.25

    @cached_property
    def pairs_of(self) -> dict[str, np.ndarray]:
        """Perturbation -> its pairs."""
        names = np.array(self.perturbation, dtype=object)
        return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(self.perturbation)}

    @cached_property
    def bandwidth(self) -> float:
        """Of the distances of profiles; infinite where there is one context alone."""
        every = [self.distances(profile, self.profiles[:row]) for row, profile in enumerate(self.profiles)]
        between = np.concatenate([d for d in every if len(d)] or [np.array([np.inf])])
        return max(self.near * float(np.median(between)), 1e-12)

    def distances(self, profile: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Mean squared differences over the genes that both have, (others,)."""
        gaps = (others - profile) ** 2
        known = np.isfinite(gaps)
        found: np.ndarray = np.where(known, gaps, 0).sum(1) / np.maximum(known.sum(1), 1)
        return found

    def carried(self, perturbation: str, profile: np.ndarray, but: int = -1) -> np.ndarray | None:
        """The effect in another cell type, log2 fold changes (genes,); 0 for a gene of which nothing is known.

        Args:
            perturbation: its name.
            profile: of the other cell type's controls, as `profiles`.
            but: a pair that is left out.

        Returns:
            None where no cell type has the perturbation.
        """
        pairs = self.pairs_of.get(perturbation, np.zeros(0, dtype=np.int64))
        pairs = pairs[pairs != but]
        if not len(pairs):
            return None
        effect, variance, counted = self._combined(pairs, profile)
        effect[counted] = shrink(effect[counted], variance)
        return effect

    def mean_effect(self, perturbation: str, profile: np.ndarray) -> np.ndarray:
        """The same of a perturbation that some cell type has, but not shrunk, for what learns from many of them."""
        return self._combined(self.pairs_of[perturbation], profile)[0]

    def _combined(self, pairs: np.ndarray, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean over pairs, (genes,), its variance over the genes that count, and whether a gene counts, (genes,)."""
        distance = self.distances(profile, self.profiles[self.context[pairs]])
        closeness = np.exp(-(distance - distance.min()) / self.bandwidth)
        variance = self.variance[pairs].astype(np.float64)
        counted = np.isfinite(variance).all(0)
        effect = np.zeros(len(profile))
        effect[counted], error = combine(
            self.change[pairs][:, counted].astype(np.float64), variance[:, counted], closeness
        )
        return effect, error, counted

    def judged(self) -> "KnownEffects":
        """The same with its bandwidth and `calibration`, from the pairs, each told by the other cell types."""
        several = np.concatenate([pairs for pairs in self.pairs_of.values() if len(pairs) > 1] or [np.zeros(0, int)])
        pairs = several[:: -(-len(several) // MOST_JUDGED) or 1].tolist()
        best = min((replace(self, near=near) for near in NEAR), key=lambda one: one._miss(pairs))
        both = told = 0.0
        for pair in pairs:
            effect = best.carried(self.perturbation[pair], self.profiles[self.context[pair]], but=pair)
            assert effect is not None
            precision = 1 / self.variance[pair].astype(np.float64)
            both += float((precision * self.change[pair] * effect).sum())
            told += float((precision * effect**2).sum())
        return replace(best, calibration=min(max(both / told, 0.0), 1.0) if told else 0.0)

    def _miss(self, pairs: Sequence[int]) -> float:
        """Squared errors of pairs told by the other cell types, over their own variances; not shrunk, which is slow."""
        missed = 0.0
        for pair in pairs:
            others = self.pairs_of[self.perturbation[pair]]
            effect = self._combined(others[others != pair], self.profiles[self.context[pair]])[0]
            missed += float(((self.change[pair] - effect) ** 2 / self.variance[pair].astype(np.float64)).sum())
        return missed

    def joined(self, more: "KnownEffects") -> "KnownEffects":
        """These and further ones over the same genes, judged anew."""
        return KnownEffects(
            np.concatenate([self.change, more.change]),
            np.concatenate([self.variance, more.variance]),
            np.concatenate([self.context, more.context + len(self.profiles)]),
            [*self.perturbation, *more.perturbation],
            np.concatenate([self.profiles, more.profiles]),
            self.pseudo,
        ).judged()

    def save(self, folder: Path) -> Path:
        """Write them into a model's folder."""
        arrays = {
            "change": self.change.astype(np.float16),
            "variance": np.maximum(self.variance, LEAST_VARIANCE).astype(np.float16),
            "context": self.context.astype(np.int32),
            "profiles": self.profiles.astype(np.float32),
        }
        told = {"pseudo": self.pseudo, "calibration": self.calibration, "near": self.near}
        facts = told | {"perturbations": list(self.perturbation)}
        return write_bytes(folder / FILE, save(arrays, {"evae": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> "KnownEffects":
        """Those of a file that `save` wrote.

        Raises:
            OSError, SafetensorError, ValueError, KeyError, TypeError: no such file.
        """
        with safe_open(path, framework="numpy") as tensors:
            facts = json.loads(tensors.metadata()["evae"])
            arrays = {name: tensors.get_tensor(name) for name in ("change", "variance", "context", "profiles")}
        names, pairs = [str(name) for name in facts["perturbations"]], len(arrays["change"])
        shapes = {arrays[name].shape for name in ("change", "variance")} | {(pairs, arrays["profiles"].shape[1])}
        if len(shapes) > 1 or len(names) != pairs or arrays["context"].shape != (pairs,):
            raise ValueError("its parts do not fit together")
        # older files have half of a correlation in place of the slope
        slope = float(facts["calibration"]) if "calibration" in facts else 2 * float(facts["weight"])
        near = float(facts.get("near", cls.near))
        return cls(perturbation=names, pseudo=float(facts["pseudo"]), calibration=slope, near=near, **arrays)
