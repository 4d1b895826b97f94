"""What stands in a table beside the model: control copies, shifts, means, halves of the real cells.

Enters: a `Comparison`. Leaves: systems that give cells for each pair. May import: cells, metrics.
"""
