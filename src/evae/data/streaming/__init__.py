"""A dataset folder becomes sparse batches of cells, in an order that resumes exactly.

Enters: a dataset folder or Hub id. Leaves: batches of tensors, or a split as AnnData.
May import: `data.format`, `common`, the input contract.
"""
