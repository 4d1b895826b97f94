"""A checkpoint at work: loaded, told what to predict, drawing cells, embedding cells.

Enters: a checkpoint folder or Hub id, and AnnData or h5ad. Leaves: AnnData of predicted cells, embeddings.
May import: `models`, `data`, `common`.
"""
