"""A dataset folder becomes sparse batches of cells, in an order that resumes exactly.

Enters: an open `Dataset`, a folder or a Hub id. Leaves: batches of tensors, or a split as AnnData.
May import: `data`, `common`, the input contract. The public names stand in `evae.data`.
"""
