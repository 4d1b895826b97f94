"""Cells to compare, read once: log1p CP10K on one panel, the real, the predicted and the training side.

Enters: AnnData, h5ad files or dataset splits. Leaves: a `Comparison`. May import: `data`, `common`.
"""
