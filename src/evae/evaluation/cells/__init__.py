"""Cells to compare, read once: log1p CP10K on one panel, the real, the predicted and the training side.

Enters: AnnData, h5ad files or dataset splits. Leaves: a `Comparison`, which keeps the rows of every pair, the control
means and the fitted components. May import: `data`, `data.reading`, `data.streaming`,
`common`.
"""

from evae.data.format import Pair
from evae.evaluation.cells.comparison import Comparison, compare
from evae.evaluation.cells.inputs import Data
from evae.evaluation.cells.normalised import Cells
from evae.evaluation.cells.projection import Projection, fit_projection

__all__ = ["Cells", "Comparison", "Data", "Pair", "Projection", "compare", "fit_projection"]
