"""Data: from h5ad files to a dataset folder on disk, and from there to sparse batches."""
