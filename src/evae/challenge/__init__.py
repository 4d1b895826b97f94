"""Entries for the Virtual Cell Challenge 2026: from a model and control cells to the file that is submitted.

Enters: a model, control cells as h5ad, the challenge's lists of genes and perturbations. Leaves: an entry (.vcc, or
.h5ad for `vcc prep`); or, of a model and training cells, its scores. May import: `inference`, `data/reading`,
`evaluation` and its room `systems`, `common`.
"""
