"""The one Accelerate loop: steps, validation, schedule, stopping.

Enters: a stage (model, batches, loss) and settings. Leaves: the trained weights in a run folder.
May import: `training.resume`, settings, `common`.
"""
