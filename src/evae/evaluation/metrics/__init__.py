"""Numbers from two sets of cells: distances of distributions, pseudobulks, differential expression, diversity.

Enters: matrices. Leaves: numbers and tables. May import: `evaluation.cells`.
"""
