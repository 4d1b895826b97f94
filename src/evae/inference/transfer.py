"""Predicted cells are moved towards the effects that arithmetic on the training cells tells.

A prior draws whole cells and knows the state of the controls; arithmetic knows a perturbation's mean effect with less
noise. Each errs in its own way, so that the mean of both is nearer to real cells than either. In log2(mean counts per
10,000 + pseudo) the wanted mean of a gene lies between that of the drawn cells and that of the controls plus the
effect. Molecules are then taken from genes and added to others (see `evae.inference.totals`), so that counts stay whole
and cells keep what is their own.

How far cells are moved: where they show all of the effect (the slope of their own change on it is 1), they have learnt
what is known and may add to it, and both count alike, as is best for two forecasts of like error (Bates & Granger,
Operational Research Quarterly 20, 1969). Where they show none of it, the prior does not know the perturbation, and its
mean gives way. So the weight is trust x (1 - slope / 2), with the slope from 0 to 1.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.common.known_effects import PER, KnownEffects
from evae.data.format import Pair
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.panel import over_panel
from evae.inference.carried_effects import Carried, CarriedEffects
from evae.inference.checkpoint import Checkpoint
from evae.inference.sampling import READ_BATCH, ControlFacts
from evae.inference.spread import FEWEST_CELLS, PairMeans
from evae.inference.totals import cells_by_pair, mean_rates, with_means


@dataclass(frozen=True)
class Moved:
    """The pairs whose cells were moved.

    Attributes:
        measured: those whose perturbation training saw, and by what weight.
        new: those whose effect is told by other doses, the parts of a combination or feature vectors.
    """

    measured: dict[Pair, float] = field(default_factory=dict)
    new: dict[Pair, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.measured or self.new)

    def facts(self) -> dict[str, float]:
        """What `uns["evae"]` says of it: the mean weight and the numbers of pairs."""
        weights = [*self.measured.values(), *self.new.values()]
        said = {"effect_transfer": float(np.mean(weights)) if weights else 0.0}
        return said | {"effect_transfer_pairs": len(self.measured), "effect_transfer_new_pairs": len(self.new)}


@dataclass(frozen=True)
class EffectTransfer:
    """Moves cells that a prior drew from some controls.

    Attributes:
        effects: that are known.
        profiles: cell type -> mean counts per 10,000 of its controls, (genes,); NaN of a gene that they do not measure,
            which is left as it was drawn.
    """

    effects: CarriedEffects
    profiles: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, prior: Checkpoint, controls: ad.AnnData, found: ControlFacts, given: Container[str] = ()) -> Self:
        """That of a checkpoint that keeps effects.

        Args:
            prior: the checkpoint.
            controls: the cells that `found` was read from.
            found: their rows by cell type.
            given: perturbations whose effects the user gave; their cells stay as drawn.
        """
        return cls(CarriedEffects.of(prior, given), profiles_of(prior.processor, controls, found))

    @property
    def known(self) -> KnownEffects:
        """Those measured."""
        return self.effects.known

    def move(
        self,
        counts: sp.csr_matrix,
        obs: pd.DataFrame,
        seed: int,
        weight: float | None = None,
        means: PairMeans | None = None,
    ) -> tuple[sp.csr_matrix, Moved]:
        """Drawn cells, moved.

        Args:
            counts: raw counts, (cells, genes).
            obs: `cell_type` and `perturbation` of the cells.
            seed: of the molecules that are taken and added.
            weight: 0 leaves the mean as it is, 1 gives the cells that which is told; None finds that of each pair.
            means: of the pairs, if they are not those of `counts`.

        Returns:
            the counts, CSR float32 (cells, genes), and the pairs that were moved: those of at least FEWEST_CELLS cells
            of whose perturbation something is known.
        """
        pairs, asked = cells_by_pair(obs), dict[str, list[str]]()
        for (kind, name), cells in pairs:
            if len(cells) >= FEWEST_CELLS:
                asked.setdefault(kind, []).append(name)
        logs = {kind: np.log2(self.profiles[kind] + self.known.pseudo) for kind in asked}
        carried = {kind: self.effects.among(names, kind, logs[kind]) for kind, names in asked.items()}
        wanted, moved = {} if means is None else means.means(), Moved()
        for number, (pair, cells) in enumerate(pairs):
            one = carried.get(pair[0], {}).get(pair[1])
            if one is not None and (one.trust if weight is None else weight):
                mean = wanted[number] if number in wanted else mean_rates(counts[cells])
                wanted[number], share = self._wanted(mean, logs[pair[0]], one, weight)
                (moved.measured if one.measured else moved.new)[pair] = share
        return with_means(counts, obs, wanted, seed), moved

    def _wanted(
        self, mean: np.ndarray, log: np.ndarray, told: Carried, weight: float | None
    ) -> tuple[np.ndarray, float]:
        """Mean counts per 10,000 between the `mean` of drawn cells and what is told, (genes,), and by what weight.

        Genes that are NaN in `log`, (genes,), stay, and so does the share of all molecules that is theirs.
        """
        measured = mean[np.isfinite(log)].sum() / PER
        log = np.log2((np.exp2(log) - self.known.pseudo) * measured + self.known.pseudo)
        drawn_log = np.log2(mean + self.known.pseudo)
        if weight is None:
            weight = told.trust * (1 - shown(np.nan_to_num(drawn_log - log), told.effect) / 2)
        wanted = np.exp2(drawn_log + weight * (log + told.effect - drawn_log)) - self.known.pseudo
        return np.where(np.isnan(wanted), mean, wanted), weight


def shown(change: np.ndarray, effect: np.ndarray) -> float:
    """How much of an effect a change shows, from 0 to 1: the slope of one on the other, (genes,) each."""
    power = float(effect @ effect)
    return min(max(float(change @ effect) / power, 0.0), 1.0) if power else 1.0


def profiles_of(processor: Any, controls: ad.AnnData, found: ControlFacts) -> dict[str, np.ndarray]:
    """Mean counts per 10,000 of the controls of each cell type, (genes,); NaN of genes that they do not measure."""
    source, n_genes = AnnDataCounts(controls), len(processor.genes)
    columns = processor.panel_index(source.gene_columns)
    missing = ~np.isin(np.arange(n_genes), columns)
    kind = np.empty(controls.n_obs, dtype=np.int64)
    for number, rows in enumerate(found.rows.values()):
        kind[rows] = number
    sums, start = np.zeros((len(found.rows), n_genes)), 0
    for _, block in source.blocks(READ_BATCH):
        counts = over_panel(block, columns, n_genes)
        cells = np.arange(counts.shape[0])
        rates = PER / np.maximum(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), 1)
        member = sp.csr_matrix((rates, (kind[start + cells], cells)), shape=(len(sums), len(cells)))
        sums += (member @ counts).toarray()
        start += len(cells)
    means = sums / np.array([[len(rows)] for rows in found.rows.values()])
    return {name: np.where(missing, np.nan, mean) for name, mean in zip(found.rows, means, strict=True)}
