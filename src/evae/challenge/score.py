"""How a model would do in the challenge: every training context is left out in turn and predicted from its controls.

Each context's real perturbed cells are the truth, the other contexts' cells are what the baselines may use, and the
model gets the context's controls alone. The metrics and scores are those of the suite `vcc2026`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd

from evae.data.reading.labels import label_texts
from evae.evaluation import EvaluationResult, evaluate
from evae.inference.pipeline import Pipeline
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import gene_columns

_NAMED = 10


@dataclass(frozen=True)
class LeaveOneOut:
    """Contexts that are left out one at a time.

    Attributes:
        pipe: a prior. It should not have seen the perturbed cells of the contexts; the notes say where it did.
        cells: perturbed and control cells of at least two contexts, raw counts, in memory.
        control: label of the controls.
        context_key, perturbation_key: obs columns.
        seeds: of the split halves; the first one is also that of the predictions.
        batch_size: cells drawn at once.
        progress: show progress bars.
    """

    pipe: Pipeline
    cells: ad.AnnData
    control: str
    context_key: str = "cell_type"
    perturbation_key: str = "perturbation"
    seeds: Sequence[int] = (0, 1, 2)
    batch_size: int = 256
    progress: bool = True

    def score(self, contexts: Sequence[str] = ()) -> EvaluationResult:
        """Score the model and the baselines.

        Args:
            contexts: those to leave out; all that have perturbed cells and controls if empty.

        Returns:
            The numbers of all contexts together; the notes name the targets that the model has no value for.

        Raises:
            EvaeError: fewer than two contexts, an unknown one, or nothing that the model knows.
        """
        cells = self._over_panel()
        context, perturbation = self._labels(self.context_key), self._labels(self.perturbation_key)
        controls = perturbation == self.control
        usable = sorted(set(context[controls]) & set(context[~controls]))
        if len(usable) < 2:
            raise EvaeError(
                f"leaving a context out needs two with perturbed cells and '{self.control}' cells; obs column "
                f"'{self.context_key}' has {len(usable)}. {near_matches(self.control, sorted(set(perturbation)))}"
            )
        for name in contexts:
            if name not in usable:
                raise EvaeError(f"no context '{name}' has perturbed cells and controls. {near_matches(name, usable)}")
        return _together([self._one(cells, context, perturbation, name) for name in contexts or usable])

    def _one(self, cells: ad.AnnData, context: np.ndarray, perturbation: np.ndarray, name: str) -> EvaluationResult:
        """One context left out."""
        here, controls = context == name, perturbation == self.control
        asked = pd.Series(perturbation[here & ~controls]).value_counts().sort_index()
        known = [p for p in asked.index if self._knows(p)]
        if not known:
            raise EvaeError(f"the model has a value for none of the perturbations of {name}; give another model.")
        own_controls = cells[here & controls].copy()
        predicted = self.pipe.predict(
            own_controls, n_cells={(name, p): int(asked[p]) for p in known}, seed=self.seeds[0],
            batch_size=self.batch_size, cell_type_key=self.context_key, perturbation_key=self.perturbation_key,
            progress=self.progress,
        )  # fmt: skip
        result = evaluate(
            predicted, cells[here & np.isin(perturbation, known)].copy(), cells[~here].copy(), own_controls,
            perturbation_key=self.perturbation_key, cell_type_key=self.context_key,
            predicted_perturbation_key="perturbation", predicted_cell_type_key="cell_type", control=self.control,
            suite="vcc2026", seeds=self.seeds, cache=None, progress=self.progress,
        )  # fmt: skip
        unknown = [p for p in asked.index if p not in known]
        seen = sorted(set(predicted.obs["perturbation"][predicted.obs["support"] == "seen together"]))
        notes = []
        if unknown:
            notes.append(f"the model has no value for {_some(unknown)}; left out in {name}")
        if seen:
            notes.append(
                f"the model's training saw perturbed cells of {name} ({_some(seen)}): this is no zero-shot score"
            )
        return replace(result, stamp=result.stamp | {"notes": notes + result.stamp["notes"]})

    def _over_panel(self) -> ad.AnnData:
        """The cells over the genes of the model's panel."""
        processor = self.pipe.processor
        columns = gene_columns(self.cells.var_names, self.cells.var, "the cells")
        processor.panel_index(columns)  # raises where they are too few
        position = processor.gene_positions(columns)
        return self.cells[:, position[position >= 0]].copy()

    def _labels(self, key: str) -> np.ndarray:
        if key not in self.cells.obs:
            known = [str(name) for name in self.cells.obs.columns]
            raise EvaeError(f"the cells have no obs column '{key}'. {near_matches(key, known)}")
        return label_texts(self.cells.obs[key])

    def _knows(self, perturbation: str) -> bool:
        try:
            self.pipe.processor.perturbation_ids([perturbation])
        except EvaeError:
            return False
        return True


def _together(results: list[EvaluationResult]) -> EvaluationResult:
    """The records and notes of all contexts."""
    notes = list(dict.fromkeys(note for result in results for note in result.stamp["notes"]))
    records = pd.concat([result.records for result in results], ignore_index=True)
    return EvaluationResult(records, results[0].comparison, results[0].stamp | {"notes": notes})


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
