"""Cells that other models predicted for the same pairs: each model stands in the same tables, under its name."""

from collections.abc import Mapping
from contextlib import closing

import numpy as np

from evae.common.messages import number_of
from evae.evaluation.cells import Comparison
from evae.evaluation.cells.comparison import group_rows
from evae.evaluation.cells.inputs import Data, Progress, open_source, predicted_keys, silent
from evae.evaluation.systems.baselines import System, sampled
from evae.evaluation.systems.names import MEANINGS
from evae.models.contract_evae import EvaeError
from evae.models.genes_evae import GeneColumns


def other_models(
    comparison: Comparison,
    others: Mapping[str, Data],
    keys: tuple[str, str | None],
    progress: Progress = silent,
) -> list[System]:
    """The models as systems; a model need not answer for all pairs, which a note says.

    Args:
        comparison: what is evaluated; its notes grow.
        others: name of a model -> its predictions, in any form that `evaluate` takes.
        keys: the real cells' columns of the perturbation and the cell type; None as the latter treats all cells as
            one type. Where a model's cells lack a column, `perturbation` or `cell_type` stands for it.
        progress: of the reading.

    Raises:
        EvaeError: a name of another row, no cell of an evaluated pair, or cells that cannot be compared.
    """
    panel = comparison.panel or GeneColumns.of_panel(comparison.genes.tolist())
    found = []
    for name, data in others.items():
        if name in MEANINGS or not name:
            raise EvaeError(f"'{name}' is a row of every table or no name; call the other model by another.")
        source = open_source(data, f"the cells of {name}", *predicted_keys(data, keys, None, None))
        with closing(source):
            theirs = group_rows(source.cell_type, source.perturbation)
            wanted = [pair for pair in comparison.pairs if pair in theirs]
            if not wanted:
                shown = ", ".join(f"{p} in {c}" for c, p in list(theirs)[:3])
                raise EvaeError(f"{source.name} hold none of the pairs to evaluate, but {shown}; check their labels.")
            rows = np.sort(np.concatenate([theirs[pair] for pair in wanted]))
            cells = source.cells(panel, rows, progress)
        if len(wanted) < len(comparison.pairs):
            comparison.notes.append(
                f"{name} has cells of {len(wanted)} of the {number_of(len(comparison.pairs), 'pair')}"
            )
        found.append(sampled(name, cells, group_rows(cells.cell_type, cells.perturbation), own=True))
    return found
