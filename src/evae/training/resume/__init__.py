"""What a run must remember to go on exactly: weights, optimiser, random states, the place in the data, the run folder.

Enters: a running training. Leaves: a checkpoint on disk, and back.
May import: `training.settings`, `data`, `common`, `models`.
"""

from evae.training.resume.checkpoint import TrainingState, read_checkpoint, write_checkpoint
from evae.training.resume.run_folder import RunFolder

__all__ = ["RunFolder", "TrainingState", "read_checkpoint", "write_checkpoint"]
