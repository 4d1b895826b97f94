"""Which cells are compared, how often and by which metric.

Enters: a `Comparison` and systems. Leaves: records, one a number. May import: cells, metrics, systems.
"""
