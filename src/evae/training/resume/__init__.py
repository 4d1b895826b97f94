"""What a run must remember to go on exactly: checkpoints, random states, the run folder.

Enters: a running training. Leaves: a checkpoint on disk, and back. May import: settings, `common`.
"""
