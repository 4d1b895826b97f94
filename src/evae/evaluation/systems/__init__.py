"""What stands in a table: the model, control copies, shifts, means, halves of the real cells. `names` calls them.

Enters: a `Comparison`. Leaves: systems that give cells for each pair. May import: `evaluation.cells`.
"""

from evae.evaluation.systems.baselines import System, baselines, model_system, real_system
from evae.evaluation.systems.scvi_baseline import scvi_shift

__all__ = ["System", "baselines", "model_system", "real_system", "scvi_shift"]
