"""A dataset folder becomes sparse batches of cells, in an order that resumes exactly.

Enters: an open `Dataset`, a folder, a Hub id or an `IterableDataset` of HF `datasets`. Leaves: batches of tensors, or a
split as AnnData.
May import: `data`, `common`, the input contract. The public names stand in `evae.data`.
"""
