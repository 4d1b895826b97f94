"""Pictures of cells and results, for notebooks: every function takes and returns matplotlib axes.

    import evae.plot
    ax = evae.plot.fold_changes(predicted, real, controls)
    ax.figure.savefig("fold_changes.png")

Enters: AnnData or h5ad files of raw counts, tables, an `EvaluationResult`. Leaves: the axes that were drawn on; a
figure of their own, which notebooks show, where none are given. May import: `data/reading`, `evaluation` (its cells,
its numbers), `common`.
"""

from evae.plot.cells import cells, counterfactual, fold_changes, gene
from evae.plot.doses import dose_response, save_dose_response
from evae.plot.effects import volcano
from evae.plot.results import confusion, metric, ranking

__all__ = [
    "cells",
    "confusion",
    "counterfactual",
    "dose_response",
    "fold_changes",
    "gene",
    "metric",
    "ranking",
    "save_dose_response",
    "volcano",
]
