"""The one Accelerate loop: steps, validation, schedule, stopping.

Enters: a `Stage` (model, batches, loss) and settings. Leaves: the trained weights in a run folder.
May import: `training.resume`, `training.settings`, `common`, `models`.
"""

from evae.training.loop.stage import Batches, Stage
from evae.training.loop.steps import train

__all__ = ["Batches", "Stage", "train"]
